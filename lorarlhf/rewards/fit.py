"""The reward head from few votes: a strongly regularised Bradley-Terry fit on frozen features.

Few votes can't determine hundreds of weights, so the Gaussian prior matters: it is wide along the
style axes, by which people often vote (`lorarlhf.rewards.axes`), and narrow elsewhere. The model is
linear and folds into one weight vector and a bias.

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
from lorarlhf.runtime.files import replace_nonfinite

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """The strength of the regularisation, in the units of `fit_head`.

    `fit_head` scales the features so that two unlabelled answers have a distance of one (root mean
    square), and the axes so that their scores have a standard deviation of one.

    Attributes:
        l2: Penalty on the squared weight; larger means smaller weights.
        axis_strength: Prior variance along each axis; 0 leaves the axes out.
    """

    l2: float
    axis_strength: float = 0.0


# Most of them rely on the axes, which is right for a preference that lies along them; the last two
# are for one that does not. Chosen on the small base for the simulated raters.
PRIORS = (
    *(Prior(l2, axis) for l2 in (1.0, 3.0, 10.0) for axis in (0.003, 0.01, 0.03)),
    *(Prior(0.3), Prior(1.0)),
)
PRIORS_WITHOUT_AXES = (Prior(0.3), Prior(1.0), Prior(3.0))
FOLDS = 5
MIN_GROUPS = 10
"""With fewer prompts cross-validation is too noisy, so all priors get the same share."""
MIN_SHARE = 0.01
"""Priors with a smaller share are left out."""


@dataclass(frozen=True)
class Blend:
    """Priors with their shares, and how well their average predicts held-out votes.

    Attributes:
        priors: (prior, share); the shares add up to 1.
        cv_accuracy: Share of held-out votes predicted right (ties half); None if there are
            too few votes to measure it.
        cv_loss: Mean -log P of held-out votes, ln 2 = 0.693 for guessing; None likewise.
    """

    priors: tuple[tuple[Prior, float], ...]
    cv_accuracy: float | None = None
    cv_loss: float | None = None


@dataclass(frozen=True)
class HeadFit:
    """A linear head: score = features @ weight + bias, with mean 0 over the background.

    Attributes:
        weight: (F,) float32.
        bias: A number.
        blend: The priors whose fits are averaged.
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
    """Weight priors by how well their fits predict held-out votes.

    A prior's share is proportional to exp(-its summed held-out loss) (pseudo-Bayesian model
    averaging; Yao et al. 2018, arXiv 1704.02030, section 3.4). Picking the best prior instead would
    be a matter of luck, since with 50 votes the losses of similar priors hardly differ. All votes
    of a group (a prompt) are on the same side of a split.

    Args:
        differences: (N, F) chosen minus rejected.
        groups: N labels.
        axis_differences: (N, K), the same votes along the axes; None for a fit without axes.
        priors: the priors to weight; by default `PRIORS` or `PRIORS_WITHOUT_AXES`.
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
    """The fold of each vote, 0 to folds - 1; groups stay together, folds have similar sizes."""
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
        groups: N labels, one for each prompt; see `blend_priors`.
        background: (M, F) features of unlabelled answers, M >= 1 (those voted on may be used). They
            set the scale of each feature and the zero of the score.
        axes: (K, F) directions, in the units of the features, along which the prior is wide.
        blend: The blend to use; None to weight the priors by cross-validation.

    Raises:
        ValueError: shapes that do not match, no votes, or numbers that are not finite.
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
    weight = _weight(differences, along, directions, blend)
    folded = (weight * scale).astype(np.float32)
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
    """Votes with their features, to which votes can be added; a new fit takes milliseconds.

    The priors are weighted again (cross-validation, up to a second) only when the number of votes
    has grown by a quarter since the last time; until then the last shares are used.

    Args:
        axes: (K, F) style directions, or None.
        background: (M, F) features of unlabelled answers; those voted on are added to them.
    """

    def __init__(self, axes: ArrayLike | None = None, background: ArrayLike | None = None) -> None:
        self.axes = None if axes is None else np.asarray(axes, dtype=np.float32)
        self.background = None if background is None else np.asarray(background, dtype=np.float32)
        self.chosen: list[NDArray[np.float32]] = []
        self.rejected: list[NDArray[np.float32]] = []
        self.groups: list[str] = []
        self._blend: Blend | None = None
        self._weighted_at = 0

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, chosen: ArrayLike, rejected: ArrayLike, group: Hashable) -> None:
        """Add a vote: features (F,) of both answers, and their prompt, which is stored as text."""
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
        """A new `VoteFit` with some of these votes, by index; its priors are weighted anew."""
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
        due = len(self) >= 1.25 * self._weighted_at
        fit = fit_head(
            chosen,
            rejected,
            self.groups,
            background=np.concatenate(parts),
            axes=self.axes,
            blend=None if due else self._blend,
        )
        if due:
            self._blend, self._weighted_at = fit.blend, len(self)
        return fit

    def save(self, path: str | Path) -> None:
        """Write votes, axes and background to a safetensors file."""
        from safetensors.numpy import save_file

        arrays = {"axes": self.axes, "background": self.background}
        tensors = {name: value for name, value in arrays.items() if value is not None}
        if self.groups:
            tensors |= {"chosen": np.stack(self.chosen), "rejected": np.stack(self.rejected)}
        note = {"groups": json.dumps(self.groups)}
        if self._blend is not None:
            priors = [[p.l2, p.axis_strength, share] for p, share in self._blend.priors]
            numbers = [self._blend.cv_accuracy, self._blend.cv_loss, self._weighted_at]
            note["blend"] = json.dumps([priors, *numbers])
        save_file(tensors, str(path), metadata=note)

    @classmethod
    def load(cls, path: str | Path) -> "VoteFit":
        """Read a file that `save` wrote. Raises UserError if it is missing or can't be read."""
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
                # Earlier versions wrote NaN for what was not measured.
                blend = replace_nonfinite(json.loads(note["blend"]))
                priors, accuracy, loss, weighted_at = blend
                shares = tuple((Prior(l2, axis), share) for l2, axis, share in priors)
                votes._blend, votes._weighted_at = Blend(shares, accuracy, loss), weighted_at
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
    """(F,) factors by the inverse deviation, so that two answers have a distance of one."""
    deviation = background.std(axis=0)
    # A feature that never varies has no information; neither has any feature of a single answer.
    alive = deviation > 1e-6 * max(float(np.abs(background).max()), 1e-30)
    if not alive.any():
        size = float(np.sqrt((background**2).mean())) or 1.0
        return np.full(background.shape[1], 1 / (size * np.sqrt(2 * background.shape[1])))
    return np.where(alive, 1 / np.where(alive, deviation, 1.0), 0.0) / np.sqrt(2 * alive.sum())


def _axis_directions(axes: ArrayLike | None, centred: Array, scale: Array) -> Array:
    """(K, F) directions for scaled features, along which the background has a deviation of one."""
    if axes is None:
        return np.zeros((0, len(scale)))
    given = _matrix(axes) * scale
    if given.shape[1] != len(scale):
        raise ValueError("the axes have the same width as the features")
    spread = (centred * scale @ given.T).std(axis=0)
    length = np.sqrt((given**2).sum(axis=1))
    # If the background has no spread (a single answer, or equal ones), the length is used.
    spread = np.where(spread > 1e-9 * length, spread, length)
    return given / np.where(spread > 0, spread, 1.0)[:, None]


def _held_out_margins(kernel: Array, folds: NDArray[np.int64]) -> Array:
    """(N,) margins w . d of each vote, from a fit without the votes of its fold."""
    margins = np.zeros(len(kernel))
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        dual = solve_dual(kernel[np.ix_(rest, rest)])
        margins[out] = kernel[np.ix_(out, rest)] @ dual
    return margins
