"""The fit to a person's newest votes, and the tastes that it shows, with the votes as examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorarlhf.data.readers import last_message
from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.records import Prompt, Vote
from lorarlhf.preferences.single_answers import in_pairs
from lorarlhf.rewards.tastes import Taste, axis_sides, clearest_votes, tastes_of
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.backfill import LONGEST_TEXT
from lorarlhf_ui.hidden_states import HiddenStates

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.rewards.posterior import Posterior

MOST_PAIRS = 500
"""The newest pairs that are fitted: the time of a fit grows with their cube."""
FEWEST_PAIRS = 10
SOON = (
    "The tastes are shown once the model has been loaded and has read the example sentences of the "
    "style axes. Look again in a minute."
)
NO_AXES = "Tastes need a model that has read the example sentences of the style axes."


@dataclass(frozen=True)
class Example:
    """A vote that shows a taste: the prompt, and the two answers."""

    prompt: Prompt
    chosen: str
    rejected: str

    @property
    def asked(self) -> str:
        """The last message of the prompt."""
        return last_message(self.prompt)


@dataclass(frozen=True)
class KnownPairs:
    """What is known about some votes: the pairs that can be fitted, and the votes that can't.

    Attributes:
        axes: the style axes (K, F); None if they are not known.
        pairs: the texts, and the hidden states (F,) of the better and the worse answer.
        votes: the numbers of their votes.
        space: the feature space of the states.
        missing: votes that the model has yet to read.
        too_long: how many votes it never reads, since their texts are too long.
    """

    axes: "np.ndarray | None"
    pairs: "list[tuple[Example, np.ndarray, np.ndarray]]"
    votes: list[int]
    space: str
    missing: list[Vote]
    too_long: int

    @property
    def version(self) -> tuple[Any, ...]:
        """The same as long as a fit to them is the same."""
        return self.space, self.axes is not None, *self.votes


@dataclass(frozen=True)
class TasteFit:
    """The posterior of the fit, and what it was fitted to.

    Attributes:
        pairs: the texts of the votes, in the order of the fit's rows.
        version: of what it was fitted to.
    """

    posterior: "Posterior"
    votes: VoteFit
    pairs: list[Example]
    version: tuple[Any, ...]

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


def newest_that_prefer(votes: Sequence[Vote]) -> list[Vote]:
    """The newest votes that prefer an answer, with `MOST_PAIRS` pairs or a few more.

    A good and a bad single answer of a rater to one prompt are such a vote (`in_pairs`).

    Args:
        votes: in the order in which they were cast.
    """
    found, pairs = list[Vote](), 0
    for vote in reversed(in_pairs(votes)):
        if pairs >= MOST_PAIRS:
            break
        if ordered := _pairs(vote):
            pairs += len(ordered)
            found.append(vote)
    return found[::-1]


def _pairs(vote: Vote) -> list[tuple[str, str]]:
    # An answer that a rater wrote has no hidden states.
    return [pair for pair in better_and_worse(vote) if set(pair) <= set(vote.completions)]


def known_pairs(votes: Sequence[Vote], states: HiddenStates) -> KnownPairs:
    """What is known about votes that prefer an answer (`newest_that_prefer`)."""
    axes = states.axes()
    if axes is not None and len(axes) != len(list(axis_sides())):  # of another version
        axes = None
    pairs: list[tuple[Example, np.ndarray, np.ndarray]] = []
    numbers, missing, too_long, space = list[int](), list[Vote](), 0, states.space
    for vote in votes:
        rows = states.get(vote.prompt, vote.completions)
        if rows is not None:
            row_of = dict(zip(vote.completions, rows, strict=True))
            pairs += [(Example(vote.prompt, a, b), row_of[a], row_of[b]) for a, b in _pairs(vote)]
            numbers.append(vote.id)
        elif len(str(vote.prompt)) + max(map(len, vote.completions)) > LONGEST_TEXT:
            too_long += 1
        else:
            missing.append(vote)
    return KnownPairs(axes, pairs, numbers, space, missing, too_long)


def fit_tastes(known: KnownPairs, no_model: str = "") -> TasteFit:
    """Fit the pairs that are known.

    Args:
        no_model: why no model will read more; "" if there is one, or soon will be.

    Raises:
        UserError: the style axes are not known, or fewer than `FEWEST_PAIRS` pairs are.
    """
    if known.axes is None:
        raise UserError(f"{NO_AXES} {no_model}" if no_model else SOON)
    if len(known.pairs) < FEWEST_PAIRS:
        raise UserError(_too_few(known, no_model))
    fit = VoteFit(known.axes)
    for example, better, worse in known.pairs:
        fit.add(better, worse, str(example.prompt))
    pairs = [example for example, _, _ in known.pairs]
    return TasteFit(fit.posterior(), fit, pairs, known.version)


def _too_few(known: KnownPairs, no_model: str) -> str:
    """Why there are no tastes yet, in words."""
    if missing := len(known.missing):
        of = f"{missing:,} vote{'s' * (missing != 1)}"
        if no_model:
            return f"No model has read the answers of {of}. {no_model}"
        return (
            f"The model has to read the answers of {of} first. It does so while nobody waits for "
            "an answer; look again in a few minutes."
        )
    count = len(known.pairs)
    are = "is" if count == 1 else "are"
    few = f"Tastes need at least {FEWEST_PAIRS} votes that prefer an answer; there {are} "
    return f"{few}{count or 'none'}{left_out(known.too_long)}."


def left_out(too_long: int) -> str:
    """How many votes are not in a fit because of their length, as the end of a sentence."""
    if not too_long:
        return ""
    return f", and {too_long:,} more with texts that are too long for the model"
