"""`lorarlhf serve`: the endpoint from its start to Ctrl-C."""

import asyncio
import contextlib
import re
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn

from lorarlhf.project import device_queue
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.sockets import is_loopback, listen
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.serve.app import Endpoint, application
from lorarlhf.serve.engine import CLOSED, FAILED, READY, RESTING, STARTING, Engine
from lorarlhf.serve.guard import Access
from lorarlhf.serve.key import FILE, own_key, read_key
from lorarlhf.serve.models import Models
from lorarlhf.serve.remembered import Remembered

LOOK_SECONDS = 0.5
GRACE = 5.0
"""Seconds that running answers get at the end, and when a training needs the memory."""
STILL_SECONDS = 10.0
"""How often a line says that the base is still being loaded."""
RESTS = (
    "The model rests while a training has the device. It comes back by itself afterwards; "
    "`lorarlhf jobs` shows what runs."
)
UNEXPECTED = "The endpoint has ended after an unexpected error, which stands above."

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*\s]+")


@dataclass(frozen=True)
class Options:
    """What the command line says; see `lorarlhf serve --help`."""

    target: str
    host: str
    port: int
    key_file: str | None = None
    origins: tuple[str, ...] = ()
    feedback: bool = True
    rows: int = 16
    waiting: int = 64
    sets: tuple[str, ...] = ()


def serve(options: Options) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the options do not go together, the port is in use, or the base can't be loaded.
    """
    _check(options)
    models = Models(options.target)
    inherited = models.inherited()
    sockets = listen(options.host, options.port, "The endpoint")
    try:
        access = Access(_key(options, models), frozenset(options.origins))
        settings = partial(resolve, "serve", sets=options.sets, inherited=inherited)
        remembered = store = None
        if options.feedback and models.project is not None:
            remembered = Remembered(models.project.folder)
            store = models.project.store()
        engine = Engine(settings, options.rows, options.waiting)
        server = Server(Endpoint(engine, models, remembered, store), access, sockets, options.host)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets)
    finally:
        for one in sockets:
            one.close()
    if server.failure:
        raise UserError(server.failure)
    log_to_stderr("The endpoint is closed.")


def _check(options: Options) -> None:
    for name, value in (("--rows", options.rows), ("--waiting", options.waiting)):
        if value < 1:
            raise UserError(f"{name} is 1 or more, not {value}.")
    for origin in options.origins:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors {origin} is no origin. Give the address of the page as the browser shows "
                "it, without a path: --cors http://localhost:3000"
            )


def _key(options: Options, models: Models) -> str:
    """The key that requests need; "" for none."""
    if options.key_file is not None:
        return read_key(Path(options.key_file))
    if is_loopback(options.host):
        return ""
    if models.project is None:
        raise UserError(
            f"With --host {options.host} others reach the endpoint, so it needs a key, and a run "
            "outside of a project has no place to keep one. Name a file with --key-file."
        )
    key, new = own_key(models.project.folder)
    place = models.project.folder / FILE
    if new:
        log_to_stderr(f"The key, which is shown only now and kept in {place}: {key}")
    else:
        log_to_stderr(f"The key is in {place}.")
    return key


class Server(uvicorn.Server):
    """uvicorn's server, with the model's life around it.

    Attributes:
        failure: why it ended by itself, or "".
    """

    def __init__(
        self, endpoint: Endpoint, access: Access, sockets: Sequence[socket.socket], host: str
    ) -> None:
        super().__init__(
            uvicorn.Config(
                application(endpoint, access),
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
            )
        )
        self.endpoint, self.engine, self.failure = endpoint, endpoint.engine, ""
        self._keyed = bool(access.key)
        self._address = _address(host, sockets[0].getsockname()[1])
        self._everybody = host.strip("[]") in ("0.0.0.0", "::")
        self._registered: Path | None = None
        self._said = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept requests, and begin to load the base."""
        await super().startup(sockets)
        self._watching = asyncio.create_task(self._watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers come to their end, for a moment; then close."""
        self._watching.cancel()
        if self.engine.state in (STARTING, READY):
            log_to_stderr("Closing: running answers get some seconds. Ctrl-C again ends them.")
        await self.engine.close(GRACE, hurry=lambda: self.force_exit)
        self._unregister()
        await super().shutdown(sockets)

    # ---- the model's life

    async def _watch(self) -> None:
        """Look after the model; an error that nobody expected ends the server, and says so."""
        try:
            await self._follow()
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            self.failure, self.should_exit = UNEXPECTED, True

    async def _follow(self) -> None:
        """Load the base, rest while a job has the device, and say what happens."""
        log_to_stderr("Loading the model's libraries ...")
        loaded_since, still = 0.0, STILL_SECONDS
        while self.engine.state != CLOSED:
            with contextlib.suppress(OSError, UserError):  # the cache folder; it is tried again
                await self._make_room()
            if self.engine.state == FAILED:
                self.failure, self.should_exit = self.engine.message, True
                return
            ready = self.engine.state == READY
            if ready and not self._said:
                self._announce()
            self._said = ready
            loaded_since = loaded_since + LOOK_SECONDS if self.engine.state == STARTING else 0.0
            if loaded_since >= still:
                log_to_stderr(f"Still loading, for {loaded_since:.0f} seconds ...")
                still = loaded_since + STILL_SECONDS
            self.engine.changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.engine.changed.wait(), LOOK_SECONDS)

    async def _make_room(self) -> None:
        """Let the model rest or wake, as the queue of the machine's device says."""
        wanted = bool(device_queue.queue())
        if wanted and self.engine.state in (STARTING, READY):
            log_to_stderr(RESTS)
            await self.engine.rest(RESTS, GRACE)
        elif wanted and self.engine.state == RESTING and self.engine.message != RESTS:
            log_to_stderr(RESTS)
            self.engine.message = RESTS
        elif not wanted and self.engine.state == RESTING:
            self.engine.wake()
        self._register()

    def _register(self) -> None:
        """Note in the machine's list whether this server has memory, for jobs that need it."""
        if self.engine.state not in (STARTING, READY):
            self._unregister()
        elif self._registered is None or not self._registered.exists():
            project = self.endpoint.models.project
            folder = project.folder.resolve() if project else Path.cwd()
            self._registered = device_queue.register_model(folder)

    def _unregister(self) -> None:
        if self._registered is not None:
            self._registered.unlink(missing_ok=True)
            self._registered = None

    def _announce(self) -> None:
        about, names = self.engine.about, self.endpoint.models.names()
        key = "the key" if self._keyed else "any (none is needed)"
        log_to_stderr(
            f"{about['base']} on {about['device']} answers. Ctrl-C ends it. For a front end:"
        )
        log_to_stderr(f"base URL {self._address}/v1 | API key {key} | models {', '.join(names)}")
        if self._everybody:
            log_to_stderr("Others name this machine by its own address, instead of 127.0.0.1.")


def _address(host: str, port: int) -> str:
    """The address as a program of this machine uses it."""
    name = host.strip("[]")
    if name in ("0.0.0.0", "::", "localhost"):
        name = "127.0.0.1"
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
