"""Votes as rows in several file forms: a vote becomes rows, or is counted with a reason."""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from lorarlhf.preferences.export_argilla import to_argilla
from lorarlhf.preferences.export_result import SKIPPED, Export, Row
from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, SKIP, TIE, Prompt, Vote
from lorarlhf.preferences.single_answers import SINGLE, SINGLES, in_pairs

MARGINS = {"slightly": 1.0, "clearly": 2.0, "much": 3.0}
"""TRL's `margin` for a strength: how much higher the chosen answer should score."""
LARGEST_MARGIN = 1e300  # larger whole numbers are no floats, and NaN fails the comparison

NOT_EXPRESSIBLE = "with empty or equal answers, or with turns that this format can't express"
TIED = "ties, which name no better answer"
TOO_MANY = "rankings of more than two answers, which this format can't express"
NOT_BAD_OR_GOOD = "ties, which call no answer good or bad"


def to_own(votes: Iterable[Vote]) -> Export:
    """Every field of each vote; `imports.read_votes` reads them back without loss."""
    return Export([_own(vote) for vote in votes])


def _own(vote: Vote) -> Row:
    verdict = vote.verdict
    answers = zip(vote.completions, vote.sources, vote.sampling, strict=True)
    return {
        "prompt": vote.prompt,
        "completions": [{"text": t, "source": s, "sampling": how} for t, s, how in answers],
        "verdict": verdict.verdict,
        "ranking": verdict.ranking,
        "strength": verdict.strength,
        "note": verdict.note,
        "edited": verdict.edited,
        "rater": vote.rater,
        "item": str(vote.item_id),
        "presentation": vote.presentation_id,
        "repeats": vote.repeats,
        "shown": vote.shown,
        "milliseconds": vote.milliseconds,
        "created_at": vote.created_at,
        "purpose": vote.purpose,
        "origin": vote.origin,
    } | ({"key": vote.key} if vote.key else {})


def better_and_worse(vote: Vote) -> Iterator[tuple[str, str]]:
    """The (better, worse) texts of all pairs that a vote orders.

    An answer that was left out of a ranking is worse than the ranked ones. An edited answer is
    better than each of the best answers. Pairs with an empty answer or two equal ones are left out,
    since no trainer accepts them.
    """
    for better, worse in _ordered(vote):
        if better.strip() and worse.strip() and better != worse:
            yield better, worse


def _ordered(vote: Vote) -> Iterator[tuple[str, str]]:
    answers, levels = vote.completions, _levels(vote)
    if vote.verdict.ranking:
        for upper, lower in combinations(levels, 2):
            yield from ((answers[better], answers[worse]) for better in upper for worse in lower)
    if edited := vote.verdict.edited:
        beaten = [] if vote.verdict.verdict == SKIP else levels[0]
        yield from ((edited, answers[position]) for position in beaten)


def _levels(vote: Vote) -> list[list[int]]:
    """The places of the answers by rank, the best first; what is not ranked is last."""
    placed = {place for tier in vote.verdict.ranking for place in tier}
    rest = [place for place in range(len(vote.completions)) if place not in placed]
    return [*vote.verdict.ranking, *([rest] if rest else [])]


def to_pairs(votes: Iterable[Vote], conversational: bool = True) -> Export:
    """TRL's preference rows: `prompt`, `chosen`, `rejected`; `margin` if a vote has a strength.

    A ranking of k answers gives all of its pairs, and the trainers here count each pair as a vote.
    For other trainers, pairs of one vote share a `group`, and their `weight`s add up to one.
    Single answers that a rater called good and bad give pairs, too.
    """
    votes = list(votes)
    # All rows of a file have the same columns.
    margins = any(_margin(vote) for vote in votes)

    def rows(vote: Vote) -> list[Row]:
        pairs = list(better_and_worse(vote))
        more = {"group": vote.item_id, "weight": 1 / len(pairs) if pairs else 0.0}
        more |= {"margin": _margin(vote)} if margins else {}
        if conversational:
            start = _conversation(vote.prompt)
            return [
                {"prompt": start, "chosen": _answer(good), "rejected": _answer(bad), **more}
                for good, bad in pairs
            ]
        before = as_plain(vote.prompt)
        return [{"prompt": before, "chosen": good, "rejected": bad, **more} for good, bad in pairs]

    return _of_ranked(votes, rows)


