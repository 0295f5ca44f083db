"""The file forms that `imports` reads: a parser from a row to its votes, for each form.

Parsers raise `RowFault` for a row that they can't read.
"""

from dataclasses import replace
from typing import Any

from lorarlhf.data.file_formats import shown
from lorarlhf.data.readers import as_text
from lorarlhf.data.shapes import dialogue, in_standard_shape, shared_start
from lorarlhf.preferences import (
    import_chat_logs,
    import_label_studio,
    import_open_webui,
    import_ratings,
    import_trees,
)
from lorarlhf.preferences.exports import MARGINS
from lorarlhf.preferences.fields import (
    UNNAMED,
    FileParser,
    Parsed,
    Row,
    RowFault,
    answer_of,
    each_row,
    expected,
    messages_of,
    name_of,
    need,
    prompt_of,
    refuse_encoded,
    text_of,
    whole_of,
)
from lorarlhf.preferences.import_arena import BATTLE, FIRST, SECOND, TABLE, arena, arena_table
from lorarlhf.preferences.import_argilla import argilla, flat_argilla, is_flat_argilla
from lorarlhf.preferences.records import RANKED, TIE, ImportedVote, Prompt, Verdict

OTHER_DIALOGUE = 'field "rejected": expected the dialogue of "chosen" with another answer'


def _own(row: Row) -> Parsed:
    """Our own export, which has every field."""
    need(row, "completions", "verdict", "ranking", "strength", "note", "edited", "rater", "item")
    need(row, "shown", "milliseconds", "created_at", "purpose", "origin", "prompt")
    answers = row["completions"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise expected("completions", "a list of answers, each with text and source", answers)
    for answer in answers:
        need(answer, "text", "source")
    shown_as = row["shown"]
    if shown_as is not None and not isinstance(shown_as, list):
        raise expected("shown", "a list of positions", shown_as)
    prompt, note, edited = row["prompt"], row["note"], row["edited"]
    if not all(isinstance(text, str | None) for text in (note, edited)):
        raise RowFault('fields "note" and "edited": expected a text or null')
    yield ImportedVote(
        prompt=messages_of(prompt, "prompt", any_role=True)
        if isinstance(prompt, list)
        else text_of(prompt, "prompt"),
        completions=tuple(
            (text_of(answer["text"], "text"), text_of(answer["source"], "source"))
            for answer in answers
        ),
        sampling=tuple(answer.get("sampling", {}) for answer in answers),
        presentation=row.get("presentation"),
        repeats=row.get("repeats"),
        verdict=Verdict(row["verdict"], _ranking(row["ranking"]), row["strength"], note, edited),
        rater=row["rater"],
        item=name_of(row["item"], "item", "") or None,
        shown=None if shown_as is None else tuple(shown_as),
        milliseconds=row["milliseconds"],
        created_at=row["created_at"],
        purpose=row["purpose"],
        origin=row["origin"],
        key=name_of(row.get("key"), "key", "") or None,
    )


def _ranking(value: Any) -> list[list[int]]:
    tiers = value or []
    if not isinstance(tiers, list) or not all(
        isinstance(tier, list) and all(type(position) is int for position in tier) for tier in tiers
    ):
        raise expected("ranking", "lists of positions, such as [[1], [0]]", value)
    return tiers


def _trl(row: Row) -> Parsed:
    """TRL's preference rows, as texts or conversations, with an explicit or implicit prompt."""
    need(row, "chosen", "rejected")
    refuse_encoded(row, "prompt", "chosen", "rejected")
    if row.get("system") or row.get("prompt") is None:
        row = in_standard_shape(row)
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list | dict):
        raise RowFault('field "rejected": expected the same form as "chosen", text or messages')
    if isinstance(chosen, list):
        prompt, chosen, rejected = _answers_apart(prompt, chosen, rejected)
    elif not prompt:
        raise RowFault(f'field "prompt": expected a prompt, found {shown(prompt)}')
    margin = row.get("margin")
    if margin is not None and type(margin) not in (int, float):
        raise expected("margin", "a number", margin)
    strength = next((name for name, known in MARGINS.items() if known == margin), None)
    answers = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    vote = _pair(prompt_of(prompt, "prompt"), *answers, Verdict(RANKED, [[0], [1]], strength))
    if _rated_alike(row):
        vote = replace(vote, verdict=Verdict(TIE))
    origin = {"margin": margin} if margin and strength is None else {}
    yield replace(vote, completions=_with_models(vote, row), origin=origin)


