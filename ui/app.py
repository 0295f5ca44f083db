"""The rating pages: what they are made of, and how they are served."""

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
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf_ui import theme as look
from lorarlhf_ui.backfill import FeatureBackfill
from lorarlhf_ui.chat import Talking
from lorarlhf_ui.chat_page import chat_page
from lorarlhf_ui.compare import Tasting
from lorarlhf_ui.compare_page import compare_page
from lorarlhf_ui.downloads import add_files
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.history import history_page
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.network import addresses, allowed_hosts, qr_lines
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import Collecting
from lorarlhf_ui.rate_page import collect_page
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, rater_of
from lorarlhf_ui.settings_page import settings_page

PAGES = ("/", "/chat", "/compare", "/history", "/settings")
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


@dataclass
class Pages:
    """What all pages share: the store, the engine, and what works in the background."""

    space: Project
    store: Store
    states: HiddenStates
    engine: Engine
    meter: Meter
    ahead: Prefetch
    collecting: Collecting
    talking: Talking
    tasting: Tasting

    def close(self) -> None:
        """End the background's work."""
        self.ahead.close()
        self.tasting.close()
        self.engine.close()
        self.store.close()


def open_pages(space: Project, settings: Callable[[], Settings] | None) -> Pages:
    """Open a project for the pages; the base is loaded in the background (None: no model)."""
    store = space.store()
    states = HiddenStates(space.folder / FILE)
    engine = Engine(
        settings,
        on_ready=lambda about: learn_space(engine, states, about),
        on_failed=lambda message: log_to_stderr(f"There is no model to answer: {message}"),
    )
    meter = Meter(Store(space.folder / VOTES), states, FeatureBackfill(engine, states).fetch)
    ahead = Prefetch(space, space.store(), engine, states)
    collecting, talking = Collecting(store, ahead, meter), Talking(store, ahead, meter)
    tasting = Tasting(store, ahead)
    return Pages(space, store, states, engine, meter, ahead, collecting, talking, tasting)


def learn_space(engine: Engine, states: HiddenStates, about: dict[str, Any]) -> None:
    """Keep hidden states of this base from now on; its style axes are asked for once."""
    states.use(about["space"])
    if states.axes() is None:
        job = engine.axes()

        def keep() -> None:
            with contextlib.suppress(UserError):  # without them the meter learns more slowly
                states.put_axes(job.wait())

        threading.Thread(target=keep, daemon=True, name="style axes").start()


def build(pages: Pages, access: Access) -> gr.Blocks:
    """The pages themselves."""
    with gr.Blocks(title="lorarlhf", analytics_enabled=False) as blocks:
        gr.Navbar(main_page_name="Rate")
        collect_page(pages.collecting)
    with blocks.route("Chat", "/chat"):
        gr.Navbar(main_page_name="Rate")
        chat_page(pages.talking)
    with blocks.route("Compare", "/compare"):
        gr.Navbar(main_page_name="Rate")
        compare_page(pages.tasting)
    with blocks.route("History", "/history"):
        gr.Navbar(main_page_name="Rate")
        # A store of its own: nobody's vote waits until a long list was read.
        history_page(pages.space.store(), pages.meter.changed, everybody=not access.login)
    with blocks.route("Settings", "/settings"):
        gr.Navbar(main_page_name="Rate")
        settings_page(pages.ahead)
    return blocks


def web_app(pages: Pages, access: Access) -> Guard:
    """The pages behind the guard, as an ASGI application."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app, pages.space.store(), everybody=not access.login)  # before Gradio, which takes /
    with without_apps():
        blocks = build(pages, access)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth_dependency=rater_of,
        theme=look.theme(),
        css=look.static("pages.css"),
        head=HEAD,
        **SAFE_LAUNCH,
    )
    return Guard(app, pages.store, access, PAGES)


def main(args: Namespace) -> dict[str, Any]:
    """Serve a project's pages until Ctrl-C."""
    space = Project(args.project)
    if not is_name(args.rater):
        raise UserError("--rater is a name in one line, without blanks at its ends.")
    sock = listen("0.0.0.0" if args.lan else "127.0.0.1", args.port)  # before the slow part
    settings = None
    if not args.no_model:
        settings = partial(resolve, "ui", sets=args.set, inherited=project_settings(space))
    pages = open_pages(space, settings)
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
    return {"project": str(space.folder), "votes": space.store().count()}


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on.

    Raises:
        UserError: the port is taken, or can't be one.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        raise UserError(
            f"The pages can't be at port {port} ({getattr(error, 'strerror', None) or error}). "
            "Perhaps they are open already. Name another port with --port N; 0 takes a free one."
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
    log_to_stderr("The pages are closed. All votes are kept.")


def _announce(port: int, args: Namespace) -> None:
    local = f"http://127.0.0.1:{port}"
    log_to_stderr(f"The pages are at {local} (Ctrl-C ends them).")
    if args.lan:
        for address in addresses():
            url = f"http://{address}:{port}"
            log_to_stderr(f"For others in this network: {url}\n{qr_lines(url)}")
    if not args.no_browser:
        threading.Timer(0.5, webbrowser.open, (local,)).start()
