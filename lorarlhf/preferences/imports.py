"""Reading votes from files: every row becomes a vote, or is counted with a reason.

A row that can't be read stops the import before anything is added, with its line and field, unless
bad rows are to be left out; they are counted then, and named.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import parse_rows, printable, raise_first, read_rows, unit_of
from lorarlhf.data.validation import BROKEN_TEXT, LONE_SURROGATE
from lorarlhf.preferences.fields import Parser, Row, RowFault, whole_of
from lorarlhf.preferences.import_forms import (
    KTO_COLUMNS,
    LLMFAO_COLUMNS,
    crowd_vote,
    pairs_parser,
    votes_parser,
)
from lorarlhf.preferences.import_labels import ALONE, Labelled, join, labelled
from lorarlhf.preferences.import_remarks import remarks
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    MOST_COMPLETIONS,
    ImportedVote,
    check_verdict,
    is_name,
)
from lorarlhf.runtime.errors import UserError

Numbered = list[tuple[int, Row]]
MAX_INTEGER = 2**53
"""All readers of the exports can hold the integers below it, also those that use floats."""


@dataclass
class Import:
    """What a file gave.

    Attributes:
        left_out: the number of rows or answers that are no vote, by reason.
        remarks: the number of votes that are imported and that a person should look at, by reason.
        bad: what is wrong with each row that was left out because it can't be read.
    """

    votes: list[ImportedVote] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def remarked(self) -> str:
        """The remarks as text."""
        return "; ".join(f"{count} {what}" for what, count in sorted(self.remarks.items()))

    def first_bad(self) -> str:
        """The first three bad rows, a line each, and the number of the others."""
        more = [f"... and {len(self.bad) - 3} more"] if len(self.bad) > 3 else []
        return "\n".join(self.bad[:3] + more)


def read_votes(
    path: str | Path, answers: str | Path | None = None, *, skip_bad: bool = False
) -> Import:
    """Read the votes in a file, whose form is detected from its columns.

    Args:
        path: our own export, TRL preferences or KTO rows, HH dialogues, ShareGPT preferences,
            Argilla records, LMSYS and LMArena records, or LLMFAO's crowd comparisons.
        answers: the file of answers that belongs to LLMFAO's comparisons; by default
            `pairs-crowd.jsonl` in the same folder.
        skip_bad: leave out rows that can't be read, and count and name them.

    Raises:
        UserError: a file or row that can't be read (file, line, field), or an unknown form. With
            `skip_bad`, only if no vote is left.
    """
    file = Path(path).expanduser()
    numbered, problems = parse_rows(file)
    if not skip_bad:
        raise_first(file, problems)
    found, faults = _read(file, numbered, answers)
    problems += [f", {unit_of(file)} {line}, {fault}" for line, fault in faults]
    if not (skip_bad and found.votes):
        raise_first(file, problems)
    found.bad = [printable(f"{file}{problem}") for problem in problems]
    if problems:
        found.left_out["rows that can't be read"] += len(problems)
    found.remarks = remarks(found.votes)
    return found


def holds_votes(path: str | Path, labels: bool = False) -> bool:
    """Whether a file has a form of votes that no trainer reads: ours, Argilla's or an arena's.

    Args:
        labels: whether KTO's rows count, which only the command `kto` reads itself.

    Raises:
        UserError: the file can't be read.
    """
    row = read_rows(Path(path).expanduser())[0][1]
    kto = labels and row.keys() >= KTO_COLUMNS
    return kto or row.keys() >= LLMFAO_COLUMNS or votes_parser(row) is not None


def _read(
    file: Path, numbered: Numbered, answers: str | Path | None
) -> tuple[Import, list[tuple[int, RowFault]]]:
    """The votes, and the bad rows; the first row of a known form decides which form it is."""
    for _, row in numbered:
        if row.keys() >= LLMFAO_COLUMNS:
            beside = Path(answers) if answers else file.with_name("pairs-crowd.jsonl")
            return _parse_rows(numbered, partial(crowd_vote, pairs=_pairs_by_id(beside)))
        if parse := votes_parser(row):
            return _parse_rows(numbered, parse)
        if row.keys() >= KTO_COLUMNS:
            return _join_labelled(numbered)
        if parse := pairs_parser(row):
            return _parse_rows(numbered, parse)
    columns = printable(", ".join(sorted(numbered[0][1])))
    raise UserError(
        f"{file}: the columns {columns} match no known form. Known are "
        "our own export, TRL (chosen, rejected), KTO (completion, label), HH, ShareGPT, Argilla, "
        "LMSYS and LMArena records, and LLMFAO's comparisons."
    )


def _parse_rows(numbered: Numbered, parse: Parser) -> tuple[Import, list[tuple[int, RowFault]]]:
    found, faults = Import(), list[tuple[int, RowFault]]()
    for line, row in numbered:
        try:
            parsed = list(parse(row))
            votes = [vote for vote in parsed if isinstance(vote, ImportedVote)]
            for vote in votes:
                _check_vote(vote)
        except RowFault as fault:
            faults.append((line, fault))
            continue
        found.votes += votes
        found.left_out.update(reason for reason in parsed if isinstance(reason, str))
    return found, faults


def _join_labelled(numbered: Numbered) -> tuple[Import, list[tuple[int, RowFault]]]:
    rows, faults = list[tuple[int, Labelled]](), list[tuple[int, RowFault]]()
    for line, row in numbered:
        try:
            rows.append((line, labelled(row)))
        except RowFault as fault:
            faults.append((line, fault))
    votes, alone = join(rows)
    found = Import()
    for line, vote in votes:
        try:
            _check_vote(vote)
        except RowFault as fault:
            faults.append((line, fault))
            continue
        found.votes.append(vote)
    if alone:
        found.left_out[ALONE] += alone
    return found, faults


def _pairs_by_id(file: Path) -> dict[int, Row]:
    """LLMFAO's file of answers, by the number of the pair."""
    pairs = {}
    for line, row in read_rows(file):
        try:
            pairs[whole_of(row.get("id"), "id")] = row
        except RowFault as fault:
            raise UserError(f"{file}, {unit_of(file)} {line}, {fault}") from fault
    return pairs