def _rated_alike(row: Row) -> bool:
    """Whether a row calls one of two answers chosen that were rated alike (UltraFeedback)."""
    for names in (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")):
        scores = [row.get(name) for name in names]
        if all(type(score) in (int, float) for score in scores):
            return scores[0] == scores[1]
    return False


def _with_models(vote: ImportedVote, row: Row) -> tuple[tuple[str, str], ...]:
    """The answers with the models that wrote them, in data sets that say it."""
    sides = ("chosen", "rejected")
    models = [row.get(f"{side}-model") or row.get(f"{side}_model") for side in sides]
    return tuple(
        (text, model if isinstance(model, str) else source)
        for (text, source), model in zip(vote.completions, models, strict=True)
    )


def _answers_apart(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The prompt, and the answers without the messages that both begin with."""
    good, bad = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
    same = shared_start(good, bad)
    if prompt is None:
        prompt = good[:same]
    elif same and as_text(good[:same]) != as_text(prompt_of(prompt, "prompt")):
        raise RowFault('field "chosen": expected an answer, or a dialogue that begins as "prompt"')
    if len(good) - same != 1 or len(bad) - same != 1 or not prompt:
        raise RowFault(OTHER_DIALOGUE)
    return prompt, good[same:], bad[same:]


def _hh(row: Row) -> Parsed:
    """Anthropic's HH dialogues as text; the vote is on the first turn in which they differ."""
    need(row, "chosen", "rejected")
    good, bad = (_turns(row[name], name) for name in ("chosen", "rejected"))
    same = min(shared_start(good, bad), len(good) - 1, len(bad) - 1)
    prompt = good[:same]
    if good[same] == bad[same]:
        raise RowFault('field "rejected": expected another answer than in "chosen"')
    if not prompt or good[same]["role"] != "assistant" or bad[same]["role"] != "assistant":
        raise RowFault(OTHER_DIALOGUE)
    yield _pair(prompt, good[same]["content"], bad[same]["content"], FIRST)


def _turns(value: Any, name: str) -> list[dict[str, str]]:
    turns = dialogue(text_of(value, name))
    if not turns:
        raise RowFault(f'field "{name}": expected turns after "Human:" and "Assistant:"')
    return turns


def _sharegpt(row: Row) -> Parsed:
    """ShareGPT preferences: `conversations` with the `chosen` and the `rejected` turn."""
    need(row, "conversations", "chosen", "rejected")
    prompt = messages_of(row["conversations"], "conversations")
    if row.get("system"):
        prompt.insert(0, {"role": "system", "content": text_of(row["system"], "system")})
    good, bad = answer_of(row["chosen"], "chosen"), answer_of(row["rejected"], "rejected")
    yield _pair(prompt, good, bad, FIRST)


# ---- LLMFAO


def crowd_vote(row: Row, pairs: dict[Any, Row]) -> Parsed:
    """One of LLMFAO's crowd comparisons; `pairs` are the rows of its file of answers, by id."""
    need(row, "id", "winner", "worker", "left", "right")
    number = whole_of(row["id"], "id")
    if number not in pairs:
        raise RowFault(f'field "id": there is no pair {number} in the file of answers')
    pair, winner = pairs[number], row["winner"]
    need(pair, "text", "result_x", "result_y")
    verdicts = {"left": FIRST, "right": SECOND, "tie": Verdict(TIE)}
    if not isinstance(winner, str) or winner not in verdicts:
        raise RowFault('field "winner": expected left, right or tie')
    worker = name_of(row["worker"], "worker", "")
    yield ImportedVote(  # left is always model_x
        prompt=text_of(pair["text"], "text"),
        completions=(
            (text_of(pair["result_x"], "result_x"), name_of(row["left"], "left")),
            (text_of(pair["result_y"], "result_y"), name_of(row["right"], "right")),
        ),
        verdict=verdicts[winner],
        rater=f"worker {worker}" if worker else UNNAMED,
        item=str(number),
        origin={"llmfao": number, "slug": pair.get("slug")},
    )


def _trl_or_hh(row: Row) -> Parsed:
    other = isinstance(row.get("chosen"), list | dict) or "instruction" in row
    return _trl(row) if other else _hh(row)


def _pair(prompt: Prompt, first: str, second: str, verdict: Verdict) -> ImportedVote:
    return ImportedVote(prompt, ((first, UNNAMED), (second, UNNAMED)), verdict)


# ---- which form a file has

LLMFAO_COLUMNS = {"winner", "worker", "model_x"}
KTO_COLUMNS = {"prompt", "completion", "label"}
VOTES_ONLY: tuple[tuple[set[str], FileParser], ...] = (
    ({"verdict", "completions", "ranking"}, each_row(_own)),
    (BATTLE, each_row(arena)),
    (TABLE, each_row(arena_table)),
    ({"fields", "responses"}, each_row(argilla)),
    (import_open_webui.COLUMNS, import_open_webui.open_webui),
    (import_label_studio.COLUMNS, each_row(import_label_studio.label_studio)),
    (import_trees.MESSAGES, import_trees.messages),
    (import_trees.TREE, each_row(import_trees.tree)),
    (import_ratings.ULTRA, each_row(import_ratings.ultra_feedback)),
    (import_ratings.DISTILABEL, each_row(import_ratings.distilabel)),
    (import_chat_logs.SILLY_TAVERN, import_chat_logs.silly_tavern),
    (import_chat_logs.TEXT_GENERATION, each_row(import_chat_logs.text_generation)),
)
"""Forms that hold votes and are not data sets for training."""
PAIRS: tuple[tuple[set[str], FileParser], ...] = (
    ({"conversations", "chosen", "rejected"}, each_row(_sharegpt)),
    ({"prompt", "chosen", "rejected"}, each_row(_trl)),
    ({"chosen", "rejected"}, each_row(_trl_or_hh)),
)
"""Forms that trainers read, too. Each has the columns that show it, and the parser of its rows."""


def votes_parser(row: Row) -> FileParser | None:
    """The parser of a file with such a row, if its form holds votes and trainers don't read it."""
    for needed, parse in VOTES_ONLY:
        if needed <= row.keys() and not (needed == import_ratings.DISTILABEL and "chosen" in row):
            return parse
    return each_row(flat_argilla) if is_flat_argilla(row) else None


def pairs_parser(row: Row) -> FileParser | None:
    """The parser of a file of preferences, as trainers read them."""
    return next((parse for needed, parse in PAIRS if needed <= row.keys()), None)
