"""A project's runs as data: what each is, what started from what; titles and dropping."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.evaluation.run_wins import wins_by_run
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.project.run_deletion import delete_run
from lorarlhf.project.run_labels import RunLabel, read_label, set_dropped, write_title
from lorarlhf.project.run_list import find_run, folder_bytes, lineage, read_runs
from lorarlhf.project.run_words import duration, results_in_words, size, source_in_words
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import LOCK, hold, is_held
from lorarlhf.runtime.run_folder import archive_earlier_run, restore_earlier_run
from tests.run_folders import STARTED, by_name, four_runs, ppo_rows, write_run

HOLDS = """
import sys, time
from pathlib import Path
from lorarlhf.runtime.lock import hold
with hold(Path(sys.argv[1]), "Wait."):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create(tmp_path / "mine", base="tiny")


@pytest.fixture
def four(project: Project) -> Project:
    return four_runs(project)


# ---- reading


def test_what_is_known_of_a_run(four: Project) -> None:
    assert [run.name for run in read_runs(four)] == [
        *("0004-ppo", "0003-ppo", "0002-reward", "0001-sft")
    ]
    runs = by_name(four)
    ppo = runs["0003-ppo"]
    assert (ppo.number, ppo.stage, ppo.state, ppo.started) == (3, "ppo", "done", STARTED)
    assert (ppo.seconds, ppo.base, ppo.roles) == (90.0, "smollm2-135m", ("policy",))
    assert [(one.option, one.run) for one in ppo.sources] == [
        *(("init", "0001-sft"), ("reward", "0002-reward"))
    ]
    assert dict(ppo.results) == {"kl_per_sequence": 1.25, "score": 0.8}
    assert ppo.alarms == ("useless_value",)
    labels = ["Supervised tuning 1", "Reward model 2", "PPO 3", "PPO 4"]
    assert [runs[name].label for name in sorted(runs)] == labels
    assert results_in_words(runs["0002-reward"]) == ["75% of 40 held-out pairs right"]
    assert results_in_words(ppo) == ["score 0.8", "KL 1.25"]
    assert results_in_words(runs["0001-sft"]) == ["loss 1.5"]
    assert results_in_words(runs["0004-ppo"]) == ["step 3", "score 0.3"]
    assert [source_in_words(one) for one in ppo.sources] == [
        *("policy of 0001-sft", "reward of 0002-reward")
    ]


def test_a_run_of_rloo_is_called_so(project: Project) -> None:
    write_run(project, "0001-ppo", config={"algorithm": "rloo"})
    assert by_name(project)["0001-ppo"].label == "RLOO 1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (12.4, "12 s"), (59.7, "1 min"), (725, "12 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    found = [size(n) for n in (0, 999, 999_999, 34_200_000, 1_250_000_000_000)]
    assert found == ["0 bytes", "999 bytes", "1 MB", "34.2 MB", "1.25 TB"]


def test_a_folder_is_counted_without_what_links_lead_to(four: Project, tmp_path: Path) -> None:
    run = four.folder / "runs" / "0001-sft"
    before = folder_bytes(run)
    assert before == sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    (tmp_path / "large").write_bytes(bytes(10**6))
    (run / "link").symlink_to(tmp_path / "large")
    assert folder_bytes(run) - before < 1000


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (None, "not started"),
        ("{", "unreadable"),
        ("[1]", "unreadable"),
        ('{"stage": 3, "config": [], "summary": "no", "seconds": "x"}', "unreadable"),
        ('{"status": "done", "config": {"init": 7}, "summary": {"n": true}}', "done"),
        ('{"status": "failed", "seconds": 1e999, "started": null}', "failed"),
    ],
)
def test_damaged_runs_are_listed(project: Project, record: str | None, state: str) -> None:
    folder = write_run(project, "0007-dpo")
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\nnull\n\xff\xfe{"step"')
    if record is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(record)
    (folder / "label.json").write_text('{"title": 5, "dropped": "yes"}')
    (run,) = read_runs(project)
    assert (run.state, run.stage, run.label, run.dropped) == (state, "dpo", "DPO 7", False)
    assert run.sources == () and run.seconds is None and "n" not in run.results


def test_a_killed_run_is_told_from_one_that_goes_on(project: Project) -> None:
    started = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 120))
    rows, config = ppo_rows(5), {"updates": 20}
    folder = write_run(
        project, "0001-ppo", status="running", rows=rows, config=config, started=started
    )
    assert by_name(project)["0001-ppo"].state == "interrupted"
    words = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        run = by_name(project)["0001-ppo"]
        assert run.state == "running" and results_in_words(run)[0] == "step 5 of 20"
        assert run.seconds is not None and 115 < run.seconds < 600
        with pytest.raises(UserError, match=rf"in use by process {process.pid} .* stop it first"):
            delete_run(project, "1", project.store())
        process.kill()
    assert (folder / LOCK).exists() and not is_held(folder)  # and asking has changed nothing
    assert by_name(project)["0001-ppo"].state == "interrupted"
    with hold(folder, ""):
        pass


