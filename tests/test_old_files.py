"""Projects, runs, checkpoints and votes of the version before 0.2 still open (tests/data)."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.cli.project_options import EXPORT_FORMS
from lorarlhf.evaluation.report import write_report
from lorarlhf.preferences.accounts import password_fits
from lorarlhf.preferences.imports import read_votes
from lorarlhf.project.project import Project, project_settings
from lorarlhf.runtime.files import absolute_names
from tests.pages import Bench

pytest_plugins = ("tests.pages",)

OLD = Path(__file__).parent / "data" / "before-0.2"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 8}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}
COMMON = "device=cpu compute_dtype=float32 micro_batch_size=2"
# What the interrupted runs were started with: a person repeats the command and adds --resume.
PPO = COMMON + " rollout_batch_size=4 max_new_tokens=6 updates=4 save_steps=1 logging_steps=1"
PPO += " eval_steps=1 kl_target=0.5 kl_horizon=100 reward_weights=[1,0.5] num_minibatches=2"
PPO += " score_clip=3 whiten_rewards=true policy_layers=2 trl.max_grad_norm=0.5"
DPO = COMMON + " batch_size=4 epochs=3 save_steps=1 beta=0.2 trl.label_smoothing=0.1"
CHAT = ("--prompt", "What is 1?", "--temperature", "0", "--max-new-tokens", "12")
Row = dict[str, Any]
Command = Callable[..., Any]


def test_the_old_store_is_still_old() -> None:
    path = (OLD / "project/preferences.sqlite").resolve().as_uri()
    with closing(sqlite3.connect(f"{path}?mode=ro&immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.fixture(scope="session")
def old_base(make_base: Callable[..., Path]) -> Path:
    """The base of the old runs, written again from its seed."""
    return make_base(**SIZES)


@pytest.fixture
def project(tmp_path: Path, old_base: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the old project, in a folder with every file that its runs name."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    shutil.copytree(old_base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return Project("project")


@pytest.fixture
def command(project: Project, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must succeed; returns what it prints as JSON. `sets` become --set."""

    def run(*words: str, sets: str = "") -> Any:
        options = [part for text in sets.split() for part in ("--set", text)]
        status = main([*words, *options, "--json"])
        printed, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(printed)

    return run


def read(file: str | Path) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def rows(file: str | Path) -> list[Row]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# ---- the project and its runs


def test_a_project_gives_its_settings_and_its_runs(project: Project) -> None:
    settings = {item.name: item.value for item in project_settings(project)}
    wanted = {"base": "base", "bits": 16, "adapter_layers": "2", "seed": 0}
    assert settings == wanted | {"lora_rank": 2, "lora_alpha": 4}
    names = ["0005-dpo", "0004-ppo", "0003-ppo", "0002-reward", "0001-sft"]
    assert [run.name for run in project.runs()] == names
    newest = {role: project.newest_with(role) for role in ("policy", "reward", "value")}
    found = {role: run.name if run else None for role, run in newest.items()}
    assert found == {"policy": "0003-ppo", "reward": "0002-reward", "value": "0003-ppo"}
    unfinished = {stage: project.unfinished(stage) for stage in ("sft", "reward", "ppo", "dpo")}
    found = {stage: run.name if run else None for stage, run in unfinished.items()}
    assert found == {"sft": None, "reward": None, "ppo": "0004-ppo", "dpo": "0005-dpo"}


def test_a_reward_scores_and_a_policy_answers_as_they_did(command: Command) -> None:
    before = read(OLD / "answers.json")
    answers = ("--answer", "It is one.", "--answer", "No idea at all.")
    scores = command("score", "project", "--prompt", "What is 1?", *answers, sets="device=cpu")
    assert scores == pytest.approx(before["score"], abs=1e-4)
    assert command("chat", "project/runs/0001-sft", *CHAT, sets="device=cpu") == before["chat"]
    assert command("chat", "project", *CHAT, sets="device=cpu")["role"] == "policy"


@pytest.mark.parametrize("run", ["0001-sft", "0002-reward", "0003-ppo", "0005-dpo"])
def test_a_report_is_written(run: str, project: Project) -> None:
    page = write_report(project.folder / "runs" / run).read_text(encoding="utf-8")
    for metric in rows(project.folder / "runs" / run / "metrics.jsonl"):
        if "alarm" in metric:
            assert metric["words"] in page
    assert ("explains nothing of the returns" in page) == (run == "0003-ppo")


# ---- interrupted runs


def resumed(run: Path, steps: int) -> list[Row]:
    """The rows that a resumed run has added; those before them are as they were."""
    before, after = (rows(place / "metrics.jsonl") for place in (OLD / run, run))
    assert after[: len(before)] == before
    new = after[len(before) :]
    assert [row["step"] for row in new if {"score", "loss"} & row.keys()] == [*range(3, steps + 1)]
    about, started = read(run / "run.json"), read(OLD / run / "run.json")
    assert about["status"] == "done"
    kept = {name: absolute_names(value) for name, value in started["config"].items()}
    assert {name: absolute_names(about["config"].get(name)) for name in kept} == kept
    return new


