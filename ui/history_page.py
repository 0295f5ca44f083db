"""The History page: the list of votes, downloads and imports."""

import html
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.downloads import DATASET, DATASET_WORDS, FORMS, PURPOSES
from lorarlhf_ui.events import allowed, served
from lorarlhf_ui.history import History
from lorarlhf_ui.reward_role import RewardRole
from lorarlhf_ui.theme import static

KNOWN_FORMS = (
    "A file with votes: an export of these pages, TRL preferences or KTO rows, HH dialogues, "
    "ShareGPT preferences, Argilla records, arena records, Label Studio's pairwise JSON, "
    "OpenAssistant trees, UltraFeedback, or Open WebUI's feedback. A chat of SillyTavern or "
    "text-generation-webui gives answers to rate. What is in the store already is not added again."
)
SCRIPTS = ("reach.js", "drafts.js", "raw.js", "heat_map.js", "history.js")
"""They run as one script, in this order."""
RELOAD = "() => { document.dispatchEvent(new Event('lorarlhf-votes')); return []; }"


def history_page(
    store: Store,
    changed: Callable[[str], None],
    everybody: bool = False,
    reward: RewardRole | None = None,
    dataset: bool = False,
) -> None:
    """Put the page's components into the Blocks that are being built.

    The other arguments are those of `History`.

    Args:
        dataset: whether votes can be downloaded as a data set.
    """
    history = History(store, changed, everybody, reward)
    with gr.Accordion("Download votes", open=False, elem_id="votes-export"):
        gr.HTML(
            html_template=_with_options(static("export.html"), dataset),
            js_on_load=static("export.js"),
            server_functions=[served("export", history.export)],
            apply_default_css=False,
            elem_id="export",
        )
    with gr.Accordion("Import votes from a file", open=False, elem_id="votes-import"):
        _import(history)
    requests = ("search", "open", "shares", "correct", "undo")
    gr.HTML(
        html_template=static("history.html"),
        js_on_load="".join(static(name) for name in SCRIPTS),
        server_functions=[served(name, getattr(history, name)) for name in requests],
        apply_default_css=False,
        elem_id="history",
    )


def _import(history: History) -> None:
    gr.Markdown(KNOWN_FORMS)
    skip = gr.Checkbox(
        label="Leave out rows that can't be read, and name them", elem_id="import-skip"
    )
    upload = gr.UploadButton(
        "Choose a file",
        file_types=[".jsonl", ".json", ".csv", ".parquet"],
        size="sm",
        elem_id="import-file",
    )
    message = gr.HTML(elem_id="import-message", apply_default_css=False)

    def import_file(path: str, skip_bad: bool, request: gr.Request) -> str:
        try:
            kind, text = "done", history.import_file(allowed(request), path, skip_bad)
        except UserError as error:
            kind, text = "warn", str(error)
        finally:
            Path(path).unlink(missing_ok=True)  # Gradio's copy of the upload
        role = "status" if kind == "done" else "alert"
        return f'<p class="import-result" role="{role}" data-kind="{kind}">{html.escape(text)}</p>'

    uploaded = upload.upload(
        import_file, [upload, skip], message, api_visibility="private", concurrency_limit=None
    )
    uploaded.then(None, js=RELOAD, api_visibility="private")


def _with_options(template: str, dataset: bool) -> str:
    """The export's fields with the choices of forms and purposes."""
    forms = FORMS | ({DATASET: DATASET_WORDS} if dataset else {})
    for placeholder, names in (("FORMS", forms), ("PURPOSES", PURPOSES)):
        options = (
            f'<option value="{html.escape(name)}">{html.escape(text)}</option>'
            for name, text in names.items()
        )
        template = template.replace(placeholder, "".join(options))
    return template
