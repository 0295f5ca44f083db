"""How fast the rating pages are: start, key to next pair, many raters at once. Real processes.

    .venv/bin/python benchmarks/rating_pages.py            # everything, about four minutes
    .venv/bin/python benchmarks/rating_pages.py --only key --votes 50000

`start` measures from the start of the command until a real Chromium shows a pair that can be voted
on. `key` measures from a key press in Chromium until the next pair is shown, and `training` does so
while a training that was started as a job computes. `raters` runs 20 logged-in HTTP clients, which
together vote five times a second, and then as fast as they can.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from lorarlhf.preferences import accounts
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.queue import next_shown
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.jobs import read_job, start_job, stop_job
from lorarlhf.project.project import Project, create

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser.chromium import FLAGS, provide

FIRST = Verdict("ranked", [[0], [1]])
TEXT = "An answer of some length, with a few sentences. It says what it says, and says it well. "
PASSWORD = "a long password"
SHOWN = ".vote-widget .answer"


def main() -> None:
    """Run the requested measurements and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(PARTS), help="measure only this")
    parser.add_argument(
        "--votes", type=int, default=50_000, help="votes that are in the store at the start"
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long the 20 raters vote")
    parser.add_argument("--runs", type=int, default=5, help="starts with and without a model")
    args = parser.parse_args()
    parts = [args.only] if args.only else list(PARTS)
    print(json.dumps({name: PARTS[name](args) for name in parts}, indent=2))


# ---- start


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the command to a pair that can be voted on."""
    found: dict[str, list[float]] = {"without_model": [], "with_small_base": []}
    with TemporaryDirectory() as folder, chromium() as browser:
        ready = project(Path(folder) / "ready", items=20)
        empty = project(Path(folder) / "empty")
        for _ in range(args.runs):
            found["without_model"].append(seconds_to_pair(browser, ready, "--no-model"))
            # This project has no prepared pairs, so the answers are streamed while the rater waits.
            found["with_small_base"].append(seconds_to_pair(browser, empty))
    return {f"{name}_s": round(median(times), 2) for name, times in found.items()}


# The page itself takes the time, because a browser's driver polls only every half second.
FIRST_TEXT = """
const look = () => {
  if (document.querySelector(".vote-widget .answer .body p:not(.faint)"))
    requestAnimationFrame(() => { window.firstText = Date.now(); });
  else requestAnimationFrame(look);
};
look();
"""


def seconds_to_pair(browser: Any, space: Project, *words: str) -> float:
    """Start the command, open its page and wait for the first answers."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(FIRST_TEXT)
    begun = time.time()
    with serving(space, *words) as url:
        page.goto(url, wait_until="commit")
        shown = page.wait_for_function("window.firstText", timeout=120_000).json_value()
        context.close()
    return shown / 1000 - begun


# ---- key to next pair


def key(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds from a key to the next pair, and for a commit, with many votes in the store."""
    with TemporaryDirectory() as folder, chromium() as browser:
        space = project(Path(folder) / "big", items=400, votes=args.votes)
        with serving(space, "--no-model") as url:
            page = browser.new_page()
            page.goto(url, wait_until="commit")
            page.locator(SHOWN).first.wait_for()
            pages = [page.evaluate(KEY_TO_NEXT) for _ in range(100)]
        commits = commit_times(space.store(), 300)
        counted = space.store().count()
    return {
        "votes": args.votes,
        "key_to_next_pair_ms": spread(pages),
        "commit_ms": spread(commits),
        "kept": counted - args.votes,
    }


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds from a key to the next pair while DPO trains the small base on all cores."""
    with TemporaryDirectory() as folder, chromium() as browser:
        space = project(Path(folder) / "busy", items=400, votes=400)
        words = ["dpo", str(space.folder), "--set", "epochs=100"]
        job = start_job(space, words, "DPO", stage="dpo")
        try:
            log = space.folder / "runs" / "0001-dpo" / "metrics.jsonl"
            wait_for(log.stat, seconds=600)
            with serving(space) as url:  # with a model, which rests
                page = browser.new_page()
                page.goto(url, wait_until="commit")
                page.locator(SHOWN).first.wait_for()
                pages = [page.evaluate(KEY_TO_NEXT) for _ in range(100)]
            steps = len(log.read_text(encoding="utf-8").splitlines())
        finally:
            while read_job(job.file).alive:
                stop_job(job)
                time.sleep(1)
    return {"key_to_next_pair_ms": spread(pages), "steps": steps}


# Runs in the page, so only the page and the server are measured: the time until the widget has
# another token and its text is drawn (two frames later).
KEY_TO_NEXT = """async () => {
  await new Promise((done) => setTimeout(done, 400));
  const root = document.querySelector(".vote-widget"), before = root.dataset.token;
  const begun = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true }));
  while (root.dataset.token === before) await new Promise((done) => setTimeout(done, 1));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - begun;
}"""


def commit_times(store: Store, count: int) -> list[float]:
    """Milliseconds to store one vote: the transaction, including the write to disk."""
    times = []
    for _ in range(count):
        shown = next_shown(store, "committer")
        if shown is None:
            break
        begun = time.perf_counter()
        store.judge(shown.presentation.token, FIRST)
        times.append(1000 * (time.perf_counter() - begun))
    return times


# ---- many raters


def raters(args: argparse.Namespace) -> dict[str, Any]:
    """20 logged-in raters: together five votes a second, then as fast as they can."""
    with TemporaryDirectory() as folder:
        space = project(Path(folder) / "many", items=20_000, raters=20)
        with serving(space, "--no-model", "--lan") as url:
            clients = [Client(url, f"rater {n}") for n in range(20)]
            calm = vote_together(clients, args.seconds, pause=len(clients) / 5)
            hurried = vote_together(clients, 10, pause=0)
        kept = space.store().count()
    acknowledged = len(calm) + len(hurried)
    return {
        "raters": len(clients),
        "votes_a_second": round(len(calm) / args.seconds, 1),
        "vote_ms": spread(calm),
        "hurried_votes_a_second": round(len(hurried) / 10, 1),
        "hurried_vote_ms": spread(hurried),
        "acknowledged": acknowledged,
        "lost": acknowledged - kept,
    }


class Client:
    """A rater's browser, as the server sees it."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        form = urllib.parse.urlencode({"name": name, "password": PASSWORD}).encode()
        self.opener.open(f"{url}/login", form, timeout=60).read()
        config = json.loads(self.opener.open(f"{url}/config", timeout=60).read())
        self.widget = next(  # of the first page; the Compare page has one as well
            part["id"]
            for part in config["components"]
            if part["props"].get("elem_id") == "vote-widget"
        )
        self.view = self.ask("begin", {})

    def ask(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the widget, as its script does."""
        body = {"component_id": self.widget, "fn_name": name, "session_hash": "x", "data": data}
        request = urllib.request.Request(
            f"{self.url}/gradio_api/component_server/",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Origin": self.url},
        )
        return json.loads(self.opener.open(request, timeout=60).read())

    def vote(self) -> float:
        """Cast one vote; returns the milliseconds until the next pair arrives."""
        begun = time.perf_counter()
        vote = {"verdict": "ranked", "ranking": [[0], [1]]}
        reply = self.ask("vote", {"token": self.view["token"], "vote": vote, "milliseconds": 900})
        if "voted" not in reply:
            raise RuntimeError(f"the vote was not stored: {reply}")
        self.view = reply
        return 1000 * (time.perf_counter() - begun)


def vote_together(clients: list[Client], seconds: float, pause: float) -> list[float]:
    """Let all clients vote at once; returns the milliseconds of every acknowledged vote."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def work(client: Client, offset: float) -> None:
        time.sleep(offset)
        while time.perf_counter() < end:
            took = client.vote()
            times.append(took)
            time.sleep(max(0.0, pause - took / 1000))

    threads = [
        threading.Thread(target=work, args=(client, n * pause / len(clients)))
        for n, client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


# ---- set-up


def project(folder: Path, items: int = 0, votes: int = 0, raters: int = 0) -> Project:
    """A new project with this many pairs to rate, stored votes and raters with logins."""
    space = create(folder)
    store = space.store()
    add_votes(
        store,
        [
            ImportedVote(
                [{"role": "user", "content": f"Question {n}?"}],
                ((f"{n} {4 * TEXT}", "base"), (f"{n} {3 * TEXT}", "runs/1")),
                FIRST,
                rater="me" if n % 2 else "another",
            )
            for n in range(votes)
        ],
    )
    with store.write():
        for n in range(items):
            prompt = [{"role": "user", "content": f"New question {n}?"}]
            store.add_item(prompt, [(f"{n} {4 * TEXT}", "base"), (f"{n} {3 * TEXT}", "runs/1")])
    for n in range(raters):
        accounts.set_password(store, f"rater {n}", PASSWORD)
    store.close()
    return space


@contextmanager
def serving(space: Project, *words: str) -> Iterator[str]:
    """Run `lorarlhf ui` in a process of its own until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lorarlhf.cli", "ui", str(space.folder), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *words],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def wait_for(ready: Callable[[], Any], seconds: float = 60) -> None:
    """Call `ready` until it raises no OSError."""
    end = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that has opened a page already."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=provide(), args=list(FLAGS))
        browser.new_page().goto("about:blank")
        yield browser
        browser.close()


def spread(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    return {
        "median": round(median(times), 1),
        "p95": round(quantiles(times, n=20)[-1], 1),
        "max": round(max(times), 1),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start": start,
    "key": key,
    "training": training,
    "raters": raters,
}

if __name__ == "__main__":
    main()
