"""`lorarlhf ui`: builds the pages and serves them."""

import contextlib
import socket
import threading
import webbrowser
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lorarlhf_ui.gradio_startup import without_apps  # isort: skip  (before gradio)

import fastapi
import gradio as gr
import uvicorn

from lorarlhf.preferences import accounts
from lorarlhf.preferences.queue import open_answers
from lorarlhf.preferences.records import is_name
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import VOTES, Project, project_settings
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.sockets import listen
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf_ui.backfill import FeatureBackfill
from lorarlhf_ui.chat import Conversations
from lorarlhf_ui.chat_page import chat_page
from lorarlhf_ui.compare import Comparisons
from lorarlhf_ui.compare_page import compare_page
from lorarlhf_ui.downloads import DatasetMaker, add_files
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_rest import EngineRest, resting_words
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.history_page import history_page
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.insights_page import insights_page
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.network import (
    addresses,
    allowed_hosts,
    in_container,
    qr_lines,
    root_path,
)
from lorarlhf_ui.page_frame import PAGES
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import Ratings
from lorarlhf_ui.rate_page import rate_page
from lorarlhf_ui.runs import Runs
from lorarlhf_ui.runs_page import runs_page
from lorarlhf_ui.runs_report import add_report
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, rater_of
from lorarlhf_ui.settings_page import settings_page
from lorarlhf_ui.theme import static, theme
from lorarlhf_ui.train import Training
from lorarlhf_ui.train_page import train_page

STYLES = (
    *("pages.css", "text.css", "heat_map.css", "insights.css", "train.css", "runs.css"),
    "welcome.css",
)
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


@dataclass
class Pages:
    """What the pages share: the store, the engine, and what runs in the background."""

    project: Project
    store: Store
    states: HiddenStates
    engine: Engine
    meter: Meter
    prefetch: Prefetch
    ratings: Ratings
    conversations: Conversations
    comparisons: Comparisons
    backfill: FeatureBackfill
    rest: EngineRest
    training: Training
    dataset: DatasetMaker | None = None

    def open_answers(self, rater: str) -> list[str]:
        """The answers that a rater sees and has not voted on."""
        return [*open_answers(self.store, rater), *self.conversations.open_answers(rater)]

    def close(self) -> None:
        """Stop what runs in the background."""
        self.prefetch.close()
        self.comparisons.close()
        self.engine.close()
        self.rest.close()
        self.store.checkpoint()  # the other connections stay open until the process ends
        self.store.close()


def open_pages(
    project: Project,
    settings: Callable[[], Settings] | None,
    stages: Iterable[Stage] = (),
    dataset: DatasetMaker | None = None,
) -> Pages:
    """Open a project for the pages.

    Args:
        settings: see `Engine`. The base is loaded in the background; None for no model.
        stages: what can be trained (see `Training`).
        dataset: see `add_files`.
    """
    store = project.store()
    states = HiddenStates(project.folder / FILE)
    engine = Engine(
        settings,
        on_ready=lambda about: use_feature_space(engine, states, about),
        on_failed=lambda message: log_to_stderr(f"No model can answer: {message}"),
        resting=resting_words(),
    )
    prefetch = Prefetch(project, project.store(), engine, states)
    backfill = FeatureBackfill(engine, states)
    meter = Meter(Store(project.folder / VOTES), states, backfill.fetch, prefetch.learn)
    return Pages(
        project,
        store,
        states,
        engine,
        meter,
        prefetch,
        Ratings(store, prefetch, meter),
        Conversations(store, prefetch, meter),
        Comparisons(store, prefetch),
        backfill,
        EngineRest(engine, project.folder.resolve(), woken=prefetch.wake),
        Training(project, stages),
        dataset,
    )


def use_feature_space(engine: Engine, states: HiddenStates, about: dict[str, Any]) -> None:
    """Keep hidden states of the loaded base from now on, and get its style axes if needed."""
    states.use(about["space"])
    if states.axes() is None:
        job = engine.axes()

        def keep() -> None:
            with contextlib.suppress(UserError):  # without the axes the meter learns more slowly
                states.put_axes(job.wait())

        threading.Thread(target=keep, daemon=True, name="style axes").start()


def build(pages: Pages, access: Access) -> gr.Blocks:
    """The pages as Gradio Blocks; their tabs are in the frame around them (`page_frame.py`)."""
    with gr.Blocks(title="lorarlhf", analytics_enabled=False) as blocks:
        rate_page(pages.ratings, access.login)
    with blocks.route("Chat", "/chat", show_in_navbar=False):
        chat_page(pages.conversations)
    with blocks.route("Compare", "/compare", show_in_navbar=False):
        compare_page(pages.comparisons)
    with blocks.route("History", "/history", show_in_navbar=False):
        # A store of its own, so that votes do not wait while a long list is read.
        history_page(
            pages.project.store(),
            pages.meter.changed,
            everybody=not access.login,
            reward=pages.conversations.reward,
            dataset=pages.dataset is not None,
        )
    with blocks.route("Insights", "/insights", show_in_navbar=False):
        insights_page(
            Insights(
                pages.project.store(),
                pages.states,
                pages.engine,
                pages.backfill.fetch,
                everybody=not access.login,
                open_answers=pages.open_answers,
            )
        )
    with blocks.route("Runs", "/runs", show_in_navbar=False):
        runs_page(Runs(pages.project, pages.project.store()))
    with blocks.route("Train", "/train", show_in_navbar=False):
        train_page(pages.training)
    with blocks.route("Settings", "/settings", show_in_navbar=False):
        settings_page(pages.prefetch)
    return blocks