def test_ppo_goes_on(command: Command, project: Project) -> None:
    words = ("--resume", "--base", "base", "--config", "ppo.yaml")
    done = command("ppo", "project", *words, sets=PPO)
    assert done["out"] == "project/runs/0004-ppo"
    new = resumed(project.folder / "runs/0004-ppo", steps=4)
    run, weights = project.folder / "runs/0004-ppo", "policy/adapter_model.safetensors"
    before = (OLD / run / "checkpoints/checkpoint-2" / weights).read_bytes()
    assert (run / "adapters" / weights).read_bytes() != before
    heldout = [row for row in new if "eval_score" in row]
    assert [row["step"] for row in heldout] == [3, 4]
    assert all({"eval_kl", "eval_judge"} <= row.keys() for row in heldout)
    scored = [row for row in new if "score" in row]
    assert all({"score/reward", "score/length", "kl_coef"} <= row.keys() for row in scored)


def test_dpo_goes_on(command: Command, project: Project) -> None:
    done = command("dpo", "project", "--resume", "--base", "base", sets=DPO)
    state = read(OLD / "project/runs/0005-dpo/checkpoints/checkpoint-2/trainer_state.json")
    assert done["out"] == "project/runs/0005-dpo"
    resumed(project.folder / "runs/0005-dpo", steps=state["max_steps"])


def test_the_demo_goes_on(command: Command, project: Project) -> None:
    options = ("--quick", "--base", "base", "--bits", "16", "--adapter-layers", "1")
    done = command("demo", "--resume", "--out", "demo", *options)
    before, after = rows(OLD / "demo/metrics.jsonl"), rows("demo/metrics.jsonl")
    assert after[: len(before)] == before
    assert [row["step"] for row in after if row["stage"] == "ppo" and "score" in row] == [1, 2]
    assert done["reward_model"] == read(OLD / "demo/reward.json")  # not trained a second time
    assert read("demo/run.json")["status"] == "done" and Path("demo/report.html").is_file()


# ---- votes and pages


@pytest.mark.parametrize("form", EXPORT_FORMS)
def test_votes_are_exported_as_they_were(form: str, command: Command, project: Project) -> None:
    purpose = "all" if form == "own" else "train"
    words = ("--export", form, "--purpose", purpose, "--out", "now.jsonl")
    command("votes", "project", *words)
    old, now = OLD / "exports" / f"{form}.jsonl", Path("now.jsonl")
    if form not in ADDED:
        assert now.read_bytes() == old.read_bytes()
        return
    found = rows(now)
    if form == "kto":  # which had no rows of longer rankings
        store = project.store()
        longer = {vote.id for vote in store.votes() if len(vote.completions) > 2}
        store.close()
        assert longer & {row["vote"] for row in found}
        found = [row for row in found if row["vote"] not in longer]
    assert sorted(as_before(found, form)) == sorted(as_before(rows(old), form))
    assert read_votes(old).votes  # both are read


ADDED = {
    "kto": ("vote", "written"),
    "arena": ("strength", "note", "edited"),
    "argilla": (),
}
"""What their rows have had since then; Argilla's records have further questions."""


def as_before(found: list[dict[str, Any]], form: str) -> list[str]:
    """The rows (of Argilla: the rankings) without what was added; "both good" was in a ranking."""
    if form == "argilla":
        found = [
            {"fields": row["fields"], "value": answer["value"], "user": answer["user_id"]}
            for row in found
            for answer in row["responses"]["ranking"]
        ]
    shown = [row for row in found if not row.get("written")]
    kept = [{k: v for k, v in row.items() if k not in ADDED[form]} for row in shown]
    return [json.dumps(row) for row in kept]


def test_votes_and_raters_are_counted(command: Command, project: Project) -> None:
    counts = command("votes", "project")
    assert counts["votes"] == len(rows(OLD / "exports/own.jsonl"))
    raters = command("raters", "project")["raters"]
    can = {rater["name"]: rater["can_log_in"] for rater in raters}
    assert can == {"ann": False, "ben": True, "imported": False}
    store = project.store()
    assert password_fits(store, "ben", "correct horse")
    assert not password_fits(store, "ben", "another horse")
    store.close()


def test_the_rating_page_has_its_settings_and_goes_on(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench(prefetching=False)
    answers = bench.prefetch.settings()
    assert (answers.model, answers.against, answers.answers) == ("0001-sft", "base", 2)
    assert (answers.temperature, answers.max_new_tokens, answers.overlap) == (0.9, 64, 0.25)
    assert bench.meter.report("ann")["guesses"] >= 5
    before = bench.ratings.progress("ann")
    view = bench.ratings.undo("ann", before["last"])
    assert view["progress"]["all"] == before["progress"]["all"] - 1
    assert len(view["answers"]) == 2  # of the chat, whose vote was the last one
    vote = {"verdict": "ranked", "ranking": [[1], [0]], "edited": "Hello."}
    view = bench.ratings.vote("ann", view["token"], vote)
    assert view["progress"]["all"] == before["progress"]["all"]
    assert view["voted"] > before["last"]


def test_a_comparison_goes_on(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench(prefetching=False)
    test = bench.comparisons.newest()
    assert test is not None and bench.comparisons.made(test) == test.wanted == 4
    assert (test.first, test.second) == ("runs/0001-sft", "runs/0003-ppo")
    assert sorted(bench.comparisons.outcomes(test)) in ([0.0, 0.5], [0.5, 1.0])
    view = bench.comparisons.begin("ann")
    assert view["progress"] == "2 of 4 votes"
    for _ in range(2):
        view = bench.comparisons.vote("ann", view["token"], {"verdict": "tie"})
    assert view["empty"].startswith("runs/0003-ppo against runs/0001-sft: wins")
