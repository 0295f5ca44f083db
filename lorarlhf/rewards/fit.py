"""The reward head from few votes: a strongly regularised Bradley-Terry fit on frozen features.

Few votes can't settle hundreds of weights, so the Gaussian prior decides most: it is wide along a
bank of style directions that people tend to vote by (`lorarlhf.rewards.axes`), narrow elsewhere.
All of it stays linear and folds into one weight vector and a bias.

Shapes: N votes, H hidden size, K axes, M unlabelled answers. Only numpy is used.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.errors import UserError
from lorarlhf.rewards.bradley_terry import fit_bradley_terry, solve_dual

Array = NDArray[np.float64]

# In the units of `fit_head`: features scaled so that two unlabelled answers lie one apart (root
# mean square), axes so that their scores spread by one. Picked on the small base for the simulated
# raters. The axes are a bet: with them `cheerful` gained 3 to 8 points and `plain` 1 to 4, and
# `brief`, whose taste lies along none of them, lost 1 to 4 from 50 votes and 6 to 10 from 150.
# Cross-validation on as few votes does not notice such a loss; `axes=None` avoids it.
STRENGTHS = (0.3, 1.0, 3.0)
AXIS_STRENGTHS = (0.0, 0.01, 0.1)
DEFAULT_L2 = 3.0
DEFAULT_AXIS_STRENGTH = 0.01
FOLDS = 5
MIN_GROUPS_TO_MEASURE = 10
"""With fewer prompts than this, held-out votes are too few to say anything."""
MIN_GROUPS_TO_CHOOSE = 100
"""Below this many prompts the choice follows luck: from 50 votes it cost 2 to 6 points of accuracy
against the defaults, which are then kept and only measured."""


@dataclass(frozen=True)
class Strength:
    """How strongly to regularise, and what held-out votes say about it.

    Attributes:
        l2: Penalty on the squared weight; larger means smaller weights.
        axis_strength: Prior variance along each axis; 0 means that the axes are left out.
        cv_accuracy: Share of held-out votes that are predicted (ties half); NaN where not measured.
        cv_loss: Mean -log P of held-out votes, ln 2 = 0.693 for a coin; NaN where not measured.
    """

    l2: float = DEFAULT_L2
    axis_strength: float = DEFAULT_AXIS_STRENGTH
    cv_accuracy: float = float("nan")
    cv_loss: float = float("nan")


@dataclass(frozen=True)
class HeadFit:
    """A linear head: score = features @ weight + bias, with mean 0 over the background.

    Attributes:
        weight: (H,) float32.
        bias: A number.
        l2, axis_strength, cv_accuracy, cv_loss: See `Strength`.
    """

    weight: NDArray[np.float32]
    bias: float
    l2: float
    axis_strength: float
    cv_accuracy: float
    cv_loss: float

    def score(self, features: ArrayLike) -> Array:
        """Features (..., H) -> scores (...)."""
        return np.asarray(features, dtype=np.float64) @ self.weight.astype(np.float64) + self.bias


def choose_strength(
    differences: ArrayLike,
    groups: Sequence[Hashable],
    strengths: Sequence[float] = STRENGTHS,
    *,
    axis_differences: ArrayLike | None = None,
    axis_strengths: Sequence[float] = AXIS_STRENGTHS,
    default: Strength | None = None,
) -> Strength:
    """Choose l2 (and the axes' strength) by cross-validation over groups of votes.

    Votes of one group, a prompt, are never on both sides of a split. The losses of neighbouring
    strengths differ by luck, so the default is left only with `MIN_GROUPS_TO_CHOOSE` groups or
    more, and for a setting that is better by over two standard errors of the difference.

    Args:
        differences: (N, H) chosen minus rejected.
        groups: N labels.
        strengths: The values of l2 to try.
        axis_differences: (N, K), the same votes along the axes; None for a fit without axes.
        axis_strengths: The axes' prior variances to try, 0 for none.
        default: What is taken where nothing is clearly better; it need not be among those tried.

    Returns:
        The choice, with held-out accuracy and loss from `MIN_GROUPS_TO_MEASURE` groups upwards.
    """
    default = default or Strength()
    d = np.asarray(differences, dtype=np.float64)
    gram = d @ d.T
    axis_gram = np.zeros_like(gram)
    if axis_differences is None:
        default, axis_strengths = Strength(default.l2, 0.0), (0.0,)
    else:
        along = np.asarray(axis_differences, dtype=np.float64)
        axis_gram = along @ along.T
    folds, count = split_groups(groups), len(set(groups))
    if count < MIN_GROUPS_TO_MEASURE:
        return default
    first = (default.l2, default.axis_strength)
    grid = [(l2, axis) for l2 in strengths for axis in axis_strengths]
    if count < MIN_GROUPS_TO_CHOOSE:
        grid = []
    margins = {
        setting: _held_out_margins(gram / setting[0] + setting[1] * axis_gram, folds)
        for setting in dict.fromkeys([first, *grid])
    }
    losses = {setting: np.logaddexp(0, -m) for setting, m in margins.items()}
    best = min(losses, key=lambda setting: losses[setting].mean())
    gain = losses[first] - losses[best]
    if gain.mean() <= 2 * gain.std() / np.sqrt(len(gain)):
        best = first
    accuracy = np.mean((margins[best] > 0) + 0.5 * (margins[best] == 0))
    return Strength(*best, float(accuracy), float(losses[best].mean()))


def split_groups(groups: Sequence[Hashable], folds: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each vote, 0 to folds - 1; a group is whole, folds are alike in size."""
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return np.array([places[group] % folds for group in groups], dtype=np.int64)


def fit_head(
    chosen: ArrayLike,
    rejected: ArrayLike,
    groups: Sequence[Hashable],
    *,
    background: ArrayLike,
    axes: ArrayLike | None = None,
    strength: Strength | None = None,
) -> HeadFit:
    """Fit a head to votes.

    Args:
        chosen, rejected: (N, H) features of the answers, N >= 1.
        groups: N labels, one a prompt; see `choose_strength`.
        background: (M, H) features of unlabelled answers, M >= 1 (the voted ones will do). They
            give the scale of each feature and the zero of the score.
        axes: (K, H) directions in the features' own units along which the prior is wide.
        strength: Used as it is; None to choose by cross-validation.

    Raises:
        ValueError: shapes that do not fit, no vote, or numbers that are not finite.
    """
    plus, minus, unlabelled = (_matrix(x) for x in (chosen, rejected, background))
    if not (plus.shape == minus.shape and len(plus) == len(groups) > 0):
        raise ValueError("chosen, rejected and groups have one row for each vote, at least one")
    if unlabelled.shape[1] != plus.shape[1] or not len(unlabelled):
        raise ValueError("the background has one or more rows of the same width as the votes")
    mean, scale = unlabelled.mean(axis=0), _feature_scale(unlabelled)
    differences = (plus - minus) * scale
    directions = _axis_directions(axes, unlabelled - mean, scale)
    along = differences @ directions.T
    if strength is None:
        strength = choose_strength(
            differences, groups, axis_differences=along if len(directions) else None
        )
    wide = np.sqrt(strength.axis_strength)
    # One fit over [features | axis scores]: a column scaled by c has prior variance c^2.
    joined = np.hstack([differences / np.sqrt(strength.l2), wide * along])
    weight = fit_bradley_terry(joined, 1.0)
    width = plus.shape[1]
    whole = weight[:width] / np.sqrt(strength.l2) + (wide * weight[width:]) @ directions
    folded = (whole * scale).astype(np.float32)
    return HeadFit(
        weight=folded,
        bias=float(-(mean @ folded.astype(np.float64))),
        l2=strength.l2,
        axis_strength=strength.axis_strength,
        cv_accuracy=strength.cv_accuracy,
        cv_loss=strength.cv_loss,
    )


class VoteFit:
    """Votes with their features: one more vote and its fit cost milliseconds.

    The strength is chosen again (cross-validation, up to a second) only when the votes have grown
    by a quarter since the last time; between, the last one is used.

    Args:
        axes: (K, H) style directions, or None.
        background: (M, H) features of unlabelled answers; the voted ones always count among them.
    """

    def __init__(self, axes: ArrayLike | None = None, background: ArrayLike | None = None) -> None:
        self.axes = None if axes is None else np.asarray(axes, dtype=np.float32)
        self.background = None if background is None else np.asarray(background, dtype=np.float32)
        self.chosen: list[NDArray[np.float32]] = []
        self.rejected: list[NDArray[np.float32]] = []
        self.groups: list[str] = []
        self._strength = Strength()
        self._chosen_at = 0

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, chosen: ArrayLike, rejected: ArrayLike, group: Hashable) -> None:
        """One vote: features (H,) of both answers and the prompt (kept as text) they belong to."""
        plus = np.array(chosen, dtype=np.float32)
        minus = np.array(rejected, dtype=np.float32)
        if plus.ndim != 1 or plus.shape != minus.shape:
            raise ValueError(f"a vote has two rows of features, not {plus.shape}, {minus.shape}")
        if self.chosen and plus.shape != self.chosen[0].shape:
            raise ValueError(f"earlier votes have {len(self.chosen[0])} features, not {len(plus)}")
        self.chosen.append(plus)
        self.rejected.append(minus)
        self.groups.append(str(group))

    def subset(self, wanted: Sequence[int]) -> "VoteFit":
        """A new fit on some of these votes, by their places; the strength is chosen anew."""
        part = VoteFit(self.axes, self.background)
        for place in wanted:
            part.add(self.chosen[place], self.rejected[place], self.groups[place])
        return part

    def fit(self, strength: Strength | None = None) -> HeadFit:
        """The head for all votes so far; a `strength` that is given is used as it is.

        Raises:
            UserError: there is no vote yet.
        """
        if not self.groups:
            raise UserError(
                "There are no votes yet, so there is nothing to fit. Rate some answers."
            )
        chosen, rejected = np.stack(self.chosen), np.stack(self.rejected)
        parts = [chosen, rejected] + ([] if self.background is None else [self.background])
        due = len(self) >= 1.25 * self._chosen_at
        fit = fit_head(
            chosen,
            rejected,
            self.groups,
            background=np.concatenate(parts),
            axes=self.axes,
            strength=strength or (None if due else self._strength),
        )
        if strength is None and due:
            self._strength = Strength(fit.l2, fit.axis_strength, fit.cv_accuracy, fit.cv_loss)
            self._chosen_at = len(self)
        return fit

    def save(self, path: str | Path) -> None:
        """Write votes, axes and background to one safetensors file."""
        from safetensors.numpy import save_file

        kept = {"axes": self.axes, "background": self.background}
        tensors = {name: value for name, value in kept.items() if value is not None}
        if self.groups:
            tensors |= {"chosen": np.stack(self.chosen), "rejected": np.stack(self.rejected)}
        s = self._strength
        numbers = [s.l2, s.axis_strength, s.cv_accuracy, s.cv_loss, self._chosen_at]
        note = {"groups": json.dumps(self.groups), "strength": json.dumps(numbers)}
        save_file(tensors, str(path), metadata=note)

    @classmethod
    def load(cls, path: str | Path) -> "VoteFit":
        """Read what `save` wrote. Raises UserError for a missing, damaged or other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                note = file.metadata() or {}
            votes = cls(tensors.get("axes"), tensors.get("background"))
            groups, numbers = json.loads(note["groups"]), json.loads(note["strength"])
            for group, plus, minus in zip(
                groups, tensors.get("chosen", []), tensors.get("rejected", []), strict=True
            ):
                votes.add(plus, minus, group)
            votes._strength, votes._chosen_at = Strength(*numbers[:4]), int(numbers[4])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"The votes in {path} can't be read ({error}). Name a votes.safetensors that a "
                "reward run wrote, or run the reward stage again to make a new one."
            ) from error
        return votes


def _matrix(values: ArrayLike) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"features are finite and have two dimensions, not {matrix.shape}")
    return matrix


def _feature_scale(background: Array) -> Array:
    """(H,) factors: each feature by its deviation, all so that two answers lie one apart."""
    deviation = background.std(axis=0)
    # A feature that never varies carries nothing; so does every one of a single answer.
    alive = deviation > 1e-6 * max(float(np.abs(background).max()), 1e-30)
    if not alive.any():
        size = float(np.sqrt((background**2).mean())) or 1.0
        return np.full(background.shape[1], 1 / (size * np.sqrt(2 * background.shape[1])))
    return np.where(alive, 1 / np.where(alive, deviation, 1.0), 0.0) / np.sqrt(2 * alive.sum())


def _axis_directions(axes: ArrayLike | None, centred: Array, scale: Array) -> Array:
    """(K, H) directions for scaled features; the background's scores along each spread by one."""
    if axes is None:
        return np.zeros((0, len(scale)))
    given = _matrix(axes) * scale
    if given.shape[1] != len(scale):
        raise ValueError("the axes have the same width as the features")
    spread = (centred * scale @ given.T).std(axis=0)
    length = np.sqrt((given**2).sum(axis=1))
    # Where the background can't tell (one answer, or none that differ), the length has to do.
    spread = np.where(spread > 1e-9 * length, spread, length)
    return given / np.where(spread > 0, spread, 1.0)[:, None]


def _held_out_margins(kernel: Array, folds: NDArray[np.int64]) -> Array:
    """(N,) margins w . d of each vote, fitted without the votes of its fold."""
    margins = np.zeros(len(kernel))
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        dual = solve_dual(kernel[np.ix_(rest, rest)], np.ones(rest.sum()))
        margins[out] = kernel[np.ix_(out, rest)] @ dual
    return margins
