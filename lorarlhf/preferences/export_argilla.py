"""Votes as Argilla records, with the questions that `import_argilla` reads back."""

from collections import Counter
from collections.abc import Iterable

from lorarlhf.preferences.export_result import SKIPPED, Export, Row
from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, SKIP, Vote
from lorarlhf.preferences.single_answers import SINGLES


def to_argilla(votes: Iterable[Vote]) -> Export:
    """Argilla records: fields `prompt` and `response-N`, and one ranking for each rater.

    Further questions beside the ranking, answered where a vote has it: `verdict` (both good or both
    bad), `strength`, `note`, and `better-answer`, the answer that the rater wrote. A rater answers
    a record once, so a vote on a repeated item is in a record of its own.
    """
    export, records = Export(), dict[tuple[int, int], Row]()
    voted = Counter[tuple[int, str]]()
    for vote in votes:
        if vote.verdict.verdict == SKIP:
            export.leave_out(vote, SKIPPED)
            continue
        if len(vote.completions) == 1:
            export.leave_out(vote, SINGLES)
            continue
        time = voted[vote.item_id, vote.rater]
        voted[vote.item_id, vote.rater] += 1
        record = records.setdefault((vote.item_id, time), _argilla_record(vote, time))
        for question, value in _argilla_answers(vote).items():
            answers = record["responses"].setdefault(question, [])
            answers.append({"user_id": vote.rater, "value": value})
    export.rows = list(records.values())
    return export


def _argilla_record(vote: Vote, time: int) -> Row:
    fields = {f"response-{n}": text for n, text in enumerate(vote.completions, 1)}
    item = str(vote.item_id)
    again = {"item": item} if time else {}
    return {
        "id": f"{item}-{time + 1}" if time else item,
        "fields": {"prompt": vote.prompt, **fields},
        "metadata": {"sources": vote.sources, **again},
        "responses": {},
    }


def _argilla_answers(vote: Vote) -> Row:
    """The answers to the questions of a record, by question."""
    verdict = vote.verdict
    everyone = [list(range(len(vote.completions)))]
    ranks = [
        {"value": f"response-{position + 1}", "rank": rank}
        for rank, tier in enumerate(verdict.ranking or everyone, 1)
        for position in tier
    ]
    both = verdict.verdict if verdict.verdict in (BOTH_GOOD, BOTH_BAD) else None
    more = {"verdict": both, "strength": verdict.strength, "note": verdict.note}
    more["better-answer"] = verdict.edited
    return {"ranking": ranks} | {name: value for name, value in more.items() if value}
