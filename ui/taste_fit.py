"""The fit to a person's newest votes, and the tastes that it shows, with the votes as examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.records import Prompt, Vote
from lorarlhf.rewards.tastes import Taste, axis_sides, clearest_votes, tastes_of
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.hidden_states import HiddenStates

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.rewards.posterior import Posterior

MOST_PAIRS = 500
"""The newest pairs that are fitted: the time of a fit grows with their cube."""
FEWEST_PAIRS = 10
NO_AXES = (
    "The tastes are shown once the model has been loaded and has read the example sentences of the "
    "style axes. Look again in a minute."
)


@dataclass(frozen=True)
class Example:
    """A vote that shows a taste: the prompt, and the two answers."""

    prompt: Prompt
    chosen: str
    rejected: str

    @property
    def asked(self) -> str:
        """The last message of the prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


@dataclass(frozen=True)
class TasteFit:
    """The posterior of the fit, and what it was fitted to.

    Attributes:
        pairs: the texts of the votes, in the order of the fit's rows.
    """

    posterior: "Posterior"
    votes: VoteFit
    pairs: list[Example]

    def tastes(self) -> list[tuple[Taste, Example | None]]:
        """The taste along each style axis, the surest first, and the vote that shows it best."""
        assert self.votes.axes is not None
        return self._with_examples(self.votes.axes, list(axis_sides()))

    def own_taste(
        self, direction: "np.ndarray", sides: tuple[str, str]
    ) -> tuple[Taste, Example | None]:
        """The taste along an axis (F,) of a person's own."""
        return self._with_examples(direction[None], [sides])[0]

    def _with_examples(
        self, directions: "np.ndarray", sides: Sequence[tuple[str, str]]
    ) -> list[tuple[Taste, Example | None]]:
        found = tastes_of(self.posterior, directions, sides)
        places = clearest_votes(found, directions, self.votes.chosen, self.votes.rejected)
        examples = [None if place is None else self.pairs[place] for place in places]
        return list(zip(found, examples, strict=True))


def fit_tastes(
    votes: Sequence[Vote], states: HiddenStates, fetch: Callable[[Vote], None] = lambda vote: None
) -> TasteFit:
    """Fit the newest votes that prefer an answer, `MOST_PAIRS` pairs at most.

    Args:
        votes: in the order in which they were cast.
        states: the hidden states of their answers.
        fetch: called with each vote whose hidden states are missing.

    Raises:
        UserError: the style axes are not known yet, or fewer than `FEWEST_PAIRS` pairs have hidden
            states.
    """
    axes = states.axes()
    if axes is None or len(axes) != len(list(axis_sides())):
        raise UserError(NO_AXES)
    found: list[list[tuple[Example, np.ndarray, np.ndarray]]] = []
    seen = missing = 0
    for vote in reversed(votes):
        ordered = [pair for pair in better_and_worse(vote) if set(pair) <= set(vote.completions)]
        if not ordered:
            continue
        if seen >= MOST_PAIRS:
            break
        seen += len(ordered)
        rows = states.get(vote.prompt, vote.completions)
        if rows is None:
            missing += 1
            fetch(vote)
            continue
        row_of = dict(zip(vote.completions, rows, strict=True))
        found.append([(Example(vote.prompt, a, b), row_of[a], row_of[b]) for a, b in ordered])
    fit, pairs = VoteFit(axes), []
    for example, better, worse in (pair for of_vote in reversed(found) for pair in of_vote):
        fit.add(better, worse, str(example.prompt))
        pairs.append(example)
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(_too_few(len(pairs), missing))
    return TasteFit(fit.posterior(), fit, pairs)


def _too_few(pairs: int, missing: int) -> str:
    """Why there are no tastes yet, in words."""
    if missing:
        return (
            f"The model has to read the answers of {missing} votes first. It does so while nobody "
            "waits for an answer; look again in a few minutes."
        )
    return (
        f"Tastes are shown from {FEWEST_PAIRS} votes on that prefer one answer; there "
        f"{'is' if pairs == 1 else 'are'} {pairs or 'none'}. Rate some answers."
    )
