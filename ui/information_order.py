"""The waiting items in the order of what a vote on them would teach a rater's reward head."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from lorarlhf.preferences.queue import unseen
from lorarlhf.preferences.store import Store
from lorarlhf_ui.hidden_states import HiddenStates

if TYPE_CHECKING:
    from lorarlhf.rewards.posterior import Posterior

MOST_COMPARED = 24
"""Items among which the next one is chosen; with more, the answer to a vote would take longer."""
MOST_RATERS = 8
"""Raters whose heads are kept, the latest ones, here and in the meter; each takes up to 20 MB."""


class InformationOrder:
    """Orders the waiting items for a rater, from the posterior of the rater's head.

    The meter's thread makes the head after each vote, so it has all votes but the one that a page
    has just sent.

    Args:
        store: where the items are.
        states: the cached hidden states of their answers.
    """

    def __init__(self, store: Store, states: HiddenStates) -> None:
        self.store, self.states = store, states
        self._posteriors: OrderedDict[str, tuple[str, Posterior]] = OrderedDict()

    def learn(self, rater: str, head: "Posterior | None") -> None:
        """Take over the head of a rater; None if there are too few votes for one."""
        if head is None:
            self._posteriors.pop(rater, None)
            return
        self._posteriors[rater] = self.states.space, head
        self._posteriors.move_to_end(rater)
        while len(self._posteriors) > MOST_RATERS:
            self._posteriors.popitem(last=False)

    def best_first(self, rater: str) -> list[int]:
        """The numbers of waiting items, those that would teach this rater's head the most in front.

        An item without hidden states comes before all others: nothing is known of it, and else it
        might wait for ever. The list is empty if there is no posterior yet.
        """
        space, posterior = self._posteriors.get(rater, ("", None))
        if posterior is None or space != self.states.space:
            return []
        from lorarlhf.rewards.information import expected_information

        items = [
            (number, self.states.get(prompt, answers))
            for number, prompt, answers in unseen(self.store, MOST_COMPARED)
        ]
        known = [(number, rows) for number, rows in items if rows is not None]
        gains = expected_information(posterior, [rows for _, rows in known])
        ranked = sorted(range(len(known)), key=lambda place: -gains[place])
        unknown = [number for number, rows in items if rows is None]
        return unknown + [known[place][0] for place in ranked]
