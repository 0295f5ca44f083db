"""Votes out of files of many forms: every row becomes a vote, or part of a count with its reason.

A row that can't be read stops the import, with its line and field, before anything is added.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import raise_first, read_rows
from lorarlhf.data.readers import as_text
from lorarlhf.preferences.exports import MARGINS, SHAREGPT
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    MOST_COMPLETIONS,
    RANKED,
    TIE,
    Given,
    Prompt,
    Verdict,
    check_verdict,
    is_name,
)
from lorarlhf.runtime.errors import UserError

Row = dict[str, Any]
FIRST, SECOND = Verdict(RANKED, [[0], [1]]), Verdict(RANKED, [[1], [0]])
ALONE = "rows alone on their prompt, which compare nothing"
UNANSWERED = "records that nobody answered"


@dataclass
class Import:
    """Votes, and how many rows are in none of them, by reason."""

    votes: list[Given] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


MOST = 2**53
"""Numbers below it are held by every reader of the exports."""


class _Fault(Exception):
    """What is wrong with a row; the file and the line are put before it."""


def read_votes(path: str | Path, answers: str | Path | None = None) -> Import:
    """The votes in a file; its form is seen from its columns.

    Args:
        path: our own export, TRL preferences or KTO rows, HH dialogues, ShareGPT preferences,
            Argilla records, LMSYS arena records, or LLMFAO's crowd comparisons.
        answers: for LLMFAO the file of its pairs; `pairs-crowd.jsonl` beside it by default.

    Raises:
        UserError: a file or row that can't be read (file, line, field), or a form not known.
    """
    file = Path(path).expanduser()
    numbered = read_rows(file)
    columns = set(numbered[0][1])
    if columns >= LLMFAO:
        beside = Path(answers) if answers else file.with_name("pairs-crowd.jsonl")
        pairs = {row.get("id"): row for _, row in read_rows(beside)}
        return _each(file, numbered, lambda row: _crowd_vote(row, pairs))
    read = _form_of(file, columns)
    if read is _kto:
        return _kto_pairs(file, numbered)
    return _each(file, numbered, read)


def _form_of(file: Path, columns: set[str]) -> Callable[[Row], Iterator[Given]]:
    for needed, read in FORMS:
        if needed <= columns:
            return read
    raise UserError(
        f"{file}: the columns {', '.join(sorted(columns))} are of no form that is known here. "
        "Known are our own export, TRL (chosen, rejected), KTO (completion, label), HH, ShareGPT, "
        "Argilla, LMSYS arena records and LLMFAO's comparisons."
    )


def _each(
    file: Path, numbered: list[tuple[int, Row]], read: Callable[[Row], Iterator[Given]]
) -> Import:
    found, problems = Import(), list[str]()
    for line, row in numbered:
        try:
            votes = list(read(row))
            for vote in votes:
                _check(vote)
        except _Fault as fault:
            problems.append(f", line {line}, {fault}")
            continue
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f'field "{error.args[0]}" is missing' if isinstance(error, KeyError) else error
            problems.append(f", line {line}: {what}")
            continue
        found.votes += votes
        if not votes:
            found.left_out[UNANSWERED] += 1
    raise_first(file, problems)
    return found


def _check(vote: Given) -> None:
    """Raise a `_Fault` or `ValueError` for a vote that a store would not take, or not give back."""
    prompt = vote.prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns:
        raise _Fault('field "prompt": expected text or messages')
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(name), str) for name in ("role", "content")
        ):
            raise _Fault('field "prompt": expected messages with role and content')
    texts = [text for text, _ in vote.completions]
    if not all(isinstance(text, str) for text in texts):
        raise _Fault("expected answers that are text")
    if not 2 <= len(texts) <= MOST_COMPLETIONS:
        raise _Fault(f"expected 2 to {MOST_COMPLETIONS} answers, found {len(texts)}")
    if vote.purpose not in ("train", "compare"):
        raise _Fault('field "purpose": expected train or compare')
    if not is_name(vote.rater):
        raise _Fault('field "rater": expected a name in one line')
    if not isinstance(vote.origin, dict) or not all(isinstance(s, dict) for s in vote.sampling):
        raise _Fault('fields "origin" and "sampling": expected objects')
    for name in ("created_at", "milliseconds", "presentation", "repeats"):
        value = getattr(vote, name)
        if value is not None and (type(value) is not int or not 0 <= value < MOST):
            raise _Fault(f'field "{name}": expected a whole number or null, found {value!r}')
    if not all(isinstance(source, str) for _, source in vote.completions):
        raise _Fault('field "source": expected a text')
    if vote.shown is not None and not _is_order(vote.shown, len(texts)):
        raise _Fault(f'field "shown": expected the positions 0 to {len(texts) - 1} in some order')
    if not all(isinstance(text, str | None) for text in (vote.verdict.note, vote.verdict.edited)):
        raise _Fault('fields "note" and "edited": expected a text or null')
    check_verdict(vote.verdict, len(texts))
    json.dumps(asdict(vote), ensure_ascii=False).encode()  # a lone surrogate is a fault


def _is_order(shown: Sequence[Any], count: int) -> bool:
    return all(type(place) is int for place in shown) and sorted(shown) == list(range(count))


# ---- the forms


def _own(row: Row) -> Iterator[Given]:
    said = Verdict(
        row["verdict"], row["ranking"] or [], row["strength"], row["note"], row["edited"]
    )
    yield Given(
        prompt=row["prompt"],
        completions=tuple((answer["text"], answer["source"]) for answer in row["completions"]),
        sampling=tuple(answer.get("sampling", {}) for answer in row["completions"]),
        presentation=row.get("presentation"),
        repeats=row.get("repeats"),
        verdict=said,
        rater=row["rater"],
        item=str(row["item"]),
        shown=tuple(row["shown"]),
        milliseconds=row["milliseconds"],
        created_at=row["created_at"],
        purpose=row["purpose"],
        origin=row["origin"],
    )


def _trl(row: Row) -> Iterator[Given]:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise _Fault('field "rejected": expected the same form as "chosen", text or messages')
    if isinstance(chosen, list):
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        if prompt is None:
            prompt = chosen[:same]
        elif same and as_text(chosen[:same]) != as_text(prompt):
            raise _Fault(
                'field "chosen": expected an answer, or a dialogue that begins as "prompt"'
            )
        chosen, rejected = chosen[same:], rejected[same:]
        if len(chosen) != 1 or len(rejected) != 1 or not prompt:
            raise _Fault('field "rejected": expected the dialogue of "chosen" with another answer')
    if not prompt:
        raise _Fault('field "prompt": expected a prompt, found none')
    margin = row.get("margin")
    strength = next((name for name, known in MARGINS.items() if known == margin), None)
    vote = _pair(prompt, as_text(chosen), as_text(rejected), Verdict(RANKED, [[0], [1]], strength))
    yield replace(vote, origin={"margin": margin} if margin and strength is None else {})


def _hh(row: Row) -> Iterator[Given]:
    """Dialogues that differ in their last answer, or from some turn on: the first such is voted."""
    good, bad = (_turns(row[name], name) for name in ("chosen", "rejected"))
    same = 0
    while same < min(len(good), len(bad)) - 1 and good[same] == bad[same]:
        same += 1
    prompt = good[:same]
    if good[same] == bad[same]:
        raise _Fault('field "rejected": expected another answer than in "chosen"')
    if not prompt or good[same]["role"] != "assistant" or bad[same]["role"] != "assistant":
        raise _Fault('field "rejected": expected the dialogue of "chosen" with another answer')
    yield _pair(prompt, good[same]["content"], bad[same]["content"], FIRST)


def _turns(text: str, name: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant): ?", text)
    if parts[0].strip() or len(parts) < 5:
        raise _Fault(f'field "{name}": expected turns after "Human:" and "Assistant:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": content} for who, content in pairs]


def _sharegpt(row: Row) -> Iterator[Given]:
    roles = {theirs: ours for ours, theirs in SHAREGPT.items()}
    prompt = [
        {"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]}
        for turn in row["conversations"]
    ]
    if row.get("system"):
        prompt.insert(0, {"role": "system", "content": row["system"]})
    yield _pair(prompt, row["chosen"]["value"], row["rejected"]["value"], FIRST)


def _arena(row: Row) -> Iterator[Given]:
    winners = {"model_a": FIRST, "model_b": SECOND, "tie": Verdict(TIE)}
    winners |= {"tie (bothbad)": Verdict(BOTH_BAD), "both_bad": Verdict(BOTH_BAD)}
    if row["winner"] not in winners:
        raise _Fault(f'field "winner": expected one of {", ".join(winners)}')
    first, second = row["conversation_a"], row["conversation_b"]
    if first[:-1] != second[:-1]:
        # Both sides went on talking: what is compared are the whole conversations.
        first, second = ([first[0], _joined(talk[1:])] for talk in (first, second))
    verdict = Verdict(BOTH_GOOD) if row.get("both_good") else winners[row["winner"]]
    when = row.get("tstamp")
    yield Given(
        prompt=first[:-1],
        completions=(
            (first[-1]["content"], row["model_a"]),
            (second[-1]["content"], row["model_b"]),
        ),
        verdict=verdict,
        rater=str(row.get("judge", "imported")),
        item=str(row["question_id"]) if "question_id" in row else None,
        created_at=None if when is None else round(when * 1000),
    )


def _joined(turns: list[dict[str, str]]) -> dict[str, str]:
    text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns[1:])
    return {"role": "assistant", "content": f"{turns[0]['content']}\n\n{text}".rstrip()}


def _argilla(row: Row) -> Iterator[Given]:
    fields = row["fields"]
    names = [name for name in fields if re.fullmatch(r"(response|completion)[-_]?\w+", name)]
    prompts = [name for name in fields if name not in names]
    if len(names) < 2 or not prompts:
        raise _Fault('field "fields": expected a prompt and responses, such as response-1')
    sources = (row.get("metadata") or {}).get("sources") or ["imported"] * len(names)
    for answers in (row.get("responses") or {}).values():
        for answer in answers:
            if not _compares(answer["value"], names):  # another question: a text, a rating
                continue
            yield Given(
                prompt=fields[prompts[0]],
                completions=tuple(
                    (fields[name], source) for name, source in zip(names, sources, strict=True)
                ),
                verdict=_argilla_verdict(answer, names),
                rater=str(answer.get("user_id") or "imported"),
                item=str(row["id"]),
            )


def _compares(value: Any, names: list[str]) -> bool:
    """Whether an answer names responses: the better one, or a ranking of them."""
    if isinstance(value, str):
        return value in names
    return isinstance(value, list) and all(
        (entry.get("value") if isinstance(entry, dict) else entry) in names for entry in value
    )


def _argilla_verdict(answer: Row, names: list[str]) -> Verdict:
    value = answer["value"]
    if isinstance(value, str):  # a label: the name of the better response
        value = [{"value": name, "rank": 1 + (name != value)} for name in names]
    ranks = [
        (entry["rank"], entry["value"]) if isinstance(entry, dict) else (place, entry)
        for place, entry in enumerate(value, 1)
    ]
    tiers = [
        [names.index(name) for at, name in ranks if at == rank]
        for rank in sorted({rank for rank, _ in ranks})
    ]
    if len(tiers) == 1 and len(tiers[0]) == len(names):
        return Verdict(answer.get("verdict", TIE))
    return Verdict(RANKED, tiers)


def _kto(row: Row) -> Iterator[Given]:
    first, second = row["first"], row["second"]
    both = {(True, True): Verdict(BOTH_GOOD), (False, False): Verdict(BOTH_BAD)}
    ranked = FIRST if first["label"] else SECOND
    verdict = both.get((first["label"], second["label"]), ranked)
    texts = (as_text(first["completion"]), as_text(second["completion"]))
    yield _pair(first["prompt"], *texts, verdict)


def _kto_pairs(file: Path, numbered: list[tuple[int, Row]]) -> Import:
    """Rows of one prompt, two by two: good and bad, both good, or both bad."""
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
    found = _each(file, pairs, _kto)
    if waiting:
        found.left_out[ALONE] += len(waiting)
    return found


def _crowd_vote(row: Row, pairs: dict[Any, Row]) -> Iterator[Given]:
    number = int(row["id"])
    if number not in pairs:
        raise _Fault(f'field "id": there is no pair {number} in the file of answers')
    pair, winner = pairs[number], row["winner"]
    verdicts = {"left": FIRST, "right": SECOND, "tie": Verdict(TIE)}
    if winner not in verdicts:
        raise _Fault('field "winner": expected left, right or tie')
    yield Given(  # left is always model_x
        prompt=pair["text"],
        completions=((pair["result_x"], row["left"]), (pair["result_y"], row["right"])),
        verdict=verdicts[winner],
        rater=f"worker {row['worker']}",
        item=str(number),
        origin={"llmfao": number, "slug": pair["slug"]},
    )


LLMFAO = {"winner", "worker", "model_x"}
FORMS: tuple[tuple[set[str], Callable[[Row], Iterator[Given]]], ...] = (
    ({"verdict", "completions", "ranking"}, _own),
    ({"winner", "conversation_a", "conversation_b"}, _arena),
    ({"fields", "responses"}, _argilla),
    ({"conversations", "chosen", "rejected"}, _sharegpt),
    ({"prompt", "completion", "label"}, _kto),
    ({"prompt", "chosen", "rejected"}, _trl),
    ({"chosen", "rejected"}, lambda row: (_trl if isinstance(row["chosen"], list) else _hh)(row)),
)


def _pair(prompt: Prompt, first: str, second: str, verdict: Verdict) -> Given:
    return Given(prompt, ((first, "imported"), (second, "imported")), verdict)
