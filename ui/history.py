"""The history page: look through votes, correct one, take one back; files out and in."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lorarlhf.preferences.accounts import with_password
from lorarlhf.preferences.blind_comparisons import has_finished
from lorarlhf.preferences.exports import as_plain
from lorarlhf.preferences.history import (
    PAGE,
    VoteFilter,
    as_shown,
    as_stored,
    describe,
    find,
    ranking_text,
    read_ranking,
)
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.preferences.records import RANKED, Prompt, Verdict, Vote
from lorarlhf.preferences.statistics import newest_judgement
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import present_again
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.downloads import FORMS, PURPOSES, exported, link, whose
from lorarlhf_ui.judge import served
from lorarlhf_ui.markdown import as_html, prompt_html
from lorarlhf_ui.rate import LONGEST_TEXT, edited
from lorarlhf_ui.security import rater_of
from lorarlhf_ui.theme import static

View = dict[str, Any]
LONGEST_SEARCH = 200
LONGEST_EXCERPT = 160
NOT_YOURS = "the name of another rater, who logs in here"
KNOWN_FORMS = (
    "A file of votes from elsewhere: an export of these pages, TRL preferences or KTO rows, HH "
    "dialogues, ShareGPT preferences, Argilla records, or LMSYS arena records. Votes that are here "
    "already come only once."
)


class History:
    """The page's questions, as plain functions.

    Args:
        store: of the votes; one of its own, so that nobody waits for long reading.
        changed: is told the rater whose votes were changed.
        everybody: whether a rater may see the votes of others; never under a login.
    """

    def __init__(
        self, store: Store, changed: Callable[[str], None], everybody: bool = False
    ) -> None:
        self.store, self.changed, self.everybody = store, changed, everybody
        self._counted: dict[tuple[Any, ...], View] = {}

    # ---- looking

    def look(self, rater: str, data: View) -> View:
        """A page of votes, and how many there are."""
        wanted = VoteFilter(
            whose(rater, str(data.get("scope") or "mine"), self.everybody),
            str(data.get("purpose") or ""),
            str(data.get("verdict") or ""),
            str(data.get("words") or "")[:LONGEST_SEARCH],
        )
        start = data.get("start")
        found = find(self.store, wanted, start if isinstance(start, int) else 0)
        return {
            "rows": [_row(vote) for vote in found.votes],
            "start": found.start,
            "total": found.total,
            "page": PAGE,
            "everybody": self.everybody,
            "rater": rater,
        }

    def open(self, rater: str, data: View) -> View:
        """One vote whole."""
        return self._whole(rater, self._vote(rater, data))

    # ---- changing

    def correct(self, rater: str, data: View) -> View:
        """Put another verdict in a vote's place; gives the vote as it stands then.

        Raises:
            UserError: it was changed elsewhere, is another's, or the verdict does not fit.
        """
        vote = self._own_vote(rater, data)
        said = data.get("said")
        try:
            verdict = verdict_of(said if isinstance(said, dict) else {}, vote.completions)
            verdict = as_stored(verdict, vote.shown)
            if verdict == vote.verdict:
                return self._whole(rater, vote) | {"told": "Nothing was changed."}
            number = self.store.correct(vote.id, verdict)
        except ValueError as error:
            raise UserError(f"This correction can't be kept: {error}.") from error
        self.changed(vote.rater)
        kept = self._vote(rater, {"id": number})
        return self._whole(rater, kept) | {"told": "The correction is kept.", "row": _row(kept)}

    def take_back(self, rater: str, data: View) -> View:
        """Undo one vote. The rater's own answers wait to be rated again."""
        vote = self._own_vote(rater, data)
        with self.store.write():
            self.store.correct(vote.id, None)
            if vote.rater == rater:
                present_again(self.store, vote.presentation_id)
        self.changed(vote.rater)
        again = " You will be asked about these answers again." if vote.rater == rater else ""
        return {"gone": vote.id, "told": f"The vote is taken back.{again}"}

    def _vote(self, rater: str, data: View) -> Vote:
        number = data.get("id")
        vote = self.store.vote(number) if isinstance(number, int) else None
        if vote is None or not (self.everybody or vote.rater == rater):
            raise UserError("This vote was changed elsewhere in the meantime. Reload the page.")
        return vote

    def _own_vote(self, rater: str, data: View) -> Vote:
        vote = self._vote(rater, data)
        if not self._may_change(rater, vote):
            raise UserError(f"This vote is {vote.rater}'s, who logs in to change it.")
        return vote

    def _may_change(self, rater: str, vote: Vote) -> bool:
        """A rater's own votes, and those of names that nobody can log in with."""
        return vote.rater == rater or vote.rater not in with_password(self.store)

    def _whole(self, rater: str, kept: Vote) -> View:
        vote = as_shown(kept)
        said = vote.verdict
        sources = vote.sources if self._is_over(vote) else [""] * len(vote.sources)
        answers = zip(vote.completions, sources, strict=True)
        return {
            "id": vote.id,
            "prompt": prompt_html(vote.prompt),
            "answers": [{"html": as_html(text), "source": source} for text, source in answers],
            "said": describe(said, len(vote.completions)),
            "verdict": said.verdict,
            "ranking": ranking_text(said.ranking),
            "strength": said.strength or "",
            "note": said.note or "",
            "edited": said.edited or "",
            "edited_html": as_html(said.edited) if said.edited else "",
            "when": vote.created_at,
            "milliseconds": vote.milliseconds,
            "rater": "" if vote.rater == rater else vote.rater,
            "purpose": vote.purpose,
            "repeat": vote.repeats is not None,
            "yours": self._may_change(rater, vote),
        }

    def _is_over(self, vote: Vote) -> bool:
        """Whether the names may be told: in a taste test only when the rater is through with it."""
        return has_finished(self.store, vote.rater, vote.item_id)

    # ---- files

    def export(self, rater: str, data: View) -> View:
        """What a download would hold and leave out, and its address."""
        form, purpose = str(data.get("form")), str(data.get("purpose"))
        scope = str(data.get("scope") or "mine")
        name = whose(rater, scope, self.everybody)
        # Judgements are only ever added, so the newest one says whether a count still holds.
        newest = newest_judgement(self.store)
        key = (newest, name, form, purpose)
        if key not in self._counted:
            votes, export = exported(self.store, name, form, purpose)
            left = [f"{count} {reason}" for reason, count in sorted(export.left_out.items())]
            told = {"votes": votes, "rows": len(export.rows), "left_out": left}
            kept = {old: view for old, view in self._counted.items() if old[0] == newest}
            self._counted = kept | {key: told}
        about = {"link": link(form, scope, purpose), "everybody": self.everybody}
        return self._counted[key] | about

    def bring_in(self, rater: str, path: str) -> str:
        """Add the votes of a file; says how many came and what was left out.

        Under a login nobody brings votes in the name of another one who logs in.

        Raises:
            UserError: the file can't be read (file, line, field); the store is as it was.
        """
        file = Path(path)
        try:
            found = read_votes(file)
            others = set() if self.everybody else {*with_password(self.store)} - {rater}
            votes = [vote for vote in found.votes if vote.rater not in others]
            merged = merge_votes(self.store, votes)
        except UserError as error:  # the folder is one of the server's own
            raise UserError(str(error).replace(f"{file.parent}/", "")) from error
        if any(vote.rater == rater for vote in votes):
            self.changed(rater)
        left = dict(sorted(found.left_out.items()))
        left |= {NOT_YOURS: len(found.votes) - len(votes), "there already": merged.there}
        rest = "; ".join(f"{count} {reason}" for reason, count in left.items() if count)
        came = f"{merged.added} vote{'s' * (merged.added != 1)} from {file.name} came in."
        return f"{came} Left out: {rest}." if rest else came


