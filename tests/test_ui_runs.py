"""The Runs page: its parts as safe HTML, curves, changes, reports, and its speed."""

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import fastapi
from starlette.testclient import TestClient

from lorarlhf.preferences.accounts import log_in, set_password
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.project.project import Project
from lorarlhf.project.run_labels import set_dropped, write_title
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.conversation import Turn
from lorarlhf_ui.engine_client import BASE
from lorarlhf_ui.login import COOKIE
from lorarlhf_ui.models import Models
from lorarlhf_ui.runs import Runs
from lorarlhf_ui.runs_curves import read_curves, read_series
from lorarlhf_ui.runs_html import ticks
from lorarlhf_ui.runs_report import add_report
from lorarlhf_ui.security import Access, Guard
from tests.pages import Bench, FakeEngine
from tests.run_folders import ppo_rows, write_run

pytest_plugins = ("tests.pages",)

HOSTILE = "<img src=x onerror=alert(1)>"
PASSWORD = "quiet harbour 7"
HERE = "http://localhost:7860"


class Tags(HTMLParser):
    """The tags and the texts of some HTML, whose tags must close in order."""

    VOID = {"br", "input"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.depths: list[int] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.depths.append(self.open.count("ul"))


@pytest.fixture
def runs(project: Project) -> Runs:
    """A supervised run, a reward model, and two PPO runs of different lengths."""
    write_run(project, "0001-sft", summary={"loss_last": 1.5})
    reward = [{"stage": "reward_curve", "step": n, "heldout_accuracy": 0.5} for n in (10, 20)]
    reward.append({"stage": "reward", "step": 3, "eval_accuracy": 0.75, "epoch": 1})
    write_run(project, "0002-reward", role="reward", rows=reward, config={"init": "0001-sft"})
    sources = {"init": "0001-sft", "reward": "0002-reward"}
    write_run(project, "0003-ppo", config=sources, rows=ppo_rows(8), summary={"updates": 8})
    write_run(project, "0004-ppo", rows=ppo_rows(4, start=2.0), status="stopped")
    return Runs(project, project.store())


def table(runs: Runs) -> str:
    return str(runs.runs("me", {})["table"])


# ---- the table, the tree and the details


def test_the_table(runs: Runs) -> None:
    view = runs.runs("me", {})
    assert view["names"] == ["0004-ppo", "0003-ppo", "0002-reward", "0001-sft"]
    assert view["running"] is False
    text = " ".join(Tags(view["table"]).texts)
    for part in ("PPO 3", "0003-ppo", "done", "2026-11-28", "19:49", "2 min", "policy of 0001-sft"):
        assert part in text
    assert view["table"].count('href="chat?model=') == 3  # the reward model can't chat
    assert 'href="compare?model=0003-ppo"' in view["table"]
    assert 'href="files/report?run=0002-reward"' in view["table"]


def test_the_tree_is_nested_lists(runs: Runs, project: Project) -> None:
    write_run(project, "0005-dpo", config={"init": "0003-ppo"})
    write_run(project, "0006-sft", base="/models/other <b>")
    tags = Tags(runs.runs("me", {})["tree"])
    found = dict(zip(tags.texts, tags.depths, strict=True))
    names = ("0001-sft", "0002-reward", "0003-ppo", "0004-ppo", "0005-dpo", "0006-sft")
    assert [found[name] for name in names] == [1, 2, 2, 1, 3, 1]
    assert "(reward of 0002-reward)" in found and "other <b>" in found
    assert tags.tags.count("h3") == 2


def test_every_text_is_escaped(runs: Runs, project: Project) -> None:
    folder = write_run(
        project,
        "0005-ppo",
        stage=HOSTILE,
        base=HOSTILE,
        started=HOSTILE,
        status=HOSTILE,
        config={"data": HOSTILE},
        summary={"updates": 1, "alarms": [HOSTILE]},
        rows=[{"step": 1, HOSTILE: 1.0}, {"step": 2, HOSTILE: 2.0}],
    )
    record = json.loads((folder / "run.json").read_text())
    record["config"] |= {"init": HOSTILE, "reward": HOSTILE}
    (folder / "run.json").write_text(json.dumps(record))
    write_title(folder, HOSTILE)
    view, details = runs.runs("me", {}), runs.details("me", {"run": "0005-ppo"})
    curves = runs.curves("me", {"runs": ["0005-ppo"]})
    for html in (view["table"], view["tree"], details["html"], details["goes"], curves["html"]):
        tags = Tags(html)
        assert "img" not in tags.tags and HOSTILE in " ".join(tags.texts)
    assert curves["metric"] == HOSTILE


def test_a_project_without_runs_says_what_to_do(project: Project) -> None:
    found = Runs(project, project.store())
    assert "on the Train page" in table(found) and found.runs("me", {})["tree"] == ""
    assert "Tick up to 8 runs" in found.curves("me", {})["html"]


def test_the_details_say_what_needs_the_run(runs: Runs) -> None:
    details = runs.details("me", {"run": "0002-reward"})
    assert "PPO 3 (0003-ppo) was trained against its reward role" in details["html"]
    assert details["needed"] and "1.2 kB" not in details["html"]
    free = runs.details("me", {"run": "0004-ppo"})
    assert free["needed"] == [] and "its adapters (policy)" in free["goes"]
    assert re.search(r"for good \(\d\.\d+ kB\)", free["goes"])
    for data in ({}, {"run": 3}, {"run": "../runs/0001-sft"}, {"run": "0009-ppo"}):
        for request in (runs.details, runs.rename, runs.keep, runs.delete):
            with pytest.raises(UserError, match="no longer there"):
                request("me", data)


# ---- curves


def test_curves_over_each_other(runs: Runs) -> None:
    names = ["0003-ppo", "0004-ppo"]
    view = runs.curves("me", {"runs": names})
    assert view["metric"] == "score"  # the first that both have
    known = dict(view["metrics"])
    assert list(known)[:3] == ["score", "kl", "seconds"] and known["kl"].startswith("KL from")
    tags = Tags(view["html"])
    assert tags.tags.count("polyline") == 4  # each in the picture and in the legend
    text = " ".join(tags.texts)
    assert "PPO 4" in text and "at last 2.4" in text and "at last 0.8" in text
    assert (
        'aria-label="score of the answers by step: PPO 4 from 2.1 to 2.4; PPO 3 from 0.1 to 0.8"'
        in (view["html"])
    )
    assert runs.curves("me", {"runs": names, "metric": "kl"})["metric"] == "kl"
    assert runs.curves("me", {"runs": names, "metric": "loss"})["metric"] == "score"
    with pytest.raises(UserError, match="Up to 8 runs"):
        for n in range(5, 10):
            write_run(runs.project, f"{n:04d}-dpo")
        runs.curves("me", {"runs": [run.name for run in runs.project.runs()]})


def test_the_numbers_of_the_curves_are_a_table(runs: Runs) -> None:
    html = runs.curves("me", {"runs": ["0003-ppo", "0004-ppo"], "metric": "score"})["html"]
    rows = re.findall(r'<tr><th scope="row">(\d+)</th><td>(.*?)</td><td>(.*?)</td></tr>', html)
    assert rows[0] == ("1", "2.1", "0.1") and rows[3] == ("4", "2.4", "0.4")
    assert rows[4] == ("5", "", "0.5") and len(rows) == 8  # the newer run had ended


def test_what_is_logged_by_votes_stands_apart(runs: Runs, project: Project) -> None:
    view = runs.curves("me", {"runs": ["0002-reward"]})
    assert [name for name, _ in view["metrics"]] == ["eval_accuracy", "by votes: heldout_accuracy"]
    view = runs.curves("me", {"runs": ["0002-reward"], "metric": "by votes: heldout_accuracy"})
    assert "held-out pairs right, by number of votes by votes: " in view["html"]
    nothing = runs.curves("me", {"runs": ["0001-sft"]})
    assert "logged no figures" in nothing["html"] and nothing["metric"] == ""


def test_damaged_logs_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(
        b'{"step": 2, "kl": 5}\n{"step": 1, "kl": 3}\n{"kl": 9}\n{"step": "x", "kl": 1}\n[1]\n'
        b'{"step": 2, "kl": 7, "words": "x", "flag": true, "huge": 1e999}\n{"step": 3, "k'
    )
    assert read_series(log) == {"kl": {1.0: 3.0, 2.0: 7.0}}
    assert read_series(tmp_path / "none.jsonl") == {}
    log.write_text("".join(json.dumps({"step": n, "kl": n}) + "\n" for n in range(2000)))
    found = read_curves([tmp_path], "kl")
    assert len(found.series[0]) == 500 and list(found.series[0].items())[0] == (1.5, 1.5)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.58, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (-3, 41, [-10, 0, 10, 20, 30, 40, 50]),
        (3e-13, 9e-13, [2e-13, 4e-13, 6e-13, 8e-13, 1e-12]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_round_numbers_at_the_axes(low: float, high: float, marks: list[float]) -> None:
    found = ticks(low, high)
    assert found == sorted(set(found)) and found[0] <= low and found[-1] >= high
    if low != 5:
        assert found == pytest.approx(marks)


def test_ticks_of_odd_ranges_span_them() -> None:
    for low, high in ((1e16, 1e16 + 2), (-1e299, 1e299), (1e-300, 2e-300), (7, 7.0000000001)):
        found = ticks(low, high)
        assert len(found) > 1 and found[-1] > found[0]


# ---- changes


def test_titles_are_shown_where_models_are_chosen(runs: Runs, project: Project) -> None:
    assert runs.rename("me", {"run": "0003-ppo", "title": " Friendly "}) == {
        "message": "0003-ppo is called “Friendly” now."
    }
    assert "Friendly" in table(runs)
    models = Models(project)
    assert models.names() == [BASE, "0004-ppo", "0003-ppo", "0001-sft"]
    assert models.choices()[2] == ("Friendly (0003-ppo)", "0003-ppo")
    assert runs.rename("me", {"run": "0003-ppo"})["message"] == "0003-ppo has no title any more."
    with pytest.raises(UserError, match="one line"):
        runs.rename("me", {"run": "0003-ppo", "title": "a\nb"})


def test_a_dropped_run_is_in_no_list_and_can_be_kept(runs: Runs, project: Project) -> None:
    models = Models(project)
    place = models.place("0003-ppo")
    message = runs.keep("me", {"run": "0003-ppo", "kept": False})["message"]
    assert message.startswith("PPO 3 is dropped")
    assert models.names() == [BASE, "0004-ppo", "0001-sft"]
    assert models.names(also=["0003-ppo"])[2] == "0003-ppo"
    assert models.place("0003-ppo") == place  # a comparison that goes on needs it
    assert models.place("newest").split(os.sep)[-3] == "0001-sft"
    html = table(runs)
    assert html.count('href="chat?model=') == 2 and '<span class="badge">dropped</span>' in html
    assert runs.keep("me", {"run": "0003-ppo", "kept": True}) == {"message": "PPO 3 is kept."}
    assert models.place("newest") == place


def test_the_lists_of_the_compare_page_show_titles(
    runs: Runs, project: Project, open_bench: Any
) -> None:
    bench: Bench = open_bench(FakeEngine("off"), prefetching=False)
    write_title(project.folder / "runs" / "0004-ppo", "Brief")
    write_title(project.folder / "runs" / "0002-reward", "Taste")
    choices = dict(bench.comparisons.choices())
    assert list(choices.values()) == bench.comparisons.candidates()
    assert choices["Brief (0004-ppo)"] == "0004-ppo"
    best = "Brief (0004-ppo), best of 4 by Taste (0002-reward)"
    assert choices[best] == "0004-ppo, best of 4 by 0002-reward"
    set_dropped(project.folder / "runs" / "0002-reward", True)
    assert len(bench.comparisons.candidates()) == 4
    turn = Turn("Why?", [BASE, bench.prefetch.models.place("0004-ppo")], ["So.", "Because."])
    assert bench.conversations.authors(turn) == [BASE, "Brief (0004-ppo)"]  # after a vote


def test_a_run_that_is_needed_stays(runs: Runs, project: Project) -> None:
    with pytest.raises(UserError, match="started from it"):
        runs.delete("me", {"run": "0001-sft"})
    add_comparison(runs.store, "base", "runs/0004-ppo", 5)
    with pytest.raises(UserError, match="newest blind comparison"):
        runs.delete("me", {"run": "0004-ppo"})
    add_comparison(runs.store, "base", "runs/0001-sft", 5)
    assert runs.delete("me", {"run": "0004-ppo"}) == {"message": "PPO 4 (0004-ppo) is deleted."}
    assert "0004-ppo" not in runs.runs("me", {})["names"]


# ---- reports


def client(project: Project, *, login: bool) -> TestClient:
    app = fastapi.FastAPI()
    add_report(app, project)
    access = Access(frozenset({"localhost"}), login, "me")
    return TestClient(Guard(app, project.store(), access), HERE, follow_redirects=False)


def test_a_report_runs_and_loads_nothing(runs: Runs, project: Project) -> None:
    folder = project.folder / "runs" / "0003-ppo"
    (folder / "report.html").write_text(f"<p>kept</p><script>{HOSTILE}</script>", "utf-8")
    page = client(project, login=False).get("/files/report?run=0003-ppo")
    assert page.status_code == 200 and "kept" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policy and page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"


def test_a_run_that_has_not_ended_gets_a_report_of_now(runs: Runs, project: Project) -> None:
    folder = project.folder / "runs" / "0004-ppo"
    (folder / "report.html").write_text("of yesterday", "utf-8")
    (folder / "metrics.jsonl").unlink()
    page = client(project, login=False).get("/files/report?run=0004-ppo")
    assert page.status_code == 200 and "of yesterday" not in page.text and "PPO" in page.text
    for name in ("", "0009-ppo", "../0004-ppo", "0004-ppo/report.html"):
        answer = client(project, login=False).get("/files/report", params={"run": name})
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
    (project.folder / "runs" / "0005-dpo").mkdir()
    answer = client(project, login=False).get("/files/report?run=0005-dpo")
    assert answer.status_code == 404 and "nothing to report" in answer.text


def test_reports_are_for_owners(runs: Runs, project: Project) -> None:
    store = project.store()
    set_password(store, "ann", PASSWORD, "owner")
    set_password(store, "bob", PASSWORD)
    (project.folder / "runs" / "0003-ppo" / "report.html").write_text("kept", "utf-8")
    for rater, status in (("", 401), ("bob", 403), ("ann", 200)):
        pages = client(project, login=True)
        if rater:
            pages.cookies.set(COOKIE, log_in(store, rater))
        assert pages.get("/files/report?run=0003-ppo").status_code == status


# ---- speed


def test_two_hundred_runs_answer_fast(project: Project) -> None:
    for n in range(1, 201):
        write_run(
            project,
            f"{n:04d}-ppo",
            summary={"updates": 400, "kl_per_sequence": 1.0},
            config={"init": "0001-ppo", **{f"key{k}": k for k in range(60)}},
            rows=ppo_rows(400 if n <= 8 else 5),
        )
    runs = Runs(project, project.store())
    names = [run.name for run in project.runs()][-8:]
    for request in (
        lambda: runs.runs("me", {}),
        lambda: runs.curves("me", {"runs": names}),
        lambda: runs.details("me", {"run": "0001-ppo"}),
    ):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            request()
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.3, seconds
