"""Files for download: the votes in the forms that other programs read, a row a line."""

import json
from collections.abc import Iterator
from urllib.parse import urlencode

import fastapi
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lorarlhf.preferences.exports import EXPORTS, Export
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.security import rater_of

FORMS = {
    "trl": "TRL preferences (prompt, chosen, rejected)",
    "trl-plain": "TRL preferences as plain text",
    "kto": "KTO rows (good and bad answers)",
    "demonstrations": "Demonstrations (answers written by raters)",
    "hh": "HH dialogues (Human, Assistant)",
    "sharegpt": "ShareGPT preferences",
    "arena": "LMSYS arena records",
    "argilla": "Argilla records",
    "own": "Everything, to be imported again",
}
PURPOSES = {"train": "training", "compare": "taste tests", "all": "both"}
SCOPES = ("mine", "all")
_CHUNK = 2**16


def add_files(app: fastapi.FastAPI, store: Store, everybody: bool = False) -> None:
    """Add the download to an app; before Gradio is mounted, which answers to every other path.

    Args:
        store: of the votes; one of its own, so that nobody waits for long reading.
        everybody: whether the votes of others may be had as well; never under a login.
    """

    @app.get("/files/votes")
    def votes(
        request: fastapi.Request, form: str = "trl", scope: str = "mine", purpose: str = "train"
    ) -> Response:
        rater = rater_of(request)
        if rater is None:
            return PlainTextResponse("You are not logged in any more. Reload the page.", 401)
        try:
            _, export = exported(store, whose(rater, scope, everybody), form, purpose)
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        return StreamingResponse(
            _lines(export),
            media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="votes-{form}.jsonl"'},
        )


def whose(rater: str, scope: str, everybody: bool) -> str | None:
    """The rater whose votes are meant; None for those of all.

    Raises:
        UserError: a scope that is not known, or not allowed.
    """
    if scope not in SCOPES:
        raise UserError(f"The scope of an export is {' or '.join(SCOPES)}.")
    if scope == "all" and not everybody:
        raise UserError("Where raters log in, each of them sees their own votes only.")
    return rater if scope == "mine" else None


def exported(store: Store, rater: str | None, form: str, purpose: str) -> tuple[int, Export]:
    """How many votes were looked at, and their rows with the counts of what is left out.

    Raises:
        UserError: a form or purpose that is not known.
    """
    if form not in EXPORTS:
        raise UserError(f"The form of an export is one of {', '.join(EXPORTS)}.")
    if purpose not in PURPOSES:
        raise UserError(f"The purpose of an export is one of {', '.join(PURPOSES)}.")
    votes = store.votes(rater=rater, purpose=None if purpose == "all" else purpose)
    return len(votes), EXPORTS[form](votes)


def link(form: str, scope: str, purpose: str) -> str:
    """The address of a download."""
    return f"/files/votes?{urlencode({'form': form, 'scope': scope, 'purpose': purpose})}"


def _lines(export: Export) -> Iterator[bytes]:
    """The rows as JSONL, in pieces that are worth a package each."""
    piece = bytearray()
    for row in export.rows:
        # Half a character has no UTF-8, but its \\udXXX escape is valid JSON.
        piece += json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if len(piece) >= _CHUNK:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
