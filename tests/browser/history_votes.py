"""The votes that the browser tests of the History page look at."""

from typing import Any

from lorarlhf.preferences.records import ImportedVote, Verdict

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
FIRST, SECOND = Verdict("ranked", [[0], [1]], "clearly"), Verdict("ranked", [[1], [0]])


def pair(number: int, verdict: Verdict, **more: Any) -> ImportedVote:
    answers = ((f"Answer {number} one.", "base"), (f"Answer {number} two.", "runs/0003-ppo"))
    asked = {"prompt": f"Question {number}?", "completions": answers, "rater": "me", **more}
    return ImportedVote(verdict=verdict, created_at=1_700_000_000_000 + 60_000 * number, **asked)


def votes() -> list[ImportedVote]:
    """Seventy plain votes, and the newest ones with something to see."""
    made = [pair(n, FIRST if n % 2 else SECOND) for n in range(70)]
    three = (("Red.", "base"), ("Green.", "base"), ("Blue.", "runs/2"))
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A colour? " + "A long question. " * 20},
    ]
    ranking = Verdict("ranked", [[1], [0, 2]], note="Über alles green")
    code = "A list:\n\n- one\n- `two`\n\n```python\n" + "print('a wide line') " * 12 + "\n```"
    return [
        *made,
        pair(70, Verdict("skip"), rater="imported", purpose="compare"),
        pair(71, ranking, prompt=talk, completions=three, milliseconds=65_000),
        pair(
            72,
            Verdict("both_bad", edited=f"Mine. {HOSTILE}", note=HOSTILE),
            prompt=HOSTILE,
            completions=((HOSTILE, HOSTILE), (f"[x](javascript:alert(1)) {code}", "base")),
        ),
        pair(73, FIRST, milliseconds=8_200, prompt="What is a quiet hobby?"),
    ]
