"""Downloads: the votes as JSON Lines, in the forms that other programs read."""

from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlencode

import fastapi
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lorarlhf.preferences.exports import EXPORTS, Export
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import json_line
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
    "own": "Everything, for a later import",
}
DATASET, DATASET_WORDS = "dataset", "Data set with a card, as TRL preferences (zip)"
"""A form that is no single file: what the command hands over makes it, as the pages stand beside
the folder that does."""
DatasetMaker = Callable[[Sequence[Vote]], bytes]
PURPOSES = {"train": "training", "compare": "blind comparisons", "all": "both"}
SCOPES = ("mine", "all", "visible")
"""Whose votes; `visible` are those of everybody if the rater may see them, or else the rater's."""
_CHUNK = 2**16


def add_files(
    app: fastapi.FastAPI,
    store: Store,
    everybody: bool = False,
    dataset: DatasetMaker | None = None,
) -> None:
    """Add the route /files/votes to an app; before Gradio is mounted, since it takes all paths.

    Args:
        store: the votes. A store of its own, so that votes do not wait while it reads.
        everybody: whether a rater may download the votes of others; never when raters log in.
        dataset: makes the zip file of a data set; None where that form is not offered.
    """

    @app.get("/files/votes")
    def votes(
        request: fastapi.Request, form: str = "trl", scope: str = "mine", purpose: str = "train"
    ) -> Response:
        rater = rater_of(request)
        if rater is None:
            return PlainTextResponse("You are not logged in any more. Reload the page.", 401)
        try:
            if form == DATASET and dataset is not None:
                return _zip(dataset(chosen(store, whose(rater, scope, everybody), purpose)))
            _, export = exported(store, whose(rater, scope, everybody), form, purpose)
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        return StreamingResponse(
            _lines(export),
            media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="votes-{form}.jsonl"'},
        )


def whose(rater: str, scope: str, everybody: bool) -> str | None:
    """The rater whose votes are meant; None for all raters.

    Raises:
        UserError: the scope is unknown or not allowed.
    """
    if scope not in SCOPES:
        raise UserError(f"The scope of an export is one of {', '.join(SCOPES)}.")
    if scope == "all" and not everybody:
        raise UserError("When raters log in, each of them sees their own votes only.")
    return None if everybody and scope != "mine" else rater


def exported(store: Store, rater: str | None, form: str, purpose: str) -> tuple[int, Export]:
    """The number of votes, and their rows with the counts of what is left out.

    Raises:
        UserError: the form or the purpose is unknown.
    """
    if form not in EXPORTS:
        raise UserError(f"The form of an export is one of {', '.join(EXPORTS)}.")
    votes = chosen(store, rater, purpose)
    return len(votes), EXPORTS[form](votes)


def chosen(store: Store, rater: str | None, purpose: str) -> list[Vote]:
    """The votes of a rater, or of all, for a purpose.

    Raises:
        UserError: the purpose is unknown.
    """
    if purpose not in PURPOSES:
        raise UserError(f"The purpose of an export is one of {', '.join(PURPOSES)}.")
    return store.votes(rater=rater, purpose=None if purpose == "all" else purpose)


def _zip(content: bytes) -> Response:
    """A data set as a download."""
    named = {"Content-Disposition": 'attachment; filename="votes-dataset.zip"'}
    return Response(content, media_type="application/zip", headers=named)


def link(form: str, scope: str, purpose: str) -> str:
    """The address of a download, relative to a page: a proxy may put a path before it."""
    return f"files/votes?{urlencode({'form': form, 'scope': scope, 'purpose': purpose})}"


def _lines(export: Export) -> Iterator[bytes]:
    """The rows as JSON Lines, in chunks of 64 KB or a little more."""
    chunk = bytearray()
    for row in export.rows:
        chunk += json_line(row)
        if len(chunk) >= _CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