def test_a_run_is_found_by_name_number_and_path(four: Project) -> None:
    folder = four.folder / "runs" / "0003-ppo"
    for name in ("0003-ppo", "3", " 0003 ", str(folder), f"{folder}/"):
        assert find_run(four, name) == folder
    with pytest.raises(UserError, match=r"no run 0003-pp\. Did you mean 0003-ppo\?"):
        find_run(four, "0003-pp")
    with pytest.raises(UserError, match="has no run x/../y"):
        find_run(four, "x/../y")


# ---- what started from what


def test_the_tree(four: Project) -> None:
    write_run(four, "0005-dpo")
    write_run(four, "0006-ppo", config={"reward": "0002-reward"})
    write_run(four, "0007-sft", base="/models/other")
    assert [(depth, run.name) for depth, run in lineage(read_runs(four))] == [
        *((0, "0001-sft"), (1, "0002-reward"), (2, "0006-ppo"), (1, "0003-ppo")),
        *((1, "0004-ppo"), (0, "0005-dpo"), (0, "0007-sft")),
    ]


def test_a_circle_in_damaged_records_ends(project: Project) -> None:
    for name, source in (("0001-sft", "0002-dpo"), ("0002-dpo", "0001-sft")):
        write_run(project, name, config={"init": source})
    write_run(project, "0003-dpo", config={"init": "0003-dpo"})
    write_run(project, "0004-dpo", config={"init": "0002-dpo"})
    found = [(depth, run.name) for depth, run in lineage(read_runs(project))]
    assert sorted(found) == [(0, "0001-sft"), (0, "0002-dpo"), (0, "0003-dpo"), (1, "0004-dpo")]


def test_a_long_line_of_runs_is_no_problem(project: Project) -> None:
    for n in range(1, 301):
        write_run(project, f"{n:04d}-dpo", config={"init": f"{n - 1:04d}-dpo"} if n > 1 else {})
    assert [depth for depth, _ in lineage(read_runs(project))] == list(range(300))


