"""Answers that were rated one by one: UltraFeedback with its ratings, and what distilabel writes.

The ratings of the answers to one prompt give a ranking of them.
"""

import math
from collections.abc import Sequence
from typing import Any

from lorarlhf.preferences.fields import (
    UNNAMED,
    Parsed,
    Row,
    RowFault,
    answer_of,
    expected,
    list_of,
    name_of,
    need,
    object_of,
    prompt_of,
    text_of,
)
from lorarlhf.preferences.records import (
    MOST_COMPLETIONS,
    RANKED,
    TIE,
    ImportedVote,
    Prompt,
    Verdict,
)

ULTRA = {"instruction", "completions"}
DISTILABEL = {"generations", "ratings"}
UNRATED = "answers without a rating"
ONE_ANSWER = "prompts with fewer than two rated answers"
TOO_MANY = f"prompts with more than {MOST_COMPLETIONS} answers"
PROMPTS = ("instruction", "prompt", "input")


def ultra_feedback(row: Row) -> Parsed:
    """UltraFeedback: `completions`, each with the ratings of four aspects by a model."""
    need(row, *sorted(ULTRA))
    prompt = prompt_of(row["instruction"], "instruction")
    answers = [object_of(one, "completions") for one in list_of(row["completions"], "completions")]
    rated = [
        (text_of(one.get("response"), "response"), name_of(one.get("model"), "model"), _rating(one))
        for one in answers
    ]
    yield from _ranked(prompt, rated)


def _rating(answer: Row) -> float | None:
    """The mean of an answer's ratings; the overall score only where there are none.

    The published overall scores have errors, which the mean of the aspects does not have.
    """
    known = _number(answer.get("fine-grained_score"), "fine-grained_score")
    if known is not None:
        return known
    aspects = object_of(answer.get("annotations") or {}, "annotations")
    ratings = [
        number
        for name, aspect in aspects.items()
        if (number := _number(object_of(aspect, name).get("Rating"), f"{name}.Rating")) is not None
    ]
    if ratings:
        return sum(ratings) / len(ratings)
    return _number(answer.get("overall_score"), "overall_score")


def distilabel(row: Row) -> Parsed:
    """distilabel's task: `generations` and `ratings` side by side."""
    need(row, *sorted(DISTILABEL))
    name = next((name for name in PROMPTS if row.get(name)), None)
    if name is None:
        raise RowFault('field "instruction": expected a prompt in instruction, prompt or input')
    prompt = prompt_of(row[name], name)
    texts = list_of(row["generations"], "generations")
    ratings = list_of(row["ratings"], "ratings")
    models = row.get("generation_models") or row.get("model_names") or [None] * len(texts)
    if not isinstance(models, list) or not len(texts) == len(ratings) == len(models):
        raise RowFault('field "ratings": expected as many ratings and models as generations')
    rated = [
        (answer_of(text, "generations"), name_of(model, "model"), _number(rating, "ratings"))
        for text, rating, model in zip(texts, ratings, models, strict=True)
    ]
    yield from _ranked(prompt, rated)


def _number(value: Any, field: str) -> float | None:
    """A rating, also as text; None for N/A and for nothing. Raises `RowFault`."""
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A")):
        return None
    try:
        number = math.nan if isinstance(value, bool | dict | list) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise expected(field, "a number or N/A", value)
    return number


def _ranked(prompt: Prompt, rated: Sequence[tuple[str, str, float | None]]) -> Parsed:
    """A vote that ranks answers by their rating; equal ratings share a tier."""
    yield from [UNRATED] * sum(rating is None for *_, rating in rated)
    known = [(text, model, rating) for text, model, rating in rated if rating is not None]
    if not 2 <= len(known) <= MOST_COMPLETIONS:
        yield ONE_ANSWER if len(known) < 2 else TOO_MANY
        return
    tiers = [
        [place for place, (*_, rating) in enumerate(known) if rating == level]
        for level in sorted({rating for *_, rating in known}, reverse=True)
    ]
    verdict = Verdict(TIE) if len(tiers) == 1 else Verdict(RANKED, tiers)
    answers = tuple((text, model) for text, model, _ in known)
    yield ImportedVote(prompt, answers, verdict, UNNAMED)
