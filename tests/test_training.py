"""The training commands from files to finished runs, on the tiny base."""

import json
import re
from pathlib import Path

import pytest

from lorarlhf.cli.main import main
from lorarlhf.runtime import run_folder as folders
from lorarlhf.runtime.files import read_json, write_jsonl
from tests.training_steps import PPO, QUESTIONS, Train, rows_of, summary_of

pytest_plugins = ("tests.training_steps",)


def test_sft_leaves_a_whole_run(sft_run: Path, work: Path, tiny_base: Path) -> None:
    about, summary = read_json(sft_run / "run.json"), read_json(sft_run / "summary.json")
    assert about["status"] == "done" and about["base_path"] == str(tiny_base)
    assert about["config"]["epochs"] == 1.0 and about["config"]["data"] == str(work / "demos.jsonl")
    assert summary["rows"] == len(QUESTIONS) and summary["steps"] == 1
    assert summary["peak_rss_mb"] > 0 and summary["out"] == "runs/sft"
    assert all("step" in row for row in rows_of(sft_run / "metrics.jsonl"))
    assert (sft_run / "adapters/policy/adapter_model.safetensors").is_file()
    assert "<html" in (sft_run / "report.html").read_text()


def test_reward_leaves_its_adapter_and_accuracy(reward_run: Path) -> None:
    summary = read_json(reward_run / "summary.json")
    assert summary["pairs"] == summary["n"] == len(QUESTIONS)
    assert (reward_run / "adapters/reward/lorarlhf.json").is_file()


def test_rows_that_were_learned_from_are_not_measured_on(work: Path, train: Train) -> None:
    rows, others = rows_of(work / "pairs.jsonl"), rows_of(work / "heldout_pairs.jsonl")
    twins = [row | {"prompt": row["prompt"].replace(" ", "\u00a0")} for row in rows[:4]]
    twins[0] |= {"chosen": twins[0]["rejected"], "rejected": twins[0]["chosen"]}
    again = rows[5] | {"chosen": "Another answer."}
    write_jsonl(work / "mixed.jsonl", [*twins, again, *others[:3]])
    words = ("reward", "--data", "pairs.jsonl", "--out", "apart", "--json", "--eval")
    status, out, err = train(*words, "mixed.jsonl", sets=["epochs=0"])
    assert status == 0 and json.loads(out)["n"] == 4
    assert "4 of 8 rows to measure on are also among the rows to learn from" in err
    assert "1 of 4 rows to measure on have a prompt that is also learned from" in err
    assert json.loads(out)["fit_cv_accuracy"] is None  # eight prompts are too few
    before = sorted((work / "apart").rglob("*"))
    write_jsonl(work / "mixed.jsonl", twins)
    status, _, err = train(*words, "mixed.jsonl", sets=["epochs=0"])
    assert status == 2 and "All 4 rows to measure on are also among the rows to learn from" in err
    assert sorted((work / "apart").rglob("*")) == before
    words = ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:length")
    status, _, err = train(*words, "--eval", "prompts.jsonl", "--out", "apart")
    assert status == 2 and "All 8 rows to measure on" in err
    assert sorted((work / "apart").rglob("*")) == before


def test_a_table_for_people_has_no_nan(work: Path, train: Train) -> None:
    words = ("reward", "--data", "pairs.jsonl", "--out", "few", "--eval", "heldout_pairs.jsonl")
    status, out, err = train(*words, sets=["epochs=0"])
    assert status == 0 and "fit_cv_accuracy     not enough to tell" in out
    files = [(work / "few" / name).read_text() for name in ("run.json", "summary.json")]
    assert not re.search(r"\bnan\b", "".join([out, err, *files]), re.IGNORECASE)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_direct_methods_start_from_a_run(
    method: str, sft_run: Path, work: Path, train: Train
) -> None:
    words = (method, "--data", "pairs.jsonl", "--init", "runs/sft", "--json")
    sets = ["trl.max_steps=1", *["sft_weight=0"] * (method == "dpo")]
    summary = summary_of(train(*words, "--seed", "7", sets=sets))
    rows = len(QUESTIONS) * (2 if method == "kto" else 1)  # KTO takes a pair's answers singly
    assert summary["steps"] == 1 and summary["rows"] == rows
    about = read_json(work / "runs" / method / "run.json")
    assert about["seed"] == 7 and about["config"]["trl"] == {"max_steps": 1}
    assert about["config"]["init"] == str(work / "runs/sft")
    if method == "dpo":  # policy and reference are the same, so the first loss is ln 2
        assert summary["loss_first"] == pytest.approx(0.6931, abs=1e-3)