def verdict_of(said: View, answers: Sequence[str]) -> Verdict:
    """A verdict as the page's form says it, in the order of the screen.

    Raises:
        UserError: a ranking that can't be read.
        ValueError: a text that is too long, or what no form says.
    """
    verdict = str(said.get("verdict"))
    ranked = verdict == RANKED
    return Verdict(
        verdict,
        read_ranking(str(said.get("ranking") or ""), len(answers)) if ranked else [],
        (str(said.get("strength") or "") or None) if ranked else None,
        _text(said.get("note")),
        edited(_text(said.get("edited")), answers),
    )


def _text(value: Any) -> str | None:
    text = str(value or "").strip()
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text has up to {LONGEST_TEXT} characters")
    return text or None


def _row(vote: Vote) -> View:
    """A vote as a line of the list."""
    return {
        "id": vote.id,
        "said": describe(as_shown(vote).verdict, len(vote.completions)),
        "prompt": _excerpt(vote.prompt),
        "when": vote.created_at,
        "rater": vote.rater,
        "purpose": vote.purpose,
        "noted": bool(vote.verdict.note),
        "edited": bool(vote.verdict.edited),
    }


def _excerpt(prompt: Prompt) -> str:
    """The beginning of what was asked last."""
    text = as_plain(prompt if isinstance(prompt, str) else prompt[-1:])
    line = " ".join(text[: 4 * LONGEST_EXCERPT].split())
    return line if len(line) <= LONGEST_EXCERPT else f"{line[: LONGEST_EXCERPT - 1]}…"


