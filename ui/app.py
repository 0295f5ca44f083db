"""`lorarlhf ui`: builds the pages and serves them."""

import contextlib
import socket
import threading
import webbrowser
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lorarlhf_ui.gradio_startup import without_apps  # isort: skip  (before gradio)

import fastapi
import gradio as gr
import uvicorn

from lorarlhf.preferences import accounts
from lorarlhf.preferences.records import is_name
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import VOTES, Project, project_settings
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf_ui.backfill import FeatureBackfill
from lorarlhf_ui.chat import Conversations
from lorarlhf_ui.chat_page import chat_page
from lorarlhf_ui.compare import Comparisons
from lorarlhf_ui.compare_page import compare_page
from lorarlhf_ui.downloads import add_files
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.history_page import history_page
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.network import addresses, allowed_hosts, qr_lines
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import Ratings
from lorarlhf_ui.rate_page import rate_page
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, rater_of
from lorarlhf_ui.settings_page import settings_page
from lorarlhf_ui.theme import static, theme

PAGES = ("/", "/chat", "/compare", "/history", "/settings")
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

    def close(self) -> None:
        """Stop what runs in the background."""
        self.prefetch.close()
        self.comparisons.close()
        self.engine.close()
        self.store.checkpoint()  # the other connections stay open until the process ends
        self.store.close()


def open_pages(project: Project, settings: Callable[[], Settings] | None) -> Pages:
    """Open a project for the pages.

    Args:
        settings: see `Engine`. The base is loaded in the background; None for no model.
    """
    store = project.store()
    states = HiddenStates(project.folder / FILE)
    engine = Engine(
        settings,
        on_ready=lambda about: use_feature_space(engine, states, about),
        on_failed=lambda message: log_to_stderr(f"No model can answer: {message}"),
    )
    meter = Meter(Store(project.folder / VOTES), states, FeatureBackfill(engine, states).fetch)
    prefetch = Prefetch(project, project.store(), engine, states)
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
    """The pages as Gradio Blocks."""
    with gr.Blocks(title="lorarlhf", analytics_enabled=False) as blocks:
        gr.Navbar(main_page_name="Rate")
        rate_page(pages.ratings)
    with blocks.route("Chat", "/chat"):
        gr.Navbar(main_page_name="Rate")
        chat_page(pages.conversations)
    with blocks.route("Compare", "/compare"):
        gr.Navbar(main_page_name="Rate")
        compare_page(pages.comparisons)
    with blocks.route("History", "/history"):
        gr.Navbar(main_page_name="Rate")
        # A store of its own, so that votes do not wait while a long list is read.
        history_page(pages.project.store(), pages.meter.changed, everybody=not access.login)
    with blocks.route("Settings", "/settings"):
        gr.Navbar(main_page_name="Rate")
        settings_page(pages.prefetch)
    return blocks


def web_app(pages: Pages, access: Access) -> Guard:
    """The pages behind the guard, as an ASGI application."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Before Gradio is mounted, since it answers every other path.
    add_files(app, pages.project.store(), everybody=not access.login)
    with without_apps():
        blocks = build(pages, access)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth_dependency=rater_of,
        theme=theme(),
        css=static("pages.css"),
        head=HEAD,
        **SAFE_LAUNCH,
    )
    return Guard(app, pages.store, access, PAGES)


def main(args: Namespace) -> dict[str, Any]:
    """Serve a project's pages until Ctrl-C."""
    project = Project(args.project)
    if not is_name(args.rater):
        raise UserError("--rater is a name in one line, without spaces at its ends.")
    sock = listen("0.0.0.0" if args.lan else "127.0.0.1", args.port)  # fails before the slow part
    settings = None
    if not args.no_model:
        settings = partial(resolve, "ui", sets=args.set, inherited=project_settings(project))
    with hold(project.folder, "Its pages are open already: use those, or end that process first."):
        _run(project, settings, sock, args)
    return {"project": str(project.folder), "votes": project.store().count()}


def _run(
    project: Project, settings: Callable[[], Settings] | None, sock: socket.socket, args: Namespace
) -> None:
    pages = open_pages(project, settings)
    try:
        if args.lan and not accounts.with_password(pages.store):
            raise UserError(
                "With --lan everybody in the network can open the pages, so raters need passwords. "
                f"Add one first: `lorarlhf raters {args.project} --add NAME`."
            )
        access = Access(hosts=allowed_hosts(args.lan), login=args.lan, default_rater=args.rater)
        _serve(web_app(pages, access), sock, args)
    finally:
        pages.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections from now on.

    Raises:
        UserError: the port is in use or is not a valid port.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        raise UserError(
            f"The pages can't use port {port} ({getattr(error, 'strerror', None) or error}). "
            "They may be open already. Choose another port with --port N; 0 takes a free one."
        ) from error
    return sock


def _serve(app: Guard, sock: socket.socket, args: Namespace) -> None:
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    _announce(sock.getsockname()[1], args)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[sock])
    log_to_stderr("The pages are closed. All votes are saved.")


def _announce(port: int, args: Namespace) -> None:
    local = f"http://127.0.0.1:{port}"
    log_to_stderr(f"The pages are at {local} (Ctrl-C ends them).")
    if args.lan:
        for address in addresses():
            url = f"http://{address}:{port}"
            log_to_stderr(f"For others in this network: {url}\n{qr_lines(url)}")
    if not args.no_browser:
        threading.Timer(0.5, webbrowser.open, (local,)).start()