def web_app(pages: Pages, access: Access) -> Guard:
    """The pages behind the guard, as an ASGI application."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Before Gradio is mounted, since it answers every other path.
    add_files(app, pages.project.store(), not access.login, pages.dataset)
    add_report(app, pages.project)
    with without_apps():
        blocks = build(pages, access)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth_dependency=rater_of,
        theme=theme(),
        css="".join(map(static, STYLES)),
        head=HEAD,
        root_path=access.root or None,
        **SAFE_LAUNCH,
    )
    return Guard(app, pages.store, access, PAGES)


def main(args: Namespace) -> dict[str, Any]:
    """Serve a project's pages until Ctrl-C."""
    project = Project(args.project)
    if not is_name(args.rater):
        raise UserError("--rater is a name in one line, without spaces at its ends.")
    allowed_hosts(args.lan, args.allowed_host)  # fails before the slow part, as the next lines do
    root_path(args.root_path)
    sockets = listen("0.0.0.0" if args.lan else "127.0.0.1", args.port, "The pages")
    settings = None
    if not args.no_model:
        settings = partial(resolve, "ui", sets=args.set, inherited=project_settings(project))
    with hold(project.folder, "Its pages are open already: use those, or end that process first."):
        _run(project, settings, sockets, args)
    return {"project": str(project.folder), "votes": project.store().count()}


def _run(
    project: Project,
    settings: Callable[[], Settings] | None,
    sockets: list[socket.socket],
    args: Namespace,
) -> None:
    handed_over = (getattr(args, "stages", ()), getattr(args, "dataset", None))
    pages = open_pages(project, settings, *handed_over)
    try:
        access = _access(pages, args)
        if access.login:
            _announce_owners(pages.store, args.project)
        _serve(web_app(pages, access), sockets, args)
    finally:
        pages.close()


def _access(pages: Pages, args: Namespace) -> Access:
    """Who may use the pages.

    Raises:
        UserError: others can open the pages, and no rater has a password.
    """
    proxied = bool(args.allowed_host or args.root_path)
    if (args.lan or proxied) and not accounts.with_password(pages.store):
        option = "--lan" if args.lan else "--allowed-host or --root-path"
        where = "in the network" if args.lan else "who reaches the proxy"
        raise UserError(
            f"With {option} everybody {where} can open the pages, so raters need passwords. "
            f"Add yourself first: `lorarlhf raters {args.project} --add NAME --role owner`."
        )
    return Access(
        hosts=allowed_hosts(args.lan, args.allowed_host),
        login=args.lan or proxied,
        default_rater=pages.store.rater_name(args.rater),
        project=pages.project.folder.resolve().name,
        root=root_path(args.root_path),
        proxied=proxied,
    )


def _announce_owners(store: Store, project: str) -> None:
    """Say who may change the project on the pages: where there were no roles, all who log in."""
    if names := accounts.owners(store):
        log_to_stderr(f"Owners of the project: {', '.join(names)}. The others can only rate.")
    else:
        log_to_stderr(
            "None of the raters is an owner, so nobody can change the settings on the pages. "
            f"`lorarlhf raters {project} --change NAME --role owner` makes one."
        )


def _serve(app: Guard, sockets: list[socket.socket], args: Namespace) -> None:
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    _announce(sockets[0].getsockname()[1], args)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=sockets)
    log_to_stderr("The pages are closed. All votes are saved.")


def _announce(port: int, args: Namespace) -> None:
    local = f"http://127.0.0.1:{port}"
    log_to_stderr(f"The pages are at {local} (Ctrl-C ends them).")
    for name in args.allowed_host:
        log_to_stderr(f"Behind a proxy: https://{name}{args.root_path.rstrip('/')}/")
    if args.lan and in_container():
        log_to_stderr(
            "In a container: the pages are where its port is published, for example with `docker "
            "run -p 127.0.0.1:7860:7860` at http://127.0.0.1:7860. Other machines reach them by a "
            "name or an address that --allowed-host lists."
        )
    elif args.lan:
        for address in addresses():
            url = f"http://{address}:{port}"
            log_to_stderr(f"For others in this network: {url}\n{qr_lines(url)}")
    if not args.no_browser:
        threading.Timer(0.5, webbrowser.open, (local,)).start()