def test_sources_are_found_after_a_move_and_others_are_not_ours(
    four: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = create(tmp_path / "other", base="tiny")
    write_run(other, "0001-sft")
    records = {
        str(other.folder / "runs/0001-sft"): "",
        "/somewhere/else/runs/0001-sft/adapters/policy": "0001-sft",
        r"C:\projects\mine\runs\0001-sft": "0001-sft",
        "mine/runs/0001-sft": "0001-sft",
        "/somewhere/runs/0009-sft": "",
        "/somewhere/0001-sft": "",
    }
    monkeypatch.chdir(tmp_path)
    for path, run in records.items():
        record = four.folder / "runs/0003-ppo/run.json"
        record.write_text(json.dumps({"status": "done", "config": {"init": path}}))
        (source,) = by_name(four)["0003-ppo"].sources
        assert (source.run, source.name) == (run, run or path), path
    four.folder.rename(tmp_path / "moved")
    moved = Project(tmp_path / "moved")
    assert by_name(moved)["0004-ppo"].sources[0].run == "0001-sft"


# ---- titles and dropping


def test_titles(four: Project) -> None:
    run = four.folder / "runs" / "0003-ppo"
    assert write_title(run, "  <b>Mine & yours</b> 🦉 ").title == "<b>Mine & yours</b> 🦉"
    info = by_name(four)["0003-ppo"]
    assert info.label == info.title == "<b>Mine & yours</b> 🦉" and info.name == "0003-ppo"
    for bad in ("two\nlines", "a\x00b", "\ud83e", "\u2028", "x" * 81):
        with pytest.raises(UserError, match="title"):
            write_title(run, f"a{bad}a")
    assert read_label(run).title == info.title
    set_dropped(run, True)
    assert read_label(run).title == info.title
    write_title(run, "")
    assert read_label(run).dropped
    set_dropped(run, False)
    assert not (run / "label.json").exists()
    with pytest.raises(UserError, match="can't be written"):
        write_title(run.parent / "0009-gone", "x")


def test_a_dropped_run_is_never_the_newest(four: Project) -> None:
    folder = four.folder / "runs"
    assert four.newest_with("policy") == folder / "0003-ppo"
    assert four.unfinished("ppo") == folder / "0004-ppo"
    for name in ("0003-ppo", "0004-ppo", "0002-reward"):
        set_dropped(folder / name, True)
    assert four.newest_with("policy") == folder / "0001-sft"
    assert four.newest_with("reward") is None and four.unfinished("ppo") is None
    assert [run.name for run in four.kept_runs()] == ["0001-sft"] and len(four.runs()) == 4
    assert four.next_run("dpo").name == "0005-dpo"
    set_dropped(folder / "0003-ppo", False)
    assert four.newest_with("policy") == folder / "0003-ppo"


def test_a_new_run_in_the_folder_has_a_label_of_its_own(project: Project) -> None:
    run = write_run(project, "0001-ppo", rows=ppo_rows(2))
    write_title(run, "The first")
    set_dropped(run, True)
    kept = archive_earlier_run(run)
    assert kept is not None and read_label(run) == RunLabel()
    restore_earlier_run(run, kept)  # the new one failed at once
    assert read_label(run) == RunLabel("The first", True)


# ---- who wins


def voted(project: Project, second: str, ranking: list[str], wanted: int, rater: str) -> None:
    """A comparison with the base, and this rater's votes: `base`, `run` or `tie`."""
    store = project.store()
    made = add_comparison(store, "base", second, wanted)
    for n, winner in enumerate(ranking):
        sides = [("Red.", "base"), (f"Blue {n}.", second)]
        item = store.add_item(f"Why {n}?", sides, purpose="compare", comparison=made.id)
        best = {"base": [[0], [1]], "run": [[1], [0]]}
        verdict = Verdict("ranked", best[winner]) if winner in best else Verdict("tie")
        store.judge(store.present(item, rater).token, verdict)


def test_win_rates_are_of_people_first(four: Project) -> None:
    judged: dict[str, Any] = {"rate": 0.25, "ci95": [0.1, 0.5], "n": 20, "wins": 5}
    people = {
        "judge": "brief",
        "independent": True,
        "results": [judged | {"candidate": "0003-ppo"}],
    }
    other = {"judge": "the reward", "independent": False}
    results = [judged | {"candidate": name, "rate": 0.9} for name in ("0003-ppo", "0001-sft")]
    (four.folder / "eval").mkdir()
    file = four.folder / "eval" / "eval.json"
    file.write_text(json.dumps({"judges": [other | {"results": results}, people]}))
    (four.folder / "eval-2").mkdir()
    (four.folder / "eval-2" / "eval.json").write_text('{"judges": [{"results": 3}]}')
    files = sorted(four.folder.glob("eval*/eval.json"))
    found = wins_by_run(four.store(), files)
    assert found["0003-ppo"].in_words() == "wins 25% (10 to 50) of 20, by brief"
    assert found["0001-sft"].in_words() == (
        "wins 90% (10 to 50) of 20, by the reward, not independent"
    )
    voted(four, "runs/0003-ppo", ["run", "run", "run", "tie"], wanted=4, rater="ann")
    won = wins_by_run(four.store(), files)["0003-ppo"]
    assert (won.rate, won.count, won.judge) == (3.5 / 4, 4, "people")
    voted(four, "runs/0004-ppo", ["base"] * 3, wanted=4, rater="ann")  # she has one to go
    found = wins_by_run(four.store(), files)
    assert "0004-ppo" not in found and found["0003-ppo"].count == 4
    voted(four, "runs/0004-ppo, best of 4 by 0002-reward", ["run"], wanted=1, rater="ann")
    found = wins_by_run(four.store(), files)  # the unfinished one is over: it is not the newest
    assert (found["0004-ppo"].rate, found["0004-ppo"].count) == (0.0, 3)


def test_two_hundred_runs_are_read_at_once(project: Project) -> None:
    rows = ppo_rows(400)
    for n in range(1, 201):
        write_run(
            project,
            f"{n:04d}-ppo",
            summary={"updates": 400, "kl_per_sequence": 1.0},
            config={"init": "0001-ppo", **{f"key{k}": k for k in range(60)}},
            rows=rows if n < 20 else rows[:5],
        )
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert len(lineage(read_runs(project))) == 200
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3
