"""Thumbs and choices that a front end sends, as votes in the project's store."""

from collections.abc import Mapping
from typing import Any

from lorarlhf.preferences.records import is_name
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.thumbs import Given, NamedAnswer, give_choice, give_thumb
from lorarlhf.serve.answers import answer_name
from lorarlhf.serve.errors import ApiError, refused
from lorarlhf.serve.remembered import Remembered

RATER = "me"
"""Who votes if the request names nobody; as on the pages."""
LONGEST_NOTE = 20_000
THUMBS = {"up": True, "down": False, "none": None}
THUMB_FIELDS = {"id", "index", "rating", "rater", "note"}
CHOICE_FIELDS = {"chosen", "rejected", "rater", "note"}


def give_feedback(store: Store, remembered: Remembered, body: Any) -> Given:
    """Store a thumb on an answer, or a choice between two.

    Args:
        body: a thumb has `id` of the completion, `rating` (`up`, `down`, or `none`, which takes it
            back) and perhaps `index` of the choice (0 by default). A choice has `chosen` and
            `rejected`, each an id, or an object with `id` and `index`. Both may have `rater` and
            `note`.

    Raises:
        ApiError: a field is wrong, or the answer is not remembered.
    """
    if not isinstance(body, dict):
        raise refused("The body is a JSON object with id and rating, or with chosen and rejected.")
    given = {name: value for name, value in body.items() if value is not None}
    rater, note = _rater(given), _note(given)
    if "chosen" in given or "rejected" in given:
        _only(given, CHOICE_FIELDS)
        better, worse = (_answer(remembered, given, name) for name in ("chosen", "rejected"))
        try:
            return give_choice(store, better, worse, rater, note)
        except ValueError as error:
            raise refused(f"This choice can't be stored: {error}.", "rejected") from error
    _only(given, THUMB_FIELDS)
    rating = given.get("rating")
    if not isinstance(rating, str) or rating not in THUMBS:
        raise refused(f"rating is up, down or none, not {rating!r}.", "rating")
    answer = _find(remembered, given.get("id"), given.get("index", 0), "id")
    return give_thumb(store, answer, rater, THUMBS[rating], note)


def _only(given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            fields = ", ".join(sorted(known))
            raise refused(f"There is no field {name} in this feedback, only {fields}.", name)


def _answer(remembered: Remembered, given: Mapping[str, Any], name: str) -> NamedAnswer:
    value = given.get(name)
    if isinstance(value, dict):
        return _find(remembered, value.get("id"), value.get("index", 0), name)
    return _find(remembered, value, 0, name)


def _find(remembered: Remembered, completion: Any, index: Any, param: str) -> NamedAnswer:
    if not isinstance(completion, str) or type(index) is not int or index < 0:
        raise refused(
            f"{param} names a completion: its id (chatcmpl-...), and index is the number of the "
            "choice, from 0.",
            param,
        )
    found = remembered.find(answer_name(completion, index))
    if found is None:
        raise ApiError(
            404,
            f"There is no answer {completion} with the index {index} here. The newest "
            f"{remembered.most} complete answers are remembered.",
            param,
            "answer_not_found",
        )
    return found


def _rater(given: Mapping[str, Any]) -> str:
    rater = given.get("rater", RATER)
    if not is_name(rater):
        raise refused("rater is a name in one line, without blanks at its ends.", "rater")
    return str(rater)


def _note(given: Mapping[str, Any]) -> str | None:
    note = given.get("note", "")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise refused(f"note is a text of up to {LONGEST_NOTE} characters.", "note")
    return note.encode("utf-8", "ignore").decode().strip() or None
