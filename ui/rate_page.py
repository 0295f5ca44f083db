"""The Rate page: two or more answers, a vote, the next ones."""

from typing import Any

from lorarlhf.preferences.accounts import is_owner
from lorarlhf_ui.rate import Ratings
from lorarlhf_ui.vote_widget import vote_widget


def rate_page(ratings: Ratings, login: bool = False) -> None:
    """Put the page's components into the Blocks that are being built.

    Args:
        login: whether raters log in; without a login the rater is an owner.
    """

    def ask(rater: str, data: dict[str, Any]) -> dict[str, Any]:
        for_all = not login or is_owner(ratings.store, rater)
        return ratings.ask(rater, data.get("text"), for_all)

    vote_widget(
        {
            "begin": lambda rater, data: ratings.begin(rater),
            "vote": lambda rater, data: ratings.vote(
                rater, data.get("token"), data.get("vote") or {}, data.get("milliseconds")
            ),
            "undo": lambda rater, data: ratings.undo(rater, data.get("expected")),
            "ask": ask,
            "watch": lambda rater, data: ratings.watch(rater, data.get("seen") or []),
            "progress": lambda rater, data: ratings.progress(rater),
        },
        own_prompts=True,
    )