# ---- the page


def history_page(store: Store, changed: Callable[[str], None], everybody: bool = False) -> None:
    """Put the page's components into the Blocks that are being built; arguments as `History`."""
    history = History(store, changed, everybody)
    with gr.Accordion("Download votes", open=False, elem_id="votes-out"):
        gr.HTML(
            html_template=_with_options(static("export.html")),
            js_on_load=static("export.js"),
            server_functions=[served("export", history.export)],
            apply_default_css=False,
            elem_id="export",
        )
    with gr.Accordion("Bring in votes from a file", open=False, elem_id="votes-in"):
        _importing(history)
    questions = ("look", "open", "correct", "take_back")
    gr.HTML(
        html_template=static("history.html"),
        js_on_load=static("reach.js") + static("history.js"),
        server_functions=[served(name, getattr(history, name)) for name in questions],
        apply_default_css=False,
        elem_id="history",
    )


def _importing(history: History) -> None:
    gr.Markdown(KNOWN_FORMS)
    upload = gr.UploadButton(
        "Choose a file",
        file_types=[".jsonl", ".json", ".csv", ".parquet"],
        size="sm",
        elem_id="import-file",
    )
    said = gr.HTML(elem_id="import-said", apply_default_css=False)

    def bring_in(path: str, request: gr.Request) -> str:
        try:
            rater = rater_of(request)
            if rater is None:
                raise UserError("You are not logged in any more. Reload the page.")
            kind, text = "done", history.bring_in(rater, path)
        except UserError as error:
            kind, text = "warn", str(error)
        finally:
            Path(path).unlink(missing_ok=True)  # the votes are in the store now, or not wanted
        role = "status" if kind == "done" else "alert"
        return f'<p class="told" role="{role}" data-kind="{kind}">{html.escape(text)}</p>'

    came = upload.upload(bring_in, upload, said, api_visibility="private", concurrency_limit=None)
    came.then(None, js=LOOK_AGAIN, api_visibility="private")


LOOK_AGAIN = "() => { document.dispatchEvent(new Event('lorarlhf-votes')); return []; }"


def _with_options(template: str) -> str:
    """The export's fields with the forms and purposes that there are."""
    for place, names in (("FORMS", FORMS), ("PURPOSES", PURPOSES)):
        options = (
            f'<option value="{html.escape(name)}">{html.escape(text)}</option>'
            for name, text in names.items()
        )
        template = template.replace(place, "".join(options))
    return template
