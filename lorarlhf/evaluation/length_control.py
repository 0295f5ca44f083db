"""The length-controlled win rate: how often a model would win if both answers were equally long.

The idea and the length term are those of AlpacaEval 2.0 (Dubois et al. 2024, arXiv 2404.04475,
section 3): a logistic regression of the outcome on tanh(difference of lengths / its scale), read
off at a difference of zero. Simplified here: each model is fitted alone, without the term for how
hard a prompt is, which needs many models; ties count as half; lengths are tokens (words for votes
of people), not characters; and both weights have a weak Gaussian prior, so that outcomes which the
length separates have a finite fit. The scale is the root mean square of the differences and not
their standard deviation: that is zero if all answers are longer by the same number of tokens.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorarlhf.evaluation.win_rate import similar_lengths, wilson_interval

PRIOR_STD = 3.0
"""Of both weights, in log-odds: two deviations are a win rate of 99.8%."""
RESAMPLES = 1000
STEPS, LONGEST_STEP = 40, 2.0


@dataclass(frozen=True)
class LengthControlled:
    """The win rate at equal lengths.

    Attributes:
        rate: from 0 to 1, ties as half.
        ci95: its 95% interval, by a bootstrap over the groups; Wilson's, with the number of groups
            as n, where all resamples give the same rate.
        weight: of the length term, in log-odds: above 0 the judge prefers longer answers.
    """

    rate: float
    ci95: tuple[float, float]
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `ci95` as a list of two."""
        return {"rate": self.rate, "ci95": list(self.ci95), "weight": self.weight}


def length_controlled(
    outcomes: Sequence[int],
    tuned_lengths: Sequence[float],
    base_lengths: Sequence[float],
    groups: Sequence[Hashable],
    seed: int = 0,
) -> LengthControlled | None:
    """The length-controlled win rate of n comparisons.

    Args:
        outcomes: n values +1 (the tuned answer won), 0 or -1.
        tuned_lengths, base_lengths: n lengths each, of the same unit.
        groups: n labels; comparisons with the same label (prompt) are resampled together.
        seed: for the bootstrap.

    Returns:
        The rate; None if one side's answers are always the longer ones and no pair is of similar
        length. Then nothing tells what happens at equal length, and only the prior would decide.

    Raises:
        ValueError: there are no comparisons, or the lengths of the arguments differ.
    """
    if not outcomes or len({len(x) for x in (outcomes, tuned_lengths, base_lengths, groups)}) > 1:
        raise ValueError("expected as many outcomes, lengths and groups, and at least one")
    difference = np.asarray(tuned_lengths, float) - np.asarray(base_lengths, float)
    one_sided = (difference >= 0).all() or (difference <= 0).all()
    if one_sided and not any(map(similar_lengths, tuned_lengths, base_lengths)):
        return None
    y = (np.asarray(outcomes, float) + 1) / 2  # (n,)
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    if np.ptp(y) == 0:  # length explains nothing, and no prior is needed
        return LengthControlled(float(y[0]), wilson_interval(float(y[0]), len(names)), 0.0)
    scale = np.sqrt(np.mean(difference**2))
    x = np.tanh(difference / scale) if scale > 0 else np.zeros(len(y))
    bias, weight = fit_logistic(x, y, np.ones((1, len(y))))[0]
    rate = float(_sigmoid(bias))
    places = np.array([names[name] for name in groups])
    rng = np.random.default_rng(seed)
    part = max(1, 1_000_000 // len(y))  # resamples at a time, so that memory stays small
    rates = []
    for start in range(0, RESAMPLES, part):
        rows = min(part, RESAMPLES - start)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        rates.append(_sigmoid(fit_logistic(x, y, drawn[:, places].astype(float))[:, 0]))
    resampled = np.concatenate(rates)
    if np.ptp(resampled) < 1e-9:  # one group, or all groups alike
        return LengthControlled(rate, wilson_interval(rate, len(names)), float(weight))
    low, high = map(float, np.percentile(resampled, [2.5, 97.5]))
    # With few groups the prior can push all resamples to one side of the fit.
    return LengthControlled(rate, (min(low, rate), max(high, rate)), float(weight))


def fit_logistic(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Intercept and slope (R, 2) of R logistic regressions on the same n points (Newton's method).

    Each maximises sum_i counts_i (y_i log p_i + (1 - y_i) log(1 - p_i)) - |w|^2 / (2 PRIOR_STD^2)
    with p_i = sigmoid(w_0 + w_1 x_i).

    Args:
        x, y: (n,); y is from 0 to 1.
        counts: (R, n), how often each point counts.
    """
    w, prior = np.zeros((len(counts), 2)), PRIOR_STD**-2
    for _ in range(STEPS):
        p = _sigmoid(w[:, :1] + w[:, 1:] * x)  # (R, n)
        errors, curves = counts * (y - p), counts * p * (1 - p)
        gradient = np.stack([errors.sum(1), errors @ x], 1) - prior * w
        a, b, c = curves.sum(1) + prior, curves @ x, curves @ x**2 + prior
        step = (
            np.stack(
                [
                    c * gradient[:, 0] - b * gradient[:, 1],
                    a * gradient[:, 1] - b * gradient[:, 0],
                ],
                1,
            )
            / (a * c - b * b)[:, None]
        )
        # A full step from a flat region can overshoot; near the maximum no step is cut.
        w += step * np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(1), 1e-12))[:, None]
        if np.abs(step).max() < 1e-9:
            break
    return w


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))
