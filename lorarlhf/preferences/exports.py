"""Votes as rows in several file forms: a vote becomes rows, or is counted with a reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, SKIP, TIE, Prompt, Vote

Row = dict[str, Any]
MARGINS = {"slightly": 1.0, "clearly": 2.0, "much": 3.0}
"""TRL's `margin` for a strength: how much higher the chosen answer should score."""

NOT_EXPRESSIBLE = "with empty or equal answers, or with turns that this format can't express"
TIED, SKIPPED = "ties, which name no better answer", "skipped"
TOO_MANY = "rankings of more than two answers, which this format can't express"
NOT_BAD_OR_GOOD = "ties, which call no answer good or bad"


@dataclass
class Export:
    """Rows, and the number of votes that gave none, by reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


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
    }


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
    answers, tiers = vote.completions, vote.verdict.ranking
    placed = {position for tier in tiers for position in tier}
    rest = [position for position in range(len(answers)) if position not in placed]
    if tiers:
        for upper, lower in combinations([*tiers, rest], 2):
            yield from ((answers[better], answers[worse]) for better in upper for worse in lower)
    if edited := vote.verdict.edited:
        beaten = tiers[0] if tiers else [] if vote.verdict.verdict == SKIP else rest
        yield from ((edited, answers[position]) for position in beaten)


def to_pairs(votes: Iterable[Vote], conversational: bool = True) -> Export:
    """TRL's preference rows: `prompt`, `chosen`, `rejected`; `margin` if a vote has a strength.

    A ranking of k answers gives all of its pairs, and the trainers here count each pair as a vote.
    For other trainers, pairs of one vote share a `group`, and their `weight`s add up to one.
    """
    votes = list(votes)
    # All rows of a file have the same columns.
    margins = any(vote.verdict.strength for vote in votes)

    def rows(vote: Vote) -> list[Row]:
        pairs = list(better_and_worse(vote))
        more = {"group": vote.item_id, "weight": 1 / len(pairs) if pairs else 0.0}
        more |= {"margin": MARGINS.get(vote.verdict.strength or "", 0.0)} if margins else {}
        if conversational:
            start = _conversation(vote.prompt)
            return [
                {"prompt": start, "chosen": _answer(good), "rejected": _answer(bad), **more}
                for good, bad in pairs
            ]
        before = as_plain(vote.prompt)
        return [{"prompt": before, "chosen": good, "rejected": bad, **more} for good, bad in pairs]

    return _of_ranked(votes, rows)


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


def to_kto(votes: Iterable[Vote]) -> Export:
    """TRL's unpaired rows: `prompt`, `completion`, and `label`: whether it is a good answer."""
    export = Export()
    for vote in votes:
        labels: tuple[bool, bool] | None = None
        answers = tuple(vote.completions)
        if vote.verdict.verdict in (BOTH_GOOD, BOTH_BAD) and len(answers) == 2:
            labels = (vote.verdict.verdict == BOTH_GOOD,) * 2
        elif len(answers) == 2 and (pairs := list(better_and_worse(vote))):
            answers, labels = pairs[0], (True, False)
        if labels is None:
            export.left_out[_reason(vote, NOT_BAD_OR_GOOD)] += 1
            continue
        for answer, label in zip(answers, labels, strict=True):
            row = {"prompt": _conversation(vote.prompt), "completion": _answer(answer)}
            export.rows.append(row | {"label": label})
    return export


def to_hh(votes: Iterable[Vote]) -> Export:
    """Dialogues as text, `chosen` and `rejected`, with each turn after Human: or Assistant:."""

    def rows(vote: Vote) -> list[Row]:
        turns = [turn["content"] for turn in _conversation(vote.prompt)]
        texts = [*turns, *(text for pair in better_and_worse(vote) for text in pair)]
        systems = any(turn["role"] == "system" for turn in _conversation(vote.prompt))
        if systems or any("\n\nHuman:" in text or "\n\nAssistant:" in text for text in texts):
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
    """Records as the LMSYS arena publishes them: two conversations and the `winner`."""
    export = Export()
    winners = {TIE: "tie", BOTH_GOOD: "tie", BOTH_BAD: "tie (bothbad)"}
    for vote in votes:
        if len(vote.completions) != 2 or vote.verdict.verdict == SKIP:
            export.left_out[_reason(vote, TOO_MANY)] += 1
            continue
        best = vote.verdict.ranking[0][0] if vote.verdict.ranking else None
        winner = ("model_a", "model_b")[best] if best is not None else winners[vote.verdict.verdict]
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
        export.rows.append(row | ({"both_good": True} if vote.verdict.verdict == BOTH_GOOD else {}))
    return export


def to_argilla(votes: Iterable[Vote]) -> Export:
    """Argilla records: fields `prompt` and `response-N`, and one ranking for each rater."""
    export, records = Export(), dict[int, Row]()
    for vote in votes:
        if vote.verdict.verdict == SKIP:
            export.left_out[SKIPPED] += 1
            continue
        fields = {f"response-{n + 1}": text for n, text in enumerate(vote.completions)}
        record = records.setdefault(
            vote.item_id,
            {
                "id": str(vote.item_id),
                "fields": {"prompt": vote.prompt, **fields},
                "metadata": {"sources": vote.sources},
                "responses": {"ranking": []},
            },
        )
        everyone = [list(range(len(vote.completions)))]
        ranks = [
            {"value": f"response-{position + 1}", "rank": rank}
            for rank, tier in enumerate(vote.verdict.ranking or everyone, 1)
            for position in tier
        ]
        answer: Row = {"user_id": vote.rater, "value": ranks}
        if vote.verdict.verdict in (BOTH_GOOD, BOTH_BAD):
            answer["verdict"] = vote.verdict.verdict
        record["responses"]["ranking"].append(answer)
    export.rows = list(records.values())
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


def _of_ranked(votes: Iterable[Vote], rows: Callable[[Vote], list[Row]]) -> Export:
    export = Export()
    for vote in votes:
        made = rows(vote)
        export.rows += made
        if not made:
            export.left_out[_reason(vote, TIED)] += 1
    return export


def _reason(vote: Vote, otherwise: str) -> str:
    if vote.verdict.verdict == SKIP:
        return SKIPPED
    if vote.verdict.verdict == RANKED and otherwise == TIED:
        return NOT_EXPRESSIBLE
    named = {BOTH_GOOD: "both good", BOTH_BAD: "both bad"}
    if otherwise == TIED and vote.verdict.verdict in named:
        return f"{named[vote.verdict.verdict]}, which names no better answer"
    return TOO_MANY if len(vote.completions) > 2 and otherwise != TIED else otherwise


def _conversation(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def as_plain(prompt: Prompt) -> str:
    """A prompt as one text: the contents of its turns, one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