def _margin(vote: Vote) -> float:
    """The margin of a vote's strength, or the one that it was imported with."""
    if vote.verdict.strength:
        return MARGINS[vote.verdict.strength]
    imported = vote.origin.get("margin")
    # A correction that reverses the vote makes its margin invalid.
    if vote.verdict.ranking != [[0], [1]] or not isinstance(imported, int | float):
        return 0.0
    return float(imported) if abs(imported) < LARGEST_MARGIN else 0.0


def to_demonstrations(votes: Iterable[Vote]) -> Export:
    """The answers that raters wrote or edited, as `prompt` and `completion`."""
    export = Export()
    for vote in votes:
        edited = vote.verdict.edited or ""
        if edited.strip():
            start = _conversation(vote.prompt)
            export.rows.append({"prompt": start, "completion": _answer(edited)})
        else:
            export.left_out["votes without an edited answer"] += 1
    return export


def to_edits(votes: Iterable[Vote]) -> Export:
    """`to_demonstrations`, with the answers that the rater saw in `worse`.

    They are empty where the rater skipped the comparison.
    """
    export = Export()
    for vote in votes:
        found = to_demonstrations([vote])
        seen = [] if vote.verdict.verdict == SKIP else vote.completions
        export.rows += [row | {"worse": list(seen)} for row in found.rows]
        export.left_out += found.left_out
    return export


def to_kto(votes: Iterable[Vote]) -> Export:
    """TRL's unpaired rows: `prompt`, `completion`, and `label`: whether it is a good answer.

    Of a ranking, the first answers are good and the last ones bad; those between are left out. An
    answer that the rater wrote is a good one, with `written`. The rows of a vote have its number
    in `vote`. Blank answers are left out, since no trainer takes them.
    """
    export = Export()
    for vote in votes:
        labels = _labels(vote)
        if not labels:
            export.leave_out(vote, _reason(vote, NOT_BAD_OR_GOOD))
        for answer, label, written in labels:
            row = {"prompt": _conversation(vote.prompt), "completion": _answer(answer)}
            export.rows.append(row | {"label": label, "vote": vote.id, "written": written})
    return export


def _labels(vote: Vote) -> list[tuple[str, bool, bool]]:
    """(answer, whether it is good, whether the rater wrote it), the better answer first."""
    verdict, answers = vote.verdict, vote.completions
    if verdict.verdict == SKIP:
        return []
    labels = []
    if verdict.verdict in (BOTH_GOOD, BOTH_BAD):
        labels = [(answer, verdict.verdict == BOTH_GOOD, False) for answer in answers]
    elif verdict.verdict == RANKED:
        levels = _levels(vote)
        good, bad = ([answers[place] for place in level] for level in (levels[0], levels[-1]))
        if not {*good} & {*bad} and all(answer.strip() for answer in [*good, *bad]):
            labels = [*((text, True, False) for text in good), *((t, False, False) for t in bad)]
    written = [(verdict.edited, True, True)] if verdict.edited else []
    return [label for label in [*labels, *written] if label[0].strip()]


def to_hh(votes: Iterable[Vote]) -> Export:
    """Dialogues as text, `chosen` and `rejected`, with each turn after Human: or Assistant:."""

    def rows(vote: Vote) -> list[Row]:
        turns = [turn["content"] for turn in _conversation(vote.prompt)]
        texts = [*turns, *(text for pair in better_and_worse(vote) for text in pair)]
        roles = {turn["role"] for turn in _conversation(vote.prompt)}
        if not roles <= {"user", "assistant"} or any(
            "\n\nHuman:" in text or "\n\nAssistant:" in text for text in texts
        ):
            return []
        before = "".join(
            f"\n\n{'Assistant' if turn['role'] == 'assistant' else 'Human'}: {turn['content']}"
            for turn in _conversation(vote.prompt)
        )
        return [
            {
                "chosen": f"{before}\n\nAssistant: {good}",
                "rejected": f"{before}\n\nAssistant: {bad}",
            }
            for good, bad in better_and_worse(vote)
        ]

    return _of_ranked(votes, rows)


SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def to_sharegpt(votes: Iterable[Vote]) -> Export:
    """`conversations` with `from` and `value`, and `chosen` and `rejected` turns."""

    def rows(vote: Vote) -> list[Row]:
        turns = [
            {"from": SHAREGPT_ROLES.get(turn["role"], turn["role"]), "value": turn["content"]}
            for turn in _conversation(vote.prompt)
        ]
        return [
            {
                "conversations": turns,
                "chosen": {"from": "gpt", "value": good},
                "rejected": {"from": "gpt", "value": bad},
            }
            for good, bad in better_and_worse(vote)
        ]

    return _of_ranked(votes, rows)


def to_arena(votes: Iterable[Vote]) -> Export:
    """Records as the LMSYS arena publishes them: two conversations and the `winner`.

    What these records have no column for stands in further ones where a vote has it: `both_good`,
    `strength`, `note`, and `edited`, the answer that the rater wrote.
    """
    export = Export()
    winners = {TIE: "tie", BOTH_GOOD: "tie", BOTH_BAD: "tie (bothbad)"}
    for vote in votes:
        verdict = vote.verdict
        if len(vote.completions) != 2 or verdict.verdict == SKIP:
            export.leave_out(vote, _reason(vote, TOO_MANY))
            continue
        best = verdict.ranking[0][0] if verdict.ranking else None
        winner = ("model_a", "model_b")[best] if best is not None else winners[verdict.verdict]
        start = _conversation(vote.prompt)
        row = {
            "question_id": str(vote.item_id),
            "model_a": vote.sources[0],
            "model_b": vote.sources[1],
            "winner": winner,
            "judge": vote.rater,
            "conversation_a": start + _answer(vote.completions[0]),
            "conversation_b": start + _answer(vote.completions[1]),
            "turn": sum(turn["role"] == "user" for turn in start),
            "tstamp": vote.created_at / 1000,
        }
        more = {"both_good": verdict.verdict == BOTH_GOOD, "strength": verdict.strength}
        more |= {"note": verdict.note, "edited": verdict.edited}
        export.rows.append(row | {name: value for name, value in more.items() if value})
    return export


EXPORTS: dict[str, Callable[[Iterable[Vote]], Export]] = {
    "own": to_own,
    "trl": to_pairs,
    "trl-plain": lambda votes: to_pairs(votes, conversational=False),
    "kto": to_kto,
    "hh": to_hh,
    "sharegpt": to_sharegpt,
    "arena": to_arena,
    "argilla": to_argilla,
    "demonstrations": to_demonstrations,
}


def training_rows(form: str, votes: Iterable[Vote]) -> Export:
    """The rows of a form as a training command takes them: without what only an import reads.

    Args:
        form: one of `EXPORTS`, or `edits`, which only the command `ditto` takes.
    """
    if form == "edits":
        return to_edits(votes)
    export = EXPORTS[form](votes)
    if form == "kto":
        names = ("prompt", "completion", "label")
        export.rows = [{name: row[name] for name in names} for row in export.rows]
    return export


def _of_ranked(votes: Iterable[Vote], rows: Callable[[Vote], list[Row]]) -> Export:
    export = Export()
    for vote in in_pairs(votes):
        made = rows(vote)
        export.rows += made
        if not made:
            export.leave_out(vote, _reason(vote, TIED))
    return export


def _reason(vote: Vote, otherwise: str) -> str:
    if vote.verdict.verdict == SKIP:
        return SKIPPED
    if len(vote.completions) == 1:
        return SINGLE if otherwise == TIED else SINGLES
    if vote.verdict.verdict == RANKED and otherwise != TOO_MANY:
        return NOT_EXPRESSIBLE
    named = {BOTH_GOOD: "both good", BOTH_BAD: "both bad"}
    if otherwise == TIED and vote.verdict.verdict in named:
        return f"{named[vote.verdict.verdict]}, which names no better answer"
    return otherwise


def _conversation(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def as_plain(prompt: Prompt) -> str:
    """A prompt as one text: the contents of its turns, one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
