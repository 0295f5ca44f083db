"""Votes with their features, to which votes can be added, and the fit to them."""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.rewards.fit import HeadFit, fit_head, in_vote_space
from lorarlhf.rewards.posterior import Posterior
from lorarlhf.rewards.priors import Blend, Prior
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import replace_nonfinite

VOTES = ("chosen", "rejected")
MANY = 1000


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
        self.groups: list[str] = []
        self._rows = [np.empty((0, 0), np.float32)] * 2  # with room for more votes
        self._blend: Blend | None = None
        self._weighted_at = 0

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def chosen(self) -> NDArray[np.float32]:
        """(N, F) features of the better answers."""
        return self._rows[0][: len(self)]

    @property
    def rejected(self) -> NDArray[np.float32]:
        """(N, F) features of the worse answers."""
        return self._rows[1][: len(self)]

    def add(self, chosen: ArrayLike, rejected: ArrayLike, group: Hashable) -> None:
        """Add a vote: features (F,) of both answers, and their prompt, which is stored as text."""
        plus = np.asarray(chosen, dtype=np.float32)
        minus = np.asarray(rejected, dtype=np.float32)
        if plus.ndim != 1 or plus.shape != minus.shape:
            raise ValueError(f"a vote has two rows of features, not {plus.shape}, {minus.shape}")
        count, width = len(self), self._rows[0].shape[1]
        if count and len(plus) != width:
            raise ValueError(f"earlier votes have {width} features, not {len(plus)}")
        if count == len(self._rows[0]):  # room for as many again
            shape = (max(2 * count, 16), len(plus))
            self._rows = [np.resize(rows, shape) for rows in self._rows]
        self._rows[0][count], self._rows[1][count] = plus, minus
        self.groups.append(str(group))

    def add_all(
        self, chosen: NDArray[np.float32], rejected: NDArray[np.float32], groups: Sequence[Hashable]
    ) -> None:
        """Add many votes; the first ones (N, F) are kept as they are, without a copy."""
        if len(self):
            for plus, minus, group in zip(chosen, rejected, groups, strict=True):
                self.add(plus, minus, group)
            return
        if chosen.ndim != 2 or not (chosen.shape == rejected.shape and len(chosen) == len(groups)):
            raise ValueError(f"votes have two rows each, not {chosen.shape}, {rejected.shape}")
        self._rows = [chosen, rejected]
        self.groups = [str(group) for group in groups]

    @property
    def blend(self) -> Blend | None:
        """The priors' shares in the last fit; None before the first one."""
        return self._blend

    def subset(self, wanted: Sequence[int], blend: Blend | None = None) -> "VoteFit":
        """A new `VoteFit` with some of these votes, by index.

        Its priors are weighted anew, unless there are `MANY`: then their shares hardly differ, and
        those of the last fit to all votes are used.

        Args:
            blend: the priors' shares to use instead.
        """
        part, places = VoteFit(self.axes, self.background), list(wanted)
        part.add_all(
            self.chosen[places], self.rejected[places], [self.groups[place] for place in places]
        )
        if blend is None and len(places) >= MANY:
            blend = self._blend
        if blend is not None:
            part._blend, part._weighted_at = blend, len(places)
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
        due = self._due
        fit = fit_head(
            self.chosen,
            self.rejected,
            self.groups,
            background=self._backgrounds,
            axes=self.axes,
            blend=None if due else self._blend,
        )
        if due:
            self._blend, self._weighted_at = fit.blend, len(self)
        return fit

    def posterior(self) -> Posterior:
        """How sure the fit to all votes so far is.

        Raises:
            UserError: there is no vote yet.
        """
        if self._blend is None or self._due:
            self.fit()
        assert self._blend is not None
        space, votes = in_vote_space(
            self.chosen, self.rejected, background=self._backgrounds, axes=self.axes
        )
        return Posterior(space, votes, self._blend)

    @property
    def _due(self) -> bool:
        """Whether the priors are to be weighted again."""
        return len(self) >= 1.25 * self._weighted_at

    @property
    def _backgrounds(self) -> list[NDArray[np.float32]]:
        given = [] if self.background is None else [self.background]
        return [self.chosen, self.rejected, *given]

    def save(self, path: str | Path) -> None:
        """Write votes, axes and background to a safetensors file."""
        from safetensors.numpy import save_file

        arrays = {"axes": self.axes, "background": self.background}
        if self.groups:
            arrays |= {name: getattr(self, name) for name in VOTES}
        # safetensors writes the memory of an array as it lies there.
        tensors = {n: np.ascontiguousarray(x) for n, x in arrays.items() if x is not None}
        note = {"groups": json.dumps(self.groups)}
        if self._blend is not None:
            priors = [[p.l2, p.axis_strength, share] for p, share in self._blend.priors]
            numbers = [self._blend.cv_accuracy, self._blend.cv_loss, self._weighted_at]
            note["blend"] = json.dumps([priors, *numbers, self._blend.scale])
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
            if groups:
                votes.add_all(tensors["chosen"], tensors["rejected"], groups)
            if "blend" in note:
                # Earlier versions wrote NaN for what was not measured, and no scale.
                blend = replace_nonfinite(json.loads(note["blend"]))
                priors, accuracy, loss, weighted_at, *scale = blend
                shares = tuple((Prior(l2, axis), share) for l2, axis, share in priors)
                votes._blend = Blend(shares, accuracy, loss, *scale)
                votes._weighted_at = weighted_at
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"The votes in {path} can't be read ({error}). Name a votes.safetensors that a "
                "reward run wrote, or run the reward stage again to make a new one."
            ) from error
        return votes
