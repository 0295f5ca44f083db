"""The file forms that `imports` reads: a parser from a row to its votes, for each form."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lorarlhf.data.readers import as_text
from lorarlhf.data.shapes import as_message, dialogue, shared_start
from lorarlhf.preferences.exports import MARGINS
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    TIE,
    ImportedVote,
    Prompt,
    Verdict,
)

Row = dict[str, Any]
OTHER_DIALOGUE = 'field "rejected": expected the dialogue of "chosen" with another answer'
FIRST, SECOND = Verdict(RANKED, [[0], [1]]), Verdict(RANKED, [[1], [0]])


class RowFault(Exception):
    """What is wrong with a row; the reader puts the file and the line before it."""


def _own(row: Row) -> Iterator[ImportedVote]:
    """Our own export, which has every field."""
    verdict = Verdict(
        row["verdict"], row["ranking"] or [], row["strength"], row["note"], row["edited"]
    )
    yield ImportedVote(
        prompt=row["prompt"],
        completions=tuple((answer["text"], answer["source"]) for answer in row["completions"]),
        sampling=tuple(answer.get("sampling", {}) for answer in row["completions"]),
        presentation=row.get("presentation"),
        repeats=row.get("repeats"),
        verdict=verdict,
        rater=row["rater"],
        item=str(row["item"]),
        shown=tuple(row["shown"]),
        milliseconds=row["milliseconds"],
        created_at=row["created_at"],
        purpose=row["purpose"],
        origin=row["origin"],
    )


def _trl(row: Row) -> Iterator[ImportedVote]:
    """TRL's preference rows, as texts or conversations, with an explicit or implicit prompt."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise RowFault('field "rejected": expected the same form as "chosen", text or messages')
    if isinstance(chosen, list):
        same = shared_start(chosen, rejected)
        if prompt is None:
            prompt = chosen[:same]
        elif same and as_text(chosen[:same]) != as_text(prompt):
            raise RowFault(
                'field "chosen": expected an answer, or a dialogue that begins as "prompt"'
            )
        chosen, rejected = chosen[same:], rejected[same:]
        if len(chosen) != 1 or len(rejected) != 1 or not prompt:
            raise RowFault(OTHER_DIALOGUE)
    if not prompt:
        raise RowFault('field "prompt": expected a prompt, found none')
    margin = row.get("margin")
    strength = next((name for name, known in MARGINS.items() if known == margin), None)
    vote = _pair(prompt, as_text(chosen), as_text(rejected), Verdict(RANKED, [[0], [1]], strength))
    yield replace(vote, origin={"margin": margin} if margin and strength is None else {})


def _hh(row: Row) -> Iterator[ImportedVote]:
    """Anthropic's HH dialogues as text; the vote is on the first turn in which they differ."""
    good, bad = (_turns(row[name], name) for name in ("chosen", "rejected"))
    same = min(shared_start(good, bad), len(good) - 1, len(bad) - 1)
    prompt = good[:same]
    if good[same] == bad[same]:
        raise RowFault('field "rejected": expected another answer than in "chosen"')
    if not prompt or good[same]["role"] != "assistant" or bad[same]["role"] != "assistant":
        raise RowFault(OTHER_DIALOGUE)
    yield _pair(prompt, good[same]["content"], bad[same]["content"], FIRST)


def _turns(text: str, name: str) -> list[dict[str, str]]:
    turns = dialogue(text)
    if not turns:
        raise RowFault(f'field "{name}": expected turns after "Human:" and "Assistant:"')
    return turns


def _sharegpt(row: Row) -> Iterator[ImportedVote]:
    """ShareGPT preferences: `conversations` with the `chosen` and the `rejected` turn."""
    prompt = [as_message(turn) for turn in row["conversations"]]
    if row.get("system"):
        prompt.insert(0, {"role": "system", "content": row["system"]})
    yield _pair(prompt, row["chosen"]["value"], row["rejected"]["value"], FIRST)


