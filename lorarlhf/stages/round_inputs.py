"""What DPO in rounds learns from: its settings, its prompts, and the pairs of a round."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorarlhf.data.twins import normal
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import readable_rows, write_jsonl
from lorarlhf.runtime.run_folder import fingerprint
from lorarlhf.runtime.setting_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from lorarlhf.stages.dpo_orpo import DPOSettings
from lorarlhf.stages.inputs import StageInputs

if TYPE_CHECKING:
    from lorarlhf.rewards.deviation import ScoreDeviation

Row = dict[str, Any]
HELD_OUT, SHARE = 32, 0.25
"""So many prompts are measured on and never learned from, and at most this share of all."""
FEWEST_PROMPTS = 8
EQUAL, CLOSE = "equal or empty answers", "score differences below the reward role's doubt"
CUT_OFF = "with a better answer that was cut off at max_new_tokens"
"""Why the answers to a prompt give no pair."""
ROUND_SETTINGS = {
    *("round_prompts", "num_generations", "max_prompt_tokens", "max_new_tokens", "temperature"),
    "least_gap",
}


@dataclass
class IteratedDPOSettings(DPOSettings):
    """Settings of DPO, on given pairs and in rounds of new answers."""

    rounds: NonNegativeInt = 0  # of new answers, labelled by the reward role; 0: only the pairs
    round_prompts: PositiveInt = 64  # prompts answered in a round
    num_generations: PositiveInt = 4  # answers to a prompt, of which the best and worst are a pair
    max_prompt_tokens: PositiveInt = 512  # longer prompts are refused, not cut
    max_new_tokens: PositiveInt = 64  # longest new answer, in tokens
    temperature: PositiveFloat = 1.0  # temperature of the new answers
    least_gap: NonNegativeFloat = 1.0  # deviations by which the best answer scores above the worst


@dataclass
class RoundInputs(StageInputs):
    """`StageInputs` with the prompts of the rounds; `rows` are the votes, for the first round.

    Attributes:
        prompts: to answer and learn from; held_out: to measure on.
        votes_left_out: votes on held-out prompts, which are not among the rows.
        deviation: of the reward role's scores, where `least_gap` is above 0.
    """

    prompts: Sequence[Row] = ()
    held_out: Sequence[Row] = ()
    votes_left_out: int = 0
    deviation: "ScoreDeviation | None" = None


@dataclass
class Labels:
    """Pairs that the reward role has labelled.

    Attributes:
        pairs: `row` (the number of the prompt), `chosen`, `rejected`, the `gap` of their scores and
            its `deviation`.
        left_out: the prompts that gave no pair, by reason.
        score: the mean score of all answers.
        seconds: how long it took to answer and to score.
    """

    pairs: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    score: float = 0.0
    seconds: float = 0.0


def keep_labels(file: Path, labels: Labels, prompts: Sequence[Row]) -> Labels:
    """Write a round's pairs, for `kept_labels`; returns them."""
    head = {name: getattr(labels, name) for name in ("left_out", "score", "seconds")}
    write_jsonl(file, [head | {"prompts": fingerprint(prompts)}, *labels.pairs])
    return labels


def kept_labels(file: Path, prompts: Sequence[Row]) -> Labels:
    """The pairs that a stopped run has kept.

    Args:
        prompts: those that were answered; a pair names its prompt by its place in them.

    Raises:
        UserError: they are others than when the answers were written.
    """
    head, *pairs = readable_rows(file)
    now = fingerprint(prompts)
    if head.get("prompts", now) != now:  # an older version's file does not say
        raise UserError(
            f"The prompts are not those that the answers in {file} belong to. Bring the earlier "
            "prompts back, or start a new run without resuming."
        )
    return Labels(pairs, Counter(head["left_out"]), head["score"], head.get("seconds", 0.0))


