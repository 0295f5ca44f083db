"""The training commands from files to finished runs, on the tiny base."""

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.runtime import run_folder as folders
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.run import Run

Train = Callable[..., tuple[int, str, str]]
QUESTIONS = [f"What is {number} and why?" for number in range(8)]
PPO = ["updates=2", "rollout_batch_size=4", "max_new_tokens=6", "critic_warmup=0", "save_steps=1"]

REWARDS = """
import os, signal

def length(prompts, completions, kind, **columns):
    print("printed by a reward function")
    assert prompts[0][0]["role"] == "user" and kind == ["q"] * len(prompts)
    return [float(len(c[0]["content"])) for c in completions]

def texts(prompts, completions, **columns):
    assert all(isinstance(text, str) for text in (*prompts, *completions))
    return [1.0 for _ in completions]

def broken(prompts, completions, **columns):
    return 1 / 0

def interrupts(prompts, completions, trainer_state, **columns):
    if trainer_state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(c[0]["content"])) for c in completions]
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data files, reward functions, and the runs that the tests make in it."""
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": q, "kind": "q"} for q in QUESTIONS])
    answers = {"chosen": "It is good.", "rejected": "No idea at all, sorry."}
    write_jsonl(folder / "pairs.jsonl", [{"prompt": q, **answers} for q in QUESTIONS])
    write_jsonl(folder / "demos.jsonl", [{"prompt": q, "completion": "A sum."} for q in QUESTIONS])
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def train(
    work: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Run a command in that folder on the tiny base; `sets` become --set."""
    monkeypatch.chdir(work)
    monkeypatch.delenv("LORARLHF_DEBUG", raising=False)

    def run(*words: str, sets: Sequence[str] = (), base: str = "") -> tuple[int, str, str]:
        told = ["--base", base or str(tiny_base)]
        for text in ("bits=16", "compute_dtype=float32", "lora_rank=4", *sets):
            told += ["--set", text]
        status = main([*words, *told])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def summary_of(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one object on standard output of a command that went well."""
    status, out, err = result
    assert status == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sft_run(work: Path, train: Train) -> Path:
    """A finished run of sft, made once."""
    if not (work / "runs/sft").exists():
        summary_of(train("sft", "--data", "demos.jsonl", "--json", sets=["epochs=1"]))
    return work / "runs/sft"


@pytest.fixture
def reward_run(work: Path, train: Train) -> Path:
    """A finished run of reward, made once."""
    if not (work / "runs/reward").exists():
        words = ("reward", "--data", "pairs.jsonl", "--eval", "pairs.jsonl", "--json")
        summary = summary_of(train(*words, sets=["epochs=0"]))
        assert summary["n"] == len(QUESTIONS) and 0 <= summary["heldout_accuracy"] <= 1
    return work / "runs/reward"


# ---- each command


def test_sft_leaves_a_whole_run(sft_run: Path, tiny_base: Path) -> None:
    about, summary = read_json(sft_run / "run.json"), read_json(sft_run / "summary.json")
    assert about["status"] == "done" and about["base_path"] == str(tiny_base)
    assert about["config"]["epochs"] == 1.0 and about["config"]["data"] == "demos.jsonl"
    assert summary["rows"] == len(QUESTIONS) and summary["steps"] == 1
    assert summary["peak_rss_mb"] > 0 and summary["out"] == "runs/sft"
    assert all("step" in row for row in rows_of(sft_run / "metrics.jsonl"))
    assert (sft_run / "adapters/policy/adapter_model.safetensors").is_file()
    assert "<html" in (sft_run / "report.html").read_text()


def test_reward_leaves_its_adapter_and_accuracy(reward_run: Path) -> None:
    summary = read_json(reward_run / "summary.json")
    assert summary["pairs"] == summary["n"] == len(QUESTIONS)
    assert (reward_run / "adapters/reward/lorarlhf.json").is_file()


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_direct_methods_start_from_a_run(
    method: str, sft_run: Path, work: Path, train: Train
) -> None:
    words = (method, "--data", "pairs.jsonl", "--init", "runs/sft", "--json")
    summary = summary_of(train(*words, "--seed", "7", sets=["trl.max_steps=1"]))
    rows = len(QUESTIONS) * (2 if method == "kto" else 1)  # KTO takes a pair's answers singly
    assert summary["steps"] == 1 and summary["rows"] == rows
    about = read_json(work / "runs" / method / "run.json")
    assert about["seed"] == 7 and about["config"]["trl"] == {"max_steps": 1}
    assert about["config"]["init"] == "runs/sft"
    if method == "dpo":  # policy and reference are the same, so the first loss is ln 2
        assert summary["loss_first"] == pytest.approx(0.6931, abs=1e-3)


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
    assert read_json(work / "by_role/run.json")["config"]["reward"] == "runs/reward"
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


# ---- stopping and going on


def test_ctrl_c_ends_after_the_update_and_resume_goes_on(work: Path, train: Train) -> None:
    data = ("--prompts", "prompts.jsonl", "--reward-function", "rewards.py:interrupts")
    words = ("ppo", *data, "--out", "stopped", "--json")
    sets = [*PPO, "updates=4", "save_steps=3"]
    handler = signal.getsignal(signal.SIGINT)
    status, out, err = train(*words, sets=sets)
    assert (status, out) == (130, "")
    assert "To resume where it ended" in err and "--resume" in err
    assert signal.getsignal(signal.SIGINT) is handler
    about = read_json(work / "stopped/run.json")
    assert about["status"] == "stopped"
    assert [row["step"] for row in rows_of(work / "stopped/metrics.jsonl")] == [1, 2]

    status, out, err = train(*words, "--resume", sets=sets)
    assert status == 0 and json.loads(out)["updates"] == 4
    assert "Continuing after update 2." in err and "other settings" not in err
    assert [row["step"] for row in rows_of(work / "stopped/metrics.jsonl")] == [1, 2, 3, 4]
    steps = [row["step"] for row in rows_of(work / "stopped/samples.jsonl")]
    assert steps == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert read_json(work / "stopped/run.json")["status"] == "done"


def test_ctrl_c_ends_a_stage_after_the_step_and_resume_goes_on(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def interrupts(self: Run, row: dict[str, Any], stage: str | None = None) -> None:
        log(self, row, stage)
        if row.get("step") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    words = ("sft", "--data", "demos.jsonl", "--json")
    sets = ["epochs=3", "batch_size=4", "learning_rate=0.003"]
    assert summary_of(train(*words, "--out", "unstopped", sets=sets))["steps"] == 6
    monkeypatch.setattr(Run, "log", interrupts)
    status, out, err = train(*words, "--out", "stopped_sft", sets=sets)
    assert (status, out) == (130, "") and "To resume where it ended" in err
    assert read_json(work / "stopped_sft/run.json")["status"] == "stopped"
    monkeypatch.setattr(Run, "log", log)
    assert not (work / "stopped_sft/adapters").exists()
    status, out, err = train(*words, "--out", "stopped_sft", "--resume", sets=sets)
    assert status == 0 and "Continuing after step 4." in err and "other settings" not in err
    assert json.loads(out)["steps"] == 6
    ours, theirs = (rows_of(work / name / "metrics.jsonl") for name in ("stopped_sft", "unstopped"))
    assert ours == theirs
    file = "adapters/policy/adapter_model.safetensors"
    assert (work / "stopped_sft" / file).read_bytes() == (work / "unstopped" / file).read_bytes()

    status, _, err = train(*words, "--out", "stopped_sft", "--resume", sets=[*sets, "lora_rank=8"])
    assert status == 2 and "adapters of another shape" in err


def test_resume_without_a_checkpoint_says_so(work: Path, train: Train) -> None:
    data = ("--prompts", "prompts.jsonl", "--reward-function", "rewards.py:length")
    words = ("ppo", *data, "--out", "fresh", "--resume", "--json")
    status, _, err = train(*words, sets=[*PPO, "updates=1"])
    assert status == 0 and "no checkpoint yet" in err
    _, out, err = train(*words, sets=PPO)  # longer than it was meant to be at first
    assert "updates was 1 and is 2" in err and json.loads(out)["updates"] == 2


def test_the_second_ctrl_c_stops_at_once() -> None:
    from lorarlhf.runtime.interrupt import StopAfterUpdate

    with StopAfterUpdate() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("launched", [True, False])
def test_under_a_launcher_the_notice_says_when_it_kills(
    launched: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    from lorarlhf.runtime.interrupt import StopAfterUpdate

    with StopAfterUpdate() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
    error = capfd.readouterr().err
    assert stopper.requested and "Stopping after this update" in error
    assert ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in error) == launched


def test_ctrl_c_elsewhere_is_noted(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Run, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", interrupted)
    status, _, err = train("sft", "--data", "demos.jsonl", "--out", "early")
    assert status == 130 and "the same command starts again" in err
    assert read_json(work / "early/run.json")["status"] == "stopped"


# ---- failures


def test_a_full_disk_is_told_as_one(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Run, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr(Run, "log", full)
    status, _, err = train("sft", "--data", "demos.jsonl", "--out", "full")
    assert status == 2 and "The disk is full while writing metrics.jsonl." in err
    assert read_json(work / "full/run.json")["status"] == "failed"


def test_a_failure_of_ours_says_how_to_see_more(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Run, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Run, "log", fails)
    status, out, err = train("sft", "--data", "demos.jsonl", "--out", "bug", "--json")
    assert (status, out) == (1, "")
    assert "sft failed: RuntimeError: a bug. Run it again with --debug" in err


BY_LENGTH = ("--reward-function", "rewards.py:length")


@pytest.mark.parametrize(
    ("words", "sets", "said"),
    [
        (("sft", "--data", "none.jsonl"), (), "no such file"),
        (("sft", "--data", "pairs.jsonl"), (), 'pairs.jsonl, line 1, field "completion"'),
        (("reward", "--data", "demos.jsonl"), (), 'field "chosen"'),
        (("reward", "--data", "pairs.jsonl", "--eval", "empty.jsonl"), (), "empty file"),
        (("sft", "--data", "demos.jsonl"), ("epoch=2",), "Did you mean epochs?"),
        (("sft", "--data", "demos.jsonl"), ("trl.max_step=2",), "Did you mean trl.max_steps?"),
        (("sft", "--data", "demos.jsonl"), ("trl.optim=no",), "The settings of sft don't fit"),
        (("sft", "--data", "demos.jsonl"), ("adapter_layers=9",), "a number from 1 to 4, not 9"),
        (("sft", "--data", "demos.jsonl"), ("device=cuda:7",), "device is cuda:7"),
        (("sft", "--data", "demos.jsonl"), ("chat_template=no.jinja",), "no chat template file"),
        (("sft", "--data", "demos.jsonl", "--init", "none"), (), "no such folder"),
        (("sft", "--data", "demos.jsonl", "--out", "demos.jsonl"), (), "can't be written"),
        (("ppo", "--prompts", "prompts.jsonl"), (), "PPO needs a reward"),
        (("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH, "--reward", "x"), (), "no such folder"),
        (
            ("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH),
            ("max_prompt_tokens=5",),
            "8 of 8 prompts are longer than max_prompt_tokens (5)",
        ),
        (
            ("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH),
            ("rollout_batch_size=5", "num_minibatches=2"),
            "must be a multiple of num_minibatches",
        ),
        (
            ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:lenght"),
            (),
            "Did you mean 'length'?",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    words: tuple[str, ...], sets: tuple[str, ...], said: str, work: Path, train: Train
) -> None:
    (work / "empty.jsonl").write_text("")
    if "--out" not in words:
        words += ("--out", "mistaken")
    status, out, err = train(*words, sets=sets)
    assert (status, out) == (2, "") and said in err
    assert not (work / "mistaken").exists()


def test_a_reward_function_that_fails_is_the_users(work: Path, train: Train) -> None:
    words = ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:broken")
    status, _, err = train(*words, "--out", "division", sets=PPO)
    assert status == 2 and "'broken' raised ZeroDivisionError" in err
    assert "rewards.py, line 14" in err and err.splitlines()[-1].startswith("The reward function")
    assert read_json(work / "division/run.json")["status"] == "failed"


def test_bases_that_do_not_work_are_named(train: Train, tmp_path: Path, tiny_base: Path) -> None:
    words = ("sft", "--data", "demos.jsonl", "--out", "nobase")
    assert "There is no model folder" in train(*words, base=str(tmp_path / "no"))[2]
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    status, _, err = train(*words, base=str(tmp_path))
    assert status == 2 and "is not a causal language model" in err


def test_a_base_without_a_chat_template_says_how_to_name_one(
    train: Train, tmp_path: Path, tiny_base: Path
) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = read_json(tmp_path / "tokenizer_config.json")
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for words in (("sft", "--data", "demos.jsonl"), ("dpo", "--data", "pairs.jsonl")):
        status, _, err = train(*words, "--out", "untold", base=str(tmp_path))
        assert status == 2 and "--set chat_template=FILE" in err and "plain=true" in err


def test_adapters_of_another_base_are_refused(
    sft_run: Path, train: Train, make_base: Callable[..., Path]
) -> None:
    other = str(make_base(seed=1))
    words = ("orpo", "--data", "pairs.jsonl", "--init", "runs/sft", "--out", "refused")
    status, _, err = train(*words, base=other)
    assert status == 2 and other in err and "Adapters fit only the base" in err


def test_runs_on_two_bases_cannot_share_one(
    sft_run: Path,
    work: Path,
    tiny_base: Path,
    make_base: Callable[..., Path],
    train: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(make_base(seed=1))
    train("reward", "--data", "pairs.jsonl", "--out", "other", sets=["epochs=0"], base=other)
    words = ["ppo", "--prompts", "prompts.jsonl", "--init", "runs/sft", "--reward", "other"]
    assert main([*words, "--out", "refused"]) == 2
    error = capsys.readouterr().err
    assert str(tiny_base) in error and other in error and "Loading" not in error


def test_a_report_that_fails_does_not_fail_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorarlhf.cli import train as training
    from lorarlhf.runtime.errors import UserError

    def fails(folder: Path) -> Path:
        raise UserError("no report")

    monkeypatch.setattr(training, "write_report", fails)
    words = ("sft", "--data", "demos.jsonl", "--out", "unreported", "--json")
    status, out, err = train(*words, sets=["trl.max_steps=1"])
    assert status == 0 and json.loads(out)["steps"] == 1 and "no report" in err


def test_interrupts_outside_the_main_thread_are_left_alone() -> None:
    import threading

    from lorarlhf.runtime.interrupt import StopAfterUpdate

    handler = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def enter() -> None:
        with contextlib.suppress(ValueError), StopAfterUpdate():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handler]