def _arena(row: Row) -> Iterator[ImportedVote]:
    """LMSYS arena records: two conversations and the `winner`."""
    winners = {"model_a": FIRST, "model_b": SECOND, "tie": Verdict(TIE)}
    winners |= {"tie (bothbad)": Verdict(BOTH_BAD), "both_bad": Verdict(BOTH_BAD)}
    if row["winner"] not in winners:
        raise RowFault(f'field "winner": expected one of {", ".join(winners)}')
    first, second = row["conversation_a"], row["conversation_b"]
    if first[:-1] != second[:-1]:
        # The conversations went on differently, so everything after the first turn is compared.
        first, second = ([first[0], _joined(talk[1:])] for talk in (first, second))
    verdict = Verdict(BOTH_GOOD) if row.get("both_good") else winners[row["winner"]]
    when = row.get("tstamp")
    yield ImportedVote(
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


def _argilla(row: Row) -> Iterator[ImportedVote]:
    """Argilla records: a vote for each answer that compares the responses."""
    fields = row["fields"]
    names = [name for name in fields if re.fullmatch(r"(response|completion)[-_]?\w+", name)]
    prompts = [name for name in fields if name not in names]
    if len(names) < 2 or not prompts:
        raise RowFault('field "fields": expected a prompt and responses, such as response-1')
    sources = (row.get("metadata") or {}).get("sources") or ["imported"] * len(names)
    for answers in (row.get("responses") or {}).values():
        for answer in answers:
            if not _compares(answer["value"], names):  # the answer to another question
                continue
            yield ImportedVote(
                prompt=fields[prompts[0]],
                completions=tuple(
                    (fields[name], source) for name, source in zip(names, sources, strict=True)
                ),
                verdict=_argilla_verdict(answer, names),
                rater=str(answer.get("user_id") or "imported"),
                item=str(row["id"]),
            )


def _compares(value: Any, names: list[str]) -> bool:
    """Whether an answer names the better response, or ranks the responses."""
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


def kto_pair(row: Row) -> Iterator[ImportedVote]:
    """Two of KTO's rows, `first` and `second`, on the same prompt."""
    first, second = row["first"], row["second"]
    both = {(True, True): Verdict(BOTH_GOOD), (False, False): Verdict(BOTH_BAD)}
    ranked = FIRST if first["label"] else SECOND
    verdict = both.get((first["label"], second["label"]), ranked)
    texts = (as_text(first["completion"]), as_text(second["completion"]))
    yield _pair(first["prompt"], *texts, verdict)


def crowd_vote(row: Row, pairs: dict[Any, Row]) -> Iterator[ImportedVote]:
    """One of LLMFAO's crowd comparisons; `pairs` are the rows of its file of answers, by id."""
    number = int(row["id"])
    if number not in pairs:
        raise RowFault(f'field "id": there is no pair {number} in the file of answers')
    pair, winner = pairs[number], row["winner"]
    verdicts = {"left": FIRST, "right": SECOND, "tie": Verdict(TIE)}
    if winner not in verdicts:
        raise RowFault('field "winner": expected left, right or tie')
    yield ImportedVote(  # left is always model_x
        prompt=pair["text"],
        completions=((pair["result_x"], row["left"]), (pair["result_y"], row["right"])),
        verdict=verdicts[winner],
        rater=f"worker {row['worker']}",
        item=str(number),
        origin={"llmfao": number, "slug": pair["slug"]},
    )


def _trl_or_hh(row: Row) -> Iterator[ImportedVote]:
    return _trl(row) if isinstance(row["chosen"], list) else _hh(row)


def _pair(prompt: Prompt, first: str, second: str, verdict: Verdict) -> ImportedVote:
    return ImportedVote(prompt, ((first, "imported"), (second, "imported")), verdict)


LLMFAO_COLUMNS = {"winner", "worker", "model_x"}
FORMS: tuple[tuple[set[str], Callable[[Row], Iterator[ImportedVote]]], ...] = (
    ({"verdict", "completions", "ranking"}, _own),
    ({"winner", "conversation_a", "conversation_b"}, _arena),
    ({"fields", "responses"}, _argilla),
    ({"conversations", "chosen", "rejected"}, _sharegpt),
    ({"prompt", "completion", "label"}, kto_pair),
    ({"prompt", "chosen", "rejected"}, _trl),
    ({"chosen", "rejected"}, _trl_or_hh),
)
"""The columns that show a form, and the parser of its rows; the first match counts."""
VOTES_ONLY = FORMS[:3]
"""Forms that hold votes and are not data sets for training."""
