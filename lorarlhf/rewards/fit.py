"""The reward head from few votes: a strongly regularised Bradley-Terry fit on frozen features.

Few votes can't settle hundreds of weights, so the Gaussian prior decides most: it is wide along a
bank of style directions that people tend to vote by (`lorarlhf.rewards.axes`), narrow elsewhere.
All of it stays linear and folds into one weight vector and a bias.

Shapes: N votes, F features, K axes, M unlabelled answers. Only numpy is used.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.rewards.bradley_terry import solve_dual
from lorarlhf.runtime.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """How strongly to regularise, in the units of `fit_head`.

    There, features are scaled so that two unlabelled answers lie one apart (root mean square), and
    axes so that their scores spread by one.

    Attributes:
        l2: Penalty on the squared weight; larger means smaller weights.
        axis_strength: Prior variance along each axis; 0 means that the axes are left out.
    """

    l2: float
    axis_strength: float = 0.0


# Most of them bet on the axes, which is right for a taste that lies along them; the last two are
# for one that does not. Picked on the small base for the simulated raters.
PRIORS = (
    *(Prior(l2, axis) for l2 in (1.0, 3.0, 10.0) for axis in (0.003, 0.01, 0.03)),
    *(Prior(0.3), Prior(1.0)),
)
PRIORS_WITHOUT_AXES = (Prior(0.3), Prior(1.0), Prior(3.0))
FOLDS = 5
MIN_GROUPS = 10
"""With fewer prompts than this held-out votes say nothing, and all priors count alike."""
MIN_SHARE = 0.01
"""Priors that would have a smaller share are left out."""


@dataclass(frozen=True)
class Blend:
    """Priors with their shares, and what held-out votes say about their average.

    Attributes:
        priors: (prior, share); the shares add up to 1.
        cv_accuracy: Share of held-out votes that are predicted (ties half); NaN where not measured.
        cv_loss: Mean -log P of held-out votes, ln 2 = 0.693 for a coin; NaN where not measured.
    """

    priors: tuple[tuple[Prior, float], ...]
    cv_accuracy: float = float("nan")
    cv_loss: float = float("nan")


@dataclass(frozen=True)
class HeadFit:
    """A linear head: score = features @ weight + bias, with mean 0 over the background.

    Attributes:
        weight: (F,) float32.
        bias: A number.
        blend: The priors whose fits were averaged.
    """

    weight: NDArray[np.float32]
    bias: float
    blend: Blend

    def score(self, features: ArrayLike) -> Array:
        """Features (..., F) -> scores (...)."""
        return np.asarray(features, dtype=np.float64) @ self.weight.astype(np.float64) + self.bias


def blend_priors(
    differences: ArrayLike,
    groups: Sequence[Hashable],
    axis_differences: ArrayLike | None = None,
    priors: Sequence[Prior] | None = None,
) -> Blend:
    """Weigh priors by how well they predict votes that their fit has not seen.

    A prior's share is proportional to exp(-its summed held-out loss) (pseudo-Bayesian model
    averaging; Yao et al. 2018, arXiv 1704.02030, section 3.4). Picking the best one instead follows
    luck: from 50 votes the losses of neighbours hardly differ. Votes of one group, a prompt, are
    never on both sides of a split.

    Args:
        differences: (N, F) chosen minus rejected.
        groups: N labels.
        axis_differences: (N, K), the same votes along the axes; None for a fit without axes.
        priors: those to weigh; by default `PRIORS` or `PRIORS_WITHOUT_AXES`.
    """
    d = np.asarray(differences, dtype=np.float64)
    gram, axis_gram = d @ d.T, np.zeros((len(d), len(d)))
    if axis_differences is not None:
        along = np.asarray(axis_differences, dtype=np.float64)
        axis_gram = along @ along.T
    tried = tuple(priors or (PRIORS_WITHOUT_AXES if axis_differences is None else PRIORS))
    if len(set(groups)) < MIN_GROUPS:
        return Blend(tuple((prior, 1 / len(tried)) for prior in tried))
    folds = split_groups(groups)
    margins = np.stack(
        [_held_out_margins(gram / p.l2 + p.axis_strength * axis_gram, folds) for p in tried]
    )
    losses = np.logaddexp(0, -margins).sum(axis=1)
    shares = np.exp(losses.min() - losses)
    shares[shares < MIN_SHARE * shares.sum()] = 0
    shares /= shares.sum()
    average = shares @ margins
    return Blend(
        tuple((p, float(share)) for p, share in zip(tried, shares, strict=True) if share),
        cv_accuracy=float(np.mean((average > 0) + 0.5 * (average == 0))),
        cv_loss=float(np.logaddexp(0, -average).mean()),
    )


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
    blend: Blend | None = None,
) -> HeadFit:
    """Fit a head to votes.

    Args:
        chosen, rejected: (N, F) features of the answers, N >= 1.
        groups: N labels, one a prompt; see `blend_priors`.
        background: (M, F) features of unlabelled answers, M >= 1 (the voted ones will do). They
            give the scale of each feature and the zero of the score.
        axes: (K, F) directions in the features' own units along which the prior is wide.
        blend: Used as it is; None to weigh the priors by cross-validation.

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
    if blend is None:
        blend = blend_priors(differences, groups, along if len(directions) else None)
    whole = _weight(differences, along, directions, blend)
    folded = (whole * scale).astype(np.float32)
    return HeadFit(folded, float(-(mean @ folded.astype(np.float64))), blend)