def split_prompts(
    rows: Sequence[Row], seed: int, votes: Sequence[Row] = ()
) -> tuple[list[Row], list[Row]]:
    """(prompts to learn from, held-out prompts), drawn by the seed.

    Prompts without votes are held out first, since votes on held-out prompts can't be learned from.

    Args:
        votes: rows with the `prompt` that was voted on.

    Raises:
        UserError: there are fewer than `FEWEST_PROMPTS`.
    """
    if len(rows) < FEWEST_PROMPTS:
        raise UserError(
            f"Rounds of new answers need {FEWEST_PROMPTS} prompts or more, of which some are only "
            f"measured on; there are {len(rows)}. Add prompts, or name others with --prompts FILE."
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    voted = {_asked(row["prompt"]) for row in votes}
    order.sort(key=lambda place: _asked(rows[place]["prompt"]) not in voted)
    count = min(HELD_OUT, int(SHARE * len(rows)))
    cut = len(order) - count
    return [rows[i] for i in sorted(order[:cut])], [rows[i] for i in sorted(order[cut:])]


def without_held_out(votes: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """The votes on other prompts than the held-out ones."""
    measured = {_asked(row["prompt"]) for row in held_out}
    return [vote for vote in votes if _asked(vote["prompt"]) not in measured]


def _asked(prompt: Any) -> str:
    """A prompt as one text, the same for a question alone and for a conversation of one turn."""
    return normal([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)


def pair_up(
    asked: Sequence[int],
    texts: Sequence[str],
    scores: Sequence[float],
    doubt: Callable[[int, int], float],
    settings: IteratedDPOSettings,
    ended: Sequence[bool] | None = None,
) -> Labels:
    """Of the answers to each prompt the best and the worst, where the scores are surely apart.

    Args:
        ended: whether each answer ended by itself; None: all did.
        asked: the prompt of each answer, by number; `num_generations` answers to a prompt follow
            one another.
        doubt: the deviation of the difference of the scores of two answers, by their places.
    """
    labels = Labels(score=fmean(scores))
    for start in range(0, len(asked), settings.num_generations):
        part = slice(start, start + settings.num_generations)
        found = best_and_worst(texts[part], scores[part], ended and ended[part])
        if found is None:
            cut = best_and_worst(texts[part], scores[part]) is not None
            labels.left_out[CUT_OFF if cut else EQUAL] += 1
            continue
        best, worst = (start + place for place in found)
        gap, deviation = scores[best] - scores[worst], doubt(best, worst)
        if gap <= settings.least_gap * deviation:
            labels.left_out[CLOSE] += 1
            continue
        pair = {"row": asked[start], "chosen": texts[best], "rejected": texts[worst]}
        labels.pairs.append(pair | {"gap": gap, "deviation": deviation})
    return labels


def best_and_worst(
    texts: Sequence[str], scores: Sequence[float], ended: Sequence[bool] | None = None
) -> tuple[int, int] | None:
    """The places of the best and the worst answer; None if no trainer takes the two as a pair.

    The best one is the highest score among the answers that ended by themselves: TRL puts the end
    of a turn behind each chosen answer, and behind a cut-off one the policy would learn to stop in
    the middle. The worst one may be cut off, since to stop there becomes less likely. So where all
    answers to a prompt are cut off, they give no pair. Blank answers count for nothing, and equal
    texts or equal scores are no pair.
    """
    places = [place for place, text in enumerate(texts) if text.strip()]
    whole = [place for place in places if ended is None or ended[place]]
    if not whole:
        return None
    best = max(whole, key=lambda place: scores[place])
    worst = min(places, key=lambda place: scores[place])
    same = texts[best] == texts[worst] or scores[best] <= scores[worst]
    return None if same else (best, worst)


def as_pair(prompt: Any, labelled: Row) -> Row:
    """The row that DPO learns from: texts or turns of a conversation, as the prompt is."""
    sides = {name: labelled[name] for name in ("chosen", "rejected")}
    if isinstance(prompt, str):
        return {"prompt": prompt, **sides}
    answers = {n: [{"role": "assistant", "content": text}] for n, text in sides.items()}
    return {"prompt": prompt, **answers}


def with_same_columns(rows: list[Row]) -> list[Row]:
    """Rows that all have the same columns: votes have a margin or tools that new pairs lack."""
    filled: Row = {"margin": 0.0, "tools": None, "chat_template_kwargs": {}}
    names = [name for name in filled if any(name in row for row in rows)]
    return [{**{name: filled[name] for name in names}, **row} for row in rows]