# ---- checks


def _check_vote(vote: ImportedVote) -> None:
    """Check that the store can take the vote, and give it back unchanged.

    Raises:
        RowFault: it can't.
    """
    _check_answers(vote)
    if vote.purpose not in ("train", "compare"):
        raise RowFault('field "purpose": expected train or compare')
    if not is_name(vote.rater):
        raise RowFault('field "rater": expected a name in one line')
    for name in ("created_at", "milliseconds", "presentation", "repeats"):
        value = getattr(vote, name)
        if value is not None and (type(value) is not int or not 0 <= value < MAX_INTEGER):
            raise RowFault(f'field "{name}": expected a whole number or null, found {value!r}')
    try:
        check_verdict(vote.verdict, len(vote.completions))
    except ValueError as error:
        raise RowFault(f'field "verdict": {error}') from error
    _check_text(vote)


def _check_text(vote: ImportedVote) -> None:
    """Check that all texts and values can be written as JSON in UTF-8. Raises `RowFault`."""
    fields = {**vars(vote), **vars(vote.verdict), "verdict": vote.verdict.verdict}
    for name, value in fields.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise RowFault(f'field "{name}": expected values that JSON has') from None
        if LONE_SURROGATE.search(text):
            raise RowFault(f'field "{name}": found {BROKEN_TEXT}')


def _check_answers(vote: ImportedVote) -> None:
    texts = [text for text, _ in vote.completions]
    thumb = len(texts) == 1 and vote.verdict.verdict in (BOTH_GOOD, BOTH_BAD)
    if not thumb and not 2 <= len(texts) <= MOST_COMPLETIONS:
        raise RowFault(f'field "completions": expected 2 to {MOST_COMPLETIONS}, found {len(texts)}')
    if not isinstance(vote.origin, dict) or not all(isinstance(s, dict) for s in vote.sampling):
        raise RowFault('fields "origin" and "sampling": expected objects')
    if vote.shown is not None and not _is_order(vote.shown, len(texts)):
        raise RowFault(f'field "shown": expected the positions 0 to {len(texts) - 1} in some order')


def _is_order(shown: Sequence[Any], count: int) -> bool:
    return all(type(place) is int for place in shown) and sorted(shown) == list(range(count))
