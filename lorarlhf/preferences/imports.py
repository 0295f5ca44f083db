"""Reading votes from files: every row becomes a vote, or is counted with a reason and its number.

Chat logs have answers that nobody has judged; these are found apart, to be rated.

A row that can't be read stops the import before anything is added, with its line and field, unless
bad rows are to be left out; they are counted then, and named.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lorarlhf.data.file_formats import parse_rows, printable, raise_first, read_rows, unit_of
from lorarlhf.preferences.fields import (
    FileParser,
    Left,
    Numbered,
    Row,
    RowFault,
    each_row,
    whole_of,
)
from lorarlhf.preferences.import_checks import check_candidates, check_vote
from lorarlhf.preferences.import_forms import (
    KTO_COLUMNS,
    LLMFAO_COLUMNS,
    crowd_vote,
    pairs_parser,
    votes_parser,
)
from lorarlhf.preferences.import_labels import ALONE, Labelled, join, labelled
from lorarlhf.preferences.import_remarks import remarks
from lorarlhf.preferences.merge import Merged
from lorarlhf.preferences.records import Candidates, ImportedVote
from lorarlhf.runtime.errors import UserError

UNREADABLE = "rows that can't be read"
TWICE = "votes that the file has twice"
NAMED = 5
"""How many rows a message names by number for each reason."""
Parsed = Iterator[tuple[int, ImportedVote | Candidates | Left | RowFault]]


@dataclass
class Import:
    """What a file gave.

    Attributes:
        candidates: answers that nobody has judged, to be rated.
        left_out: the number of rows or answers that are no vote, by reason.
        rows_of: by reason, the numbers of these rows; in a file that is one conversation, of its
            turns.
        remarks: the number of votes that are imported and that a person should look at, by reason.
        bad: what is wrong with each row that was left out because it can't be read.
        unit: what these numbers count: rows or lines.
    """

    votes: list[ImportedVote] = field(default_factory=list)
    candidates: list[Candidates] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    rows_of: dict[str, list[int]] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    unit: str = "row"

    def leave_out(self, reason: str, number: int) -> None:
        """Count something in a row that is no vote."""
        self.left_out[reason] += 1
        numbers = self.rows_of.setdefault(reason, [])
        if not numbers or numbers[-1] != number:
            numbers.append(number)

    def reasons(self) -> list[str]:
        """Why the rest is no vote: `2 battles whose sides differ (rows 3, 8)`, a reason each."""
        return [
            f"{count} {reason}{_numbers(self.rows_of.get(reason, []), self.unit)}"
            for reason, count in sorted(self.left_out.items())
        ]

    def rest(self, votes: Merged, rated: Merged, also: Sequence[str] = ()) -> str:
        """What of the file was not added to a store, as a sentence behind another one; or ""."""
        known = [f"{votes.there} already in the store"] if votes.there else []
        known += [f"{rated.there} sets of answers already in the store"] if rated.there else []
        many = f"{votes.changed} vote{'s' * (votes.changed != 1)}"
        text = f" Corrected {many}, changed there since." if votes.changed else ""
        listed = "; ".join([*self.reasons(), *also, *known])
        return f"{text} Left out: {listed}." if listed else text

    def to_rate(self, rated: Merged) -> list[str]:
        """A line about the answers that wait for raters now, if there are any."""
        if not rated.added:
            return []
        many = "sets of answers wait" if rated.added > 1 else "set of answers waits"
        return [f"{rated.added} {many} on the Rate page."]

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
        path: a file of one of the forms that docs/data.md lists.
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
    found, faults = _collect(_parser_of(file, numbered, answers)(numbered))
    problems += [f", {unit_of(file)} {line}, {fault}" for line, fault in faults]
    if not (skip_bad and (found.votes or found.candidates)):
        raise_first(file, problems)
    found.bad = [printable(f"{file}{problem}") for problem in problems]
    if problems:
        found.left_out[UNREADABLE] += len(problems)
    found.remarks = remarks(found.votes, found.candidates)
    found.unit = unit_of(file)
    return found


def holds_votes(path: str | Path, labels: bool = False) -> bool:
    """Whether a file has a form of votes that no trainer reads: ours, Argilla's or an arena's.

    Args:
        labels: whether KTO's rows count, which only the command `kto` reads itself.

    Raises:
        UserError: the file can't be read.
    """
    rows = [row for _, row in read_rows(Path(path).expanduser())]
    kto = labels and rows[0].keys() >= KTO_COLUMNS
    known = (row.keys() >= LLMFAO_COLUMNS or votes_parser(row) is not None for row in rows[:2])
    return kto or any(known)  # the first line of a chat log is about the chat


def _parser_of(file: Path, numbered: Numbered, answers: str | Path | None) -> FileParser:
    """The parser of the file; the first row of a known form decides which form it is."""
    for _, row in numbered:
        if row.keys() >= LLMFAO_COLUMNS:
            beside = Path(answers) if answers else file.with_name("pairs-crowd.jsonl")
            return each_row(partial(crowd_vote, pairs=_pairs_by_id(beside)))
        if parse := votes_parser(row):
            return parse
        if row.keys() >= KTO_COLUMNS:
            return _join_labelled
        if parse := pairs_parser(row):
            return parse
    columns = printable(", ".join(sorted(numbered[0][1])))
    raise UserError(
        f"{file}: the columns {columns} match no known form. Known are our own export, TRL "
        "(chosen, rejected), KTO (completion, label), HH, ShareGPT, Argilla, LMSYS and LMArena "
        "records, LLMFAO's comparisons, UltraFeedback, OpenAssistant trees, Label Studio's "
        "pairwise JSON, Open WebUI's feedback, and chats of SillyTavern and "
        "text-generation-webui."
    )


def _collect(parsed: Parsed) -> tuple[Import, list[tuple[int, RowFault]]]:
    """What a file gave, and its bad rows; a row with a fault gives no vote."""
    found, faults = Import(), dict[int, RowFault]()
    votes, candidates = list[tuple[int, ImportedVote]](), list[tuple[int, Candidates]]()
    named = set[str]()
    for number, one in parsed:
        try:
            if isinstance(one, RowFault):
                faults.setdefault(number, one)
            elif isinstance(one, Left):
                found.leave_out(one.reason, one.place or number)
            elif isinstance(one, Candidates):
                check_candidates(one)
                candidates.append((number, one))
            else:
                check_vote(one)
                if one.key in named:
                    found.leave_out(TWICE, number)
                    continue
                named |= {one.key} if one.key else set()
                votes.append((number, one))
        except RowFault as fault:
            faults.setdefault(number, fault)
    found.votes = [vote for number, vote in votes if number not in faults]
    found.candidates = [one for number, one in candidates if number not in faults]
    return found, sorted(faults.items())


def _numbers(rows: list[int], unit: str) -> str:
    """Row numbers in brackets, the first few."""
    if not rows:
        return ""
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f" ({unit}{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:NAMED]))}{more})"


def _join_labelled(numbered: Numbered) -> Parsed:
    """KTO's rows, joined in pairs as far as that goes."""
    rows = list[tuple[int, Labelled]]()
    for line, row in numbered:
        try:
            rows.append((line, labelled(row)))
        except RowFault as fault:
            yield line, fault
    votes, alone = join(rows)
    yield from votes
    yield from ((line, Left(ALONE)) for line in alone)


def _pairs_by_id(file: Path) -> dict[int, Row]:
    """LLMFAO's file of answers, by the number of the pair."""
    pairs = {}
    for line, row in read_rows(file):
        try:
            pairs[whole_of(row.get("id"), "id")] = row
        except RowFault as fault:
            raise UserError(f"{file}, {unit_of(file)} {line}, {fault}") from fault
    return pairs
