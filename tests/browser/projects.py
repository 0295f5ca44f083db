"""Served projects that the tests of a file share, and helpers for the vote widget."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import VOTES, Project, create
from tests.browser.servers import Server, Servers

ME = "me"  # who votes where nobody logs in
# The widget takes no vote so soon after a new item: it was meant for the one that is gone.
DOUBLE_CLICK_MS = 300
FAST_BASE = ("--set", "compute_dtype=float32")


class ServedProject:
    """A project and its server.

    Attributes:
        project: its files.
        store: its votes, read beside the server.
        server: as `serve` gives it.
    """

    def __init__(self, project: Project, server: Server) -> None:
        self.project, self.store, self.server = project, project.store(), server

    @property
    def url(self) -> str:
        return self.server.url

    def forget(self) -> None:
        """As if nobody had been here: the votes become another rater's, nothing waits any more."""
        self.store.rater(ME)
        with self.store.write() as db:
            rater = db.execute("SELECT id FROM rater WHERE name = ?", (ME,)).fetchone()[0]
            db.execute("UPDATE rater SET name = ? WHERE id = ?", (f"{ME} {rater}", rater))
            db.execute("UPDATE presentation SET open = 0")
            db.execute("UPDATE item SET presented = 1, shared = 0, taste_test = NULL")
            db.execute("DELETE FROM taste_test")

    def ask(
        self,
        prompt: Any,
        texts: Sequence[str] = ("Red.", "Blue."),
        sources: Sequence[str] = ("base", "runs/0007-ppo"),
        **more: Any,
    ) -> int:
        """An item that waits for votes; its number."""
        named = [(text, sources[n % len(sources)]) for n, text in enumerate(texts)]
        return self.store.add_item(prompt, named, **more)

    def votes(self, **only: Any) -> list[Vote]:
        """The votes as they stand, of who votes in this test."""
        return self.store.votes(rater=ME, **only)

    def rows(self) -> int:
        """All rows of this rater's votes: undone ones and the undoings, too."""
        return self.store.rows(
            "SELECT count(*) FROM judgement j JOIN presentation p ON p.id = j.presentation_id "
            "JOIN rater r ON r.id = p.rater_id WHERE r.name = ?",
            (ME,),
        )[0][0]


@contextlib.contextmanager
def running(
    tmp_path_factory: pytest.TempPathFactory,
    *words: str,
    base: Path | None = None,
    runs: Any = None,
) -> Iterator[ServedProject]:
    """A new project and its server, until the end of the block.

    Args:
        *words: more of the command line.
        base: a tiny one; without it the server runs without a model.
        runs: called with the new project, to put runs into it.
    """
    folder = tmp_path_factory.mktemp("project") / "project"
    if base is None:
        project, words = create(folder), ("--no-model", *words)
    else:
        project, words = create(folder, base=str(base), bits=16), (*FAST_BASE, *words)
        with project.settings_file.open("a", encoding="utf-8") as file:
            file.write("lora_rank: 4\n")
    if runs is not None:
        runs(project)
    servers = Servers(lambda: tmp_path_factory.mktemp("server"))
    try:
        yield ServedProject(project, servers(folder, *words))
    finally:
        for server in servers.started:
            server.end()


def stored(project: Project) -> Store:
    """The votes of a project, in a new connection."""
    return Store(project.folder / VOTES)


# ---- the widget


def judge(page: Page) -> Locator:
    """The widget that takes votes."""
    return page.locator(".vote-widget")


def part(page: Page, name: str) -> Locator:
    """A part of the widget, by its name in judge.html."""
    return page.locator(f'.vote-widget [data-part="{name}"]')


def shows(page: Page, prompt: str) -> None:
    """Wait until this prompt is asked and a vote on it is taken."""
    expect(part(page, "prompt")).to_have_text(prompt)
    expect(part(page, "prompt")).to_be_visible()
    ready(page)


def ready(page: Page) -> None:
    """Wait until the widget takes a vote on what it shows."""
    expect(judge(page)).not_to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(DOUBLE_CLICK_MS + 30)  # it gives no sign when this time is over


def ends(page: Page, text: str = "There are no answers left to rate") -> None:
    """Wait until there is nothing to vote on, and the page says why."""
    expect(part(page, "empty")).to_contain_text(text)
    expect(part(page, "item")).to_be_hidden()


def bodies(page: Page) -> list[str]:
    """The answers in the order of the screen."""
    return page.locator(".vote-widget .answer .body").all_inner_texts()


def press(page: Page, name: str) -> None:
    """Click the vote button that does this, as `first` or `tie`."""
    page.locator(f'.vote-widget [data-do="{name}"]').click()


# ---- runs


def put_runs(project: Project, base: Path, names: Sequence[str], tokens: int) -> None:
    """Finished runs with random adapters that differ; a `-reward` run has a reward role.

    Args:
        tokens: how long the answers are that the Rate and Compare pages have written.
    """
    import torch

    from lorarlhf import Backbone

    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    backbone.add_role("reward")
    torch.nn.init.normal_(backbone.heads["reward"].weight)
    for name in names:
        stage = name.split("-")[1]
        role = "reward" if stage == "reward" else "policy"
        for weight in backbone.parameters_of("policy"):
            torch.nn.init.normal_(weight, std=0.3)
        folder = project.folder / "runs" / name
        backbone.save(role, folder / "adapters" / role)
        (folder / "run.json").write_text(json.dumps({"status": "done", "stage": stage}))
    with project.store().write() as db:
        db.execute(
            "INSERT INTO setting VALUES ('collect', ?)", (json.dumps({"max_new_tokens": tokens}),)
        )
