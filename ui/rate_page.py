"""The Rate page: two or more answers, a vote, the next ones."""

from lorarlhf_ui.rate import Ratings
from lorarlhf_ui.vote_widget import vote_widget


def rate_page(ratings: Ratings) -> None:
    """Put the page's components into the Blocks that are being built."""
    vote_widget(
        {
            "begin": lambda rater, data: ratings.begin(rater),
            "vote": lambda rater, data: ratings.vote(
                rater, data.get("token"), data.get("vote") or {}, data.get("milliseconds")
            ),
            "undo": lambda rater, data: ratings.undo(rater, data.get("expected")),
            "ask": lambda rater, data: ratings.ask(rater, data.get("text")),
            "watch": lambda rater, data: ratings.watch(rater, data.get("seen") or []),
            "progress": lambda rater, data: ratings.progress(rater),
        },
        own_prompts=True,
    )
