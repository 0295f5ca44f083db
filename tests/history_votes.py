"""The votes that the tests of the history and of downloads look at."""

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
ANSWERS = (("One.", "base"), ("Two.", "runs/1"))
THREE = (("Red.", "a"), ("Green.", "b"), ("Blue.", "c"))
PASSWORD = "quiet harbour 7"
HERE = "http://localhost:7860"


def given(number: int, verdict: Verdict = FIRST, **more: Any) -> ImportedVote:
    item = {"prompt": f"Question {number}?", "completions": ANSWERS, "rater": "me", **more}
    return ImportedVote(verdict=verdict, created_at=1_000 * number, **item)


def filled_store(tmp_path: Path) -> Store:
    """A store with five votes of three raters."""
    made = Store(tmp_path / "preferences.sqlite")
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'A "quiet" hobby?\nSay 100%.'},
    ]
    add_votes(
        made,
        [
            given(1),
            given(2, Verdict("ranked", [[1], [0, 2]], note="Über alles"), completions=THREE),
            given(3, Verdict("tie"), prompt=talk, purpose="compare"),
            given(4, Verdict("both_bad", edited="Straße, better."), rater="ann"),
            given(5, SECOND, rater="imported"),
        ],
    )
    return made
