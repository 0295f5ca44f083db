"""Votes as the pages send them, and answers as the pages show them.

A page sends a verdict in the order of its screen. The store keeps it in the order of the item.
"""

from collections.abc import Sequence
from typing import Any

from lorarlhf.preferences import queue
from lorarlhf.preferences.history import as_shown, describe, remap
from lorarlhf.preferences.records import RANKED, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import typed_before
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.markdown import names_its_maker, prompt_html, render

View = dict[str, Any]
"""What a page's script receives, as JSON."""
LONGEST_TEXT = 20_000
"""The most characters of a prompt, a message, a note or an answer that a rater types."""
NO_MODEL = (
    "There are no answers left to rate, and the pages run without a model. Start `lorarlhf ui` "
    "without --no-model."
)
_UNKNOWN_PAGE = "The server does not know this page any more. Reload it."


def cast(store: Store, rater: str, token: Any, vote: Any, milliseconds: Any) -> View:
    """Store a vote that a page sent.

    A page repeats a vote whose reply was lost, so the first vote with a token stands.

    Args:
        token: names the presentation that the rater saw.
        vote: the verdict as the page sends it; see `verdict_of`.
        milliseconds: how long the rater took; anything that is not a number counts as unknown.

    Returns:
        `voted`, the number of the vote; and `notice`, if the rater had cast another vote before.

    Raises:
        UserError: the page is out of date, or the verdict does not fit the item.
    """
    if not isinstance(token, str) or not isinstance(vote, dict):
        raise UserError(_UNKNOWN_PAGE)
    shown = queue.read_shown(store, store.presentation(token, rater))
    try:
        verdict = verdict_of(vote, shown)
        number = store.judge(token, verdict, _milliseconds(milliseconds))
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(f"This vote can't be stored: {error}.") from error
    notice = _kept_instead(store, number, verdict)
    return {"voted": number} | ({"notice": notice} if notice else {})


def _kept_instead(store: Store, number: int, verdict: Verdict) -> str:
    """What to tell a rater whose verdict is not the one that is stored; "" if it is."""
    stored = store.vote(number)
    if stored is None or stored.verdict == verdict:
        return ""
    kept = stored.verdict
    lost = {"note": (verdict.note, kept.note), "better answer": (verdict.edited, kept.edited)}
    typed = "".join(
        f" Your {name} is not saved: “{mine}”"
        for name, (mine, other) in lost.items()
        if mine and mine != other
    )
    summary = describe(as_shown(stored).verdict, len(stored.completions))
    return (
        f"You have voted on these answers already, perhaps in another tab: {summary}. That vote "
        f"stands. To change it, press Undo or open the History page.{typed}"
    )


def item_view(store: Store, shown: queue.Shown) -> View:
    """An item as a page shows it, with what the rater typed if a vote on it was taken back."""
    return {
        "token": shown.presentation.token,
        "prompt": prompt_html(shown.prompt),
        "answers": [answer_view(text) for text in shown.completions],
        "draft": typed_before(store, shown.presentation),
    }


def verdict_of(vote: dict[str, Any], shown: queue.Shown) -> Verdict:
    """A page's vote as a verdict in the order of the item.

    Args:
        vote: `verdict`, `ranking` (tiers of positions on the screen), `strength`, `note`, `edited`.

    Raises:
        ValueError, TypeError, LookupError, OverflowError: the vote is not one that the pages send.
    """
    order = shown.presentation.shown
    ranking = remap(vote.get("ranking") or [], lambda position: order[int(position)])
    if any(int(position) < 0 for tier in vote.get("ranking") or [] for position in tier):
        raise ValueError("a position on the screen is 0 or more")
    verdict = str(vote["verdict"])
    return Verdict(
        verdict,
        ranking if verdict == RANKED else [],
        vote.get("strength") or None,
        _text(vote.get("note")),
        edited(_text(vote.get("edited")), shown.completions),
    )


def edited(text: str | None, answers: Sequence[str]) -> str | None:
    """A rater's better answer; None if it is an unchanged copy of one of the answers."""
    return None if text in [answer.strip() for answer in answers] else text


def _text(value: Any) -> str | None:
    if value is None or not str(value).strip():
        return None
    if len(str(value)) > LONGEST_TEXT:
        raise ValueError(f"a text has up to {LONGEST_TEXT} characters")
    return storable(str(value)).strip()


def storable(text: str) -> str:
    """The text without unpaired surrogates, which can't be encoded as UTF-8."""
    return text.encode("utf-8", "ignore").decode()


def vote_number(value: Any) -> int | None:
    """The number of the vote that a page wants to undo.

    Raises:
        UserError: the value is not a number of a vote.
    """
    if value is not None and not (isinstance(value, int) and 0 <= value < 2**63):
        raise UserError(_UNKNOWN_PAGE)
    return value


def _milliseconds(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def answer_view(text: str) -> View:
    """An answer as a page shows it: safe HTML, the text itself, and whether it names its maker."""
    return {"html": render(text), "text": text, "flag": names_its_maker(text)}
