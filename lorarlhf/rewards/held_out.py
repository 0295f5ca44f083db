"""Votes predicted by fits that have not seen their prompts: cross-validation over the prompts.

So accuracy and calibration can be measured where every vote is also needed to learn from. Shapes:
N votes, M of them predicted. Only numpy is used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.rewards.posterior import moderated
from lorarlhf.rewards.priors import split_groups, spread_groups
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError

Array = NDArray[np.float64]

MOST = 800
"""Votes that are predicted at most: with 800 votes, a share is known to within 3 points, and the
time of a fit grows with their square."""
REWEIGHED = 300
"""Up to so many votes the priors are weighted anew for each fit. Beyond, their shares are those of
the fit to all votes: a dozen numbers that no single vote changes."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of votes.

    Attributes:
        places: (M,) which of the votes, in their order.
        chosen, rejected: (M,) scores of the answers.
        deviations: (M,) standard deviations of the margins, from the fits' posteriors.
        scales: (M,) by which each fit multiplies margins and deviations for a chance.
    """

    places: NDArray[np.int64]
    chosen: Array
    rejected: Array
    deviations: Array
    scales: Array

    @property
    def right(self) -> Array:
        """(M,) 1 where the chosen answer scores higher, 0 where it does not; a tie is 0.5."""
        return shares_right(self.chosen - self.rejected)

    def confidence(self, doubt: bool = True) -> Array:
        """(M,) the chance, 0.5 to 1, that a fit gives to the answer that it predicts to win.

        Args:
            doubt: count how unsure the weights are (`Posterior.win_probability`); without it the
                fit's single best weights are taken for certain.
        """
        margins = self.scales * np.abs(self.chosen - self.rejected)
        return moderated(margins, self.scales * self.deviations if doubt else 0 * margins)


def shares_right(margins: Array) -> Array:
    """1 where a margin is above 0, 0 where it is below; 0.5 for a tie."""
    return np.asarray((margins > 0) + 0.5 * (margins == 0), dtype=np.float64)


def sample_of(votes: VoteFit, most: int = MOST) -> NDArray[np.int64]:
    """Which votes to measure on, in their order: all, or about `most` of evenly spread prompts.

    Of few prompts with many votes each, it is a part of every prompt's votes (`spread_groups`).
    """
    if len(votes) <= most:
        return np.arange(len(votes))
    return np.flatnonzero(spread_groups(votes.groups, most))


def part_of(votes: VoteFit, places: NDArray[np.int64]) -> VoteFit:
    """Some of the votes, to be fitted; see `REWEIGHED`."""
    return votes.subset(places.tolist(), votes.blend if len(places) > REWEIGHED else None)


def predict_held_out(votes: VoteFit) -> HeldOut:
    """Predict each vote by a fit to the votes of other prompts (of `sample_of` the votes).

    Raises:
        UserError: the votes are all on one prompt, or there are none.
    """
    places = sample_of(votes)
    folds = split_groups([votes.groups[place] for place in places])
    if len(np.unique(folds)) < 2:
        raise UserError(
            "Votes on two or more prompts are needed to predict some of them from the others. Rate "
            "answers to more prompts."
        )
    found = np.empty((4, len(places)))
    for fold in np.unique(folds):
        test = folds == fold
        posterior = part_of(votes, places[~test]).posterior()
        chosen, rejected = votes.chosen[places[test]], votes.rejected[places[test]]
        found[0, test], found[1, test] = (posterior.scores(x)[0] for x in (chosen, rejected))
        found[2, test] = posterior.margins(chosen, rejected)[1]
        found[3, test] = posterior.scale
    return HeldOut(places, *found)