def test_dpo_measures_the_rows_that_are_named(work: Path, train: Train) -> None:
    words = ("dpo", "--data", "pairs.jsonl", "--eval", "heldout_pairs.jsonl", "--out", "held")
    status, out, err = train(*words, "--json", sets=["batch_size=4", "epochs=2", "sft_weight=0.5"])
    summary = json.loads(out)
    assert status == 0 and "Nothing is held out" not in err
    assert summary["held_out"] == len(QUESTIONS) and summary["kept_step"] in (0, 4)
    rows = rows_of(work / "held/metrics.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4]
    assert {row["step"] for row in rows_of(work / "held/samples.jsonl")} == {0, 4}
    assert "Sampled answers: DPO" in (work / "held/report.html").read_text(encoding="utf-8")
    status, _, err = train("orpo", "--data", "pairs.jsonl", "--out", "no", sets=["sft_weight=1"])
    assert status == 2 and "sft_weight" in err


def test_ppo_by_reward_functions(sft_run: Path, work: Path, train: Train) -> None:
    functions = ("--reward-function", "rewards.py:length")
    words = ("ppo", "--prompts", "prompts.jsonl", *functions, *functions, "--init", "runs/sft")
    summary = summary_of(train(*words, "--json", sets=PPO))
    assert (summary["updates"], summary["episodes"]) == (2, 8)
    assert {"seconds_per_update", "peak_rss_mb", "kl_per_sequence"} <= summary.keys()
    folder = work / "runs/ppo"
    assert [row["step"] for row in rows_of(folder / "metrics.jsonl")] == [1, 2]
    for role in ("policy", "value", "reference"):
        assert (folder / "adapters" / role / "adapter_config.json").is_file()
    policy = (sft_run / "adapters/policy/adapter_model.safetensors").read_bytes()
    reference = (folder / "adapters/reference/adapter_model.safetensors").read_bytes()
    assert reference == policy  # what it started from became the reference

    samples = rows_of(folder / "samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({row["prompt"] for row in samples}) == 4  # the same prompts each time
    assert {row["prompt"] for row in samples} <= set(QUESTIONS)
    # Two functions of equal weight: their sum.
    assert all(row["score"] == 2.0 * len(row["completion"]) for row in samples)


def test_ppo_by_a_reward_run(reward_run: Path, work: Path, train: Train) -> None:
    words = ("ppo", "--prompts", "prompts.jsonl", "--reward", "runs/reward", "--out", "by_role")
    status, out, _ = train(*words, sets=PPO)
    assert status == 0 and "kl_per_sequence" in out and "episodes" in out  # for people
    assert all(isinstance(row["score"], float) for row in rows_of(work / "by_role/samples.jsonl"))
    assert read_json(work / "by_role/run.json")["config"]["reward"] == str(work / "runs/reward")
    assert not (work / "by_role/adapters/reference").exists()  # the bare base is the reference


def test_plain_prompts_reach_functions_as_texts(work: Path, train: Train) -> None:
    words = ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:texts")
    summary_of(train(*words, "--out", "plain", "--json", sets=[*PPO, "updates=1", "plain=true"]))
    assert read_json(work / "plain/run.json")["config"]["plain"] is True


def test_the_config_file_and_the_flags_reach_the_run(
    work: Path, train: Train, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 1\nseed: 4\nlora_alpha: 8\ntrl:\n  max_steps: 1\n")
    words = ("sft", "--data", "demos.jsonl", "--config", str(tmp_path / "c.yaml"), "--seed", "5")
    assert summary_of(train(*words, "--out", "configured", "--json"))["steps"] == 1
    about = read_json(work / "configured/run.json")
    assert (about["seed"], about["config"]["lora_alpha"]) == (5, 8)


def test_the_base_is_taken_from_the_run_that_is_named(
    sft_run: Path, work: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str], train: Train
) -> None:
    words = ["orpo", "--data", "pairs.jsonl", "--init", str(sft_run), "--out", "inherits", "--json"]
    assert main([*words, "--set", "trl.max_steps=1"]) == 0
    about = read_json(work / "inherits/run.json")
    assert (about["base"], about["bits"]) == (str(tiny_base), 16)
    assert about["config"]["lora_rank"] == 4 and about["compute_dtype"] == "float32"


def test_rows_that_are_too_long_are_counted(train: Train) -> None:
    words = ("sft", "--data", "demos.jsonl", "--out", "cut", "--json")
    status, _, err = train(*words, sets=["trl.max_steps=1", "max_tokens=27"])
    assert status == 0
    assert "8 of 8 rows are longer than max_tokens (27; the longest has " in err
    status, _, err = train(*words, sets=["trl.max_steps=1", "max_tokens=20"])
    assert status == 2 and "8 of 8 rows have a prompt as long as max_tokens (20)" in err


# ---- a folder that holds a run already


def test_a_second_run_keeps_the_first(work: Path, train: Train) -> None:
    words = ("sft", "--data", "demos.jsonl", "--out", "twice", "--json")
    summary_of(train(*words, sets=["trl.max_steps=1"]))
    before = (work / "twice/metrics.jsonl").read_text()
    _, _, err = train(*words, "--init", "twice", "--seed", "1", sets=["trl.max_steps=1"])
    assert "kept in twice/earlier-1" in err
    assert (work / "twice/earlier-1/metrics.jsonl").read_text() == before
    assert (work / "twice/earlier-1/adapters/policy/adapter_config.json").is_file()
    assert len(rows_of(work / "twice/metrics.jsonl")) == 1  # not mixed with the first
    before = {file: file.read_bytes() for file in sorted((work / "twice").rglob("*.*"))}
    # Known only when the trainer is built: it needs a package.
    status, _, err = train(*words, sets=["trl.use_liger_kernel=true"])
    assert status != 0 and "The earlier run in twice is as it was." in err
    assert {file: file.read_bytes() for file in sorted((work / "twice").rglob("*.*"))} == before
    status, _, _ = train(*words, sets=["trl.lr_scheduler_type=none"])
    assert status == 2 and not (work / "twice/earlier-2").exists()  # a mistake moves nothing


def test_rewind_drops_what_came_after_the_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-2/files.json").write_text("{}")
    (tmp_path / "checkpoints/checkpoint-3").mkdir()  # torn: what it lists is not there
    (tmp_path / "checkpoints/checkpoint-3/files.json").write_text('{"state.json": "0"}')
    rows = [{"step": step} for step in (1, 2, 3)] + [{"stage": "reward", "step": 9}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "torn']))
    folders.drop_later_rows(tmp_path)
    assert rows_of(tmp_path / "metrics.jsonl") == [rows[0], rows[1], rows[3]]


def test_set_aside_leaves_a_folder_without_results_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")  # of a run that failed before its first step
    folders.archive_earlier_run(tmp_path)
    folders.archive_earlier_run(tmp_path / "none")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
