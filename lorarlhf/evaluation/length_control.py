"""The length-controlled win rate: how often a model would win if both answers were equally long.

The idea and the length term are those of AlpacaEval 2.0 (Dubois et al. 2024, arXiv 2404.04475,
section 3): a logistic regression of the outcome on tanh(difference of lengths / its standard
deviation), read off at a difference of zero. Simplified here: each model is fitted alone, without
the term for how hard a prompt is, which needs many models; ties count as half; lengths are tokens
(words for votes of people), not characters; and both weights have a weak Gaussian prior, so that a
model that always wins has a finite fit.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lorarlhf.evaluation.win_rate import wilson_interval

PRIOR_STD = 3.0
"""Of both weights, in log-odds: two deviations are a win rate of 99.8%."""
RESAMPLES = 1000
STEPS, LONGEST_STEP = 40, 2.0


@dataclass(frozen=True)
class LengthControlled:
    """The win rate at equal lengths.

    Attributes:
        rate: from 0 to 1, ties as half.
        ci95: its 95% interval, by a bootstrap over the groups.
        weight: of the length term, in log-odds: above 0 the judge prefers longer answers.
    """

    rate: float
    ci95: tuple[float, float]
    weight: float


def length_controlled(
    outcomes: Sequence[int],
    tuned_lengths: Sequence[float],
    base_lengths: Sequence[float],
    groups: Sequence[Hashable],
    seed: int = 0,
) -> LengthControlled:
    """The length-controlled win rate of n comparisons.

    Args:
        outcomes: n values +1 (the tuned answer won), 0 or -1.
        tuned_lengths, base_lengths: n lengths each, of the same unit.
        groups: n labels; comparisons with the same label (prompt) are resampled together.
        seed: for the bootstrap.

    Raises:
        ValueError: there are no comparisons, or the lengths of the arguments differ.
    """
    if not outcomes or len({len(x) for x in (outcomes, tuned_lengths, base_lengths, groups)}) > 1:
        raise ValueError("expected as many outcomes, lengths and groups, and at least one")
    y = (np.asarray(outcomes, float) + 1) / 2  # (n,)
    difference = np.asarray(tuned_lengths, float) - np.asarray(base_lengths, float)
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros(len(y))
    bias, weight = fit_logistic(x, y, np.ones((1, len(y))))[0]
    rate = float(_sigmoid(bias))
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    places = np.array([names[name] for name in groups])
    if np.ptp(y) == 0:  # every resample would repeat the same fit
        return LengthControlled(rate, wilson_interval(float(y[0]), len(names)), float(weight))
    rng = np.random.default_rng(seed)
    part = max(1, 1_000_000 // len(y))  # resamples at a time, so that memory stays small
    rates = []
    for start in range(0, RESAMPLES, part):
        rows = min(part, RESAMPLES - start)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        rates.append(_sigmoid(fit_logistic(x, y, drawn[:, places].astype(float))[:, 0]))
    low, high = np.percentile(np.concatenate(rates), [2.5, 97.5])
    return LengthControlled(rate, (float(low), float(high)), float(weight))


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
