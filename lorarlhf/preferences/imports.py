"""Reading votes from files: every row becomes a vote, or is counted with a reason.

A row that can't be read stops the import before anything is added, with its line and field.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import raise_first, read_rows, shown
from lorarlhf.preferences.import_forms import (
    FORMS,
    LLMFAO_COLUMNS,
    VOTES_ONLY,
    Row,
    RowFault,
    crowd_vote,
    kto_pair,
)
from lorarlhf.preferences.records import (
    MOST_COMPLETIONS,
    ImportedVote,
    Prompt,
    check_verdict,
    is_name,
)
from lorarlhf.runtime.errors import UserError

Parser = Callable[[Row], Iterator[ImportedVote]]
ALONE = "rows without a second row on the same prompt"
UNANSWERED = "records that nobody answered"
MAX_INTEGER = 2**53
"""All readers of the exports can hold the integers below it, also those that use floats."""


@dataclass
class Import:
    """Votes, and the number of rows that gave none, by reason."""

    votes: list[ImportedVote] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_votes(path: str | Path, answers: str | Path | None = None) -> Import:
    """Read the votes in a file, whose form is detected from its columns.

    Args:
        path: our own export, TRL preferences or KTO rows, HH dialogues, ShareGPT preferences,
            Argilla records, LMSYS arena records, or LLMFAO's crowd comparisons.
        answers: the file of answers that belongs to LLMFAO's comparisons; by default
            `pairs-crowd.jsonl` in the same folder.

    Raises:
        UserError: a file or row that can't be read (file, line, field), or an unknown form.
    """
    file = Path(path).expanduser()
    numbered = read_rows(file)
    columns = set(numbered[0][1])
    if columns >= LLMFAO_COLUMNS:
        beside = Path(answers) if answers else file.with_name("pairs-crowd.jsonl")
        pairs = {row.get("id"): row for _, row in read_rows(beside)}
        return _parse_rows(file, numbered, lambda row: crowd_vote(row, pairs))
    parse = _find_parser(file, columns)
    if parse is kto_pair:
        return _parse_kto(file, numbered)
    return _parse_rows(file, numbered, parse)


def holds_votes(path: str | Path) -> bool:
    """Whether a file has a form of votes that no trainer reads: ours, Argilla's or an arena's.

    Raises:
        UserError: the file can't be read.
    """
    columns = set(read_rows(Path(path).expanduser())[0][1])
    return columns >= LLMFAO_COLUMNS or any(needed <= columns for needed, _ in VOTES_ONLY)


def _find_parser(file: Path, columns: set[str]) -> Parser:
    for needed, parse in FORMS:
        if needed <= columns:
            return parse
    raise UserError(
        f"{file}: the columns {', '.join(sorted(columns))} match no known form. Known are our own "
        "export, TRL (chosen, rejected), KTO (completion, label), HH, ShareGPT, Argilla, LMSYS "
        "arena records and LLMFAO's comparisons."
    )


def _parse_rows(file: Path, numbered: list[tuple[int, Row]], parse: Parser) -> Import:
    found, problems = Import(), list[str]()
    for line, row in numbered:
        try:
            votes = _votes_of(row, parse)
        except RowFault as fault:
            problems.append(f", line {line}, {fault}")
            continue
        found.votes += votes
        if not votes:
            found.left_out[UNANSWERED] += 1
    raise_first(file, problems)
    return found


RAW_ERRORS = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What parsers and checks raise for a value of an unexpected kind."""


def _votes_of(row: Row, parse: Parser) -> list[ImportedVote]:
    """The checked votes of a row.

    Raises:
        RowFault: the row can't be read. Python's own words about it are never shown.
    """
    try:
        votes = list(parse(row))
    except RAW_ERRORS as error:
        raise _odd_form(row, error) from error
    for vote in votes:
        try:
            _check_vote(vote)
        except UnicodeEncodeError as error:
            raise RowFault("a text has half a character (a lone surrogate)") from error
        except ValueError as error:  # in words, of the verdict
            raise RowFault(str(error)) from error
        except RAW_ERRORS as error:
            raise _odd_form(row, error) from error
    return votes


def _odd_form(row: Row, error: Exception) -> RowFault:
    if isinstance(error, KeyError) and isinstance(error.args[0], str):
        return RowFault(f'field "{error.args[0]}" is missing')
    found = "; ".join(f'"{name}" is {shown(value)}' for name, value in list(row.items())[:8])
    return RowFault(f"expected the fields as the tool that wrote them gives them, found {found}")


def _parse_kto(file: Path, numbered: list[tuple[int, Row]]) -> Import:
    """KTO's rows joined in pairs with the same prompt: good and bad, both good, or both bad."""
    problems = [
        f', line {line}, field "label": expected true or false'
        for line, row in numbered
        if not isinstance(row.get("label"), bool)
    ]
    raise_first(file, problems)
    waiting: dict[str, Row] = {}
    found, pairs = Import(), list[tuple[int, Row]]()
    for line, row in numbered:
        key = json.dumps(row.get("prompt"))
        if key in waiting:
            pairs.append((line, {"first": waiting.pop(key), "second": row}))
        else:
            waiting[key] = row
    found = _parse_rows(file, pairs, kto_pair)
    if waiting:
        found.left_out[ALONE] += len(waiting)
    return found


# ---- checks


def _check_vote(vote: ImportedVote) -> None:
    """Check that the store can take the vote, and give it back unchanged.

    Raises:
        RowFault, ValueError: it can't.
    """
    _check_prompt(vote.prompt)
    _check_answers(vote)
    if vote.purpose not in ("train", "compare"):
        raise RowFault('field "purpose": expected train or compare')
    if not is_name(vote.rater):
        raise RowFault('field "rater": expected a name in one line')
    for name in ("created_at", "milliseconds", "presentation", "repeats"):
        value = getattr(vote, name)
        if value is not None and (type(value) is not int or not 0 <= value < MAX_INTEGER):
            raise RowFault(f'field "{name}": expected a whole number or null, found {value!r}')
    if not all(isinstance(text, str | None) for text in (vote.verdict.note, vote.verdict.edited)):
        raise RowFault('fields "note" and "edited": expected a text or null')
    check_verdict(vote.verdict, len(vote.completions))
    json.dumps(asdict(vote), ensure_ascii=False).encode()  # raises for a lone surrogate


def _check_prompt(prompt: Prompt) -> None:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns:
        raise RowFault('field "prompt": expected text or messages')
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(name), str) for name in ("role", "content")
        ):
            raise RowFault('field "prompt": expected messages with role and content')


def _check_answers(vote: ImportedVote) -> None:
    texts = [text for text, _ in vote.completions]
    if not all(isinstance(text, str) for text in texts):
        raise RowFault("expected answers that are text")
    if not 2 <= len(texts) <= MOST_COMPLETIONS:
        raise RowFault(f"expected 2 to {MOST_COMPLETIONS} answers, found {len(texts)}")
    if not all(isinstance(source, str) for _, source in vote.completions):
        raise RowFault('field "source": expected a text')
    if not isinstance(vote.origin, dict) or not all(isinstance(s, dict) for s in vote.sampling):
        raise RowFault('fields "origin" and "sampling": expected objects')
    if vote.shown is not None and not _is_order(vote.shown, len(texts)):
        raise RowFault(f'field "shown": expected the positions 0 to {len(texts) - 1} in some order')


def _is_order(shown: Sequence[Any], count: int) -> bool:
    return all(type(place) is int for place in shown) and sorted(shown) == list(range(count))