def _weight(differences: Array, along: Array, directions: Array, blend: Blend) -> Array:
    """The weight (F,) of scaled features: the average of the fits under the blend's priors."""
    plain, on_axes = differences @ differences.T, along @ along.T
    votes, votes_on_axes = np.zeros(len(plain)), np.zeros(len(plain))
    for prior, share in blend.priors:
        dual = share * solve_dual(plain / prior.l2 + prior.axis_strength * on_axes)
        votes += dual / prior.l2
        votes_on_axes += prior.axis_strength * dual
    return differences.T @ votes + (along.T @ votes_on_axes) @ directions


class VoteFit:
    """Votes with their features: one more vote and its fit cost milliseconds at some hundred votes.

    The priors are weighed again (cross-validation, up to a second) only when the votes have grown
    by a quarter since the last time; between, the last shares are used.

    Args:
        axes: (K, F) style directions, or None.
        background: (M, F) features of unlabelled answers; the voted ones always count among them.
    """

    def __init__(self, axes: ArrayLike | None = None, background: ArrayLike | None = None) -> None:
        self.axes = None if axes is None else np.asarray(axes, dtype=np.float32)
        self.background = None if background is None else np.asarray(background, dtype=np.float32)
        self.chosen: list[NDArray[np.float32]] = []
        self.rejected: list[NDArray[np.float32]] = []
        self.groups: list[str] = []
        self._blend: Blend | None = None
        self._weighed_at = 0

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, chosen: ArrayLike, rejected: ArrayLike, group: Hashable) -> None:
        """One vote: features (F,) of both answers and the prompt (kept as text) they belong to."""
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
        """A new fit on some of these votes, by their places; the priors are weighed anew."""
        part = VoteFit(self.axes, self.background)
        for place in wanted:
            part.add(self.chosen[place], self.rejected[place], self.groups[place])
        return part

    def fit(self) -> HeadFit:
        """The head for all votes so far.

        Raises:
            UserError: there is no vote yet.
        """
        if not self.groups:
            raise UserError(
                "There are no votes yet, so there is nothing to fit. Rate some answers."
            )
        chosen, rejected = np.stack(self.chosen), np.stack(self.rejected)
        parts = [chosen, rejected] + ([] if self.background is None else [self.background])
        due = len(self) >= 1.25 * self._weighed_at
        fit = fit_head(
            chosen,
            rejected,
            self.groups,
            background=np.concatenate(parts),
            axes=self.axes,
            blend=None if due else self._blend,
        )
        if due:
            self._blend, self._weighed_at = fit.blend, len(self)
        return fit

    def save(self, path: str | Path) -> None:
        """Write votes, axes and background to one safetensors file."""
        from safetensors.numpy import save_file

        kept = {"axes": self.axes, "background": self.background}
        tensors = {name: value for name, value in kept.items() if value is not None}
        if self.groups:
            tensors |= {"chosen": np.stack(self.chosen), "rejected": np.stack(self.rejected)}
        note = {"groups": json.dumps(self.groups)}
        if self._blend is not None:
            priors = [[p.l2, p.axis_strength, share] for p, share in self._blend.priors]
            numbers = [self._blend.cv_accuracy, self._blend.cv_loss, self._weighed_at]
            note["blend"] = json.dumps([priors, *numbers])
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
            groups = json.loads(note["groups"])
            for group, plus, minus in zip(
                groups, tensors.get("chosen", []), tensors.get("rejected", []), strict=True
            ):
                votes.add(plus, minus, group)
            if "blend" in note:
                priors, accuracy, loss, weighed_at = json.loads(note["blend"])
                shares = tuple((Prior(l2, axis), share) for l2, axis, share in priors)
                votes._blend, votes._weighed_at = Blend(shares, accuracy, loss), weighed_at
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
        dual = solve_dual(kernel[np.ix_(rest, rest)])
        margins[out] = kernel[np.ix_(out, rest)] @ dual
    return margins
