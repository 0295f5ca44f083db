"""The whole loop at its quick size on the real small base, as a user's command runs it.

What is killed or stopped on the way runs on a tiny base: that takes the same steps.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import SPECIALS

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.demo import run_demo
from lorarlhf.cli.demo_options import DemoOptions
from lorarlhf.cli.main import main
from lorarlhf.runtime.errors import UserError

pytestmark = pytest.mark.slow

# Refuses every connection that leaves the process, then runs the command line.
WITHOUT_NETWORK = """
import socket, sys
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise OSError(f"network refused: {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: (_ for _ in ()).throw(OSError("network refused"))
from lorarlhf.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_base: object) -> Path:
    """A quick demo that ran with the network refused, and nothing kept offline by the tests."""
    out = tmp_path_factory.mktemp("demo") / "run"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, "demo", "--quick", "--json", "--out", str(out)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "summary.json").read_text())
    assert "Warning" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    return out


def test_it_writes_what_scripts_rely_on(finished: Path) -> None:
    files = ["summary.json", "report.html", "metrics.jsonl", "preferences.jsonl", "run.json"]
    files += [
        f"adapters/{role}/adapter_model.safetensors" for role in ("policy", "reward", "value")
    ]
    assert [name for name in files if not (finished / name).is_file()] == []
    pickles = [p for p in finished.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


def test_summary_has_every_key(finished: Path, small_base: Backbone) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("base", "bits", "adapter_layers", "rater", "noise", "seed", "pairs", "peak_rss_mb"):
        assert key in summary
    assert summary["base"] == "smollm2-135m" and summary["bits"] == 4
    assert 0 <= summary["reward_model"]["heldout_accuracy"] <= 1
    assert summary["reward_model"]["n"] > 0
    ppo = summary["ppo"]
    assert ppo["updates"] == 2 and ppo["episodes"] == 8
    for key in ("kl_per_sequence", "mean_length_before", "mean_length_after", "seconds_per_update"):
        assert isinstance(ppo[key], float)
    won = summary["win_rate"]
    assert won["n"] == won["wins"] + won["ties"] + won["losses"] == 12
    assert won["rate"] == pytest.approx((won["wins"] + won["ties"] / 2) / 12)
    assert won["ci95"][0] <= won["rate"] <= won["ci95"][1]
    best = summary["best_of_n"]
    assert best["n"] == 4 and best["win_rate"]["n"] == 12
    assert best["kl_bound"] == pytest.approx(0.636, abs=1e-3)
    picks = [json.loads(line) for line in (finished / "heldout_best_of.jsonl").open()]
    assert [len(row["answers"]) for row in picks] == [4] * 6
    assert summary["backbone"]["copies"] == 1
    assert summary["backbone"]["bytes"] == small_base.footprint.bytes()
    stages = {"load", "sample", "rate", "reward", "ppo", "judge", "total"}
    assert stages <= set(summary["seconds"])


def test_votes_are_the_rater_s(finished: Path) -> None:
    votes = [json.loads(line) for line in (finished / "preferences.jsonl").open(encoding="utf-8")]
    assert len(votes) == json.loads((finished / "summary.json").read_text())["pairs"]
    assert all(vote["chosen"] != vote["rejected"] and vote["prompt"] for vote in votes)


def test_metrics_have_steps_and_the_report_shows_samples(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open(encoding="utf-8")]
    assert all("step" in row for row in rows)
    assert [row["step"] for row in rows if row["stage"] == "ppo"] == [1, 2]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "held-out" in page


def test_resume_with_other_options_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="noise was 0.1"):
        run_demo(DemoOptions(out=str(finished), noise=0.2, quick=True, resume=True))


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        run_demo(DemoOptions(out=str(tmp_path), quick=True))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def endings(make_base: Callable[..., Path]) -> list[str]:
    """Words for a demo on a tiny base whose answers end here and there, which a rater can judge."""
    folder = make_base(num_hidden_layers=12)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][SPECIALS.index("<|im_end|>")] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ["demo", "--quick", "--base", str(folder), "--rater", "brief"]


@pytest.fixture(scope="module")
def whole(endings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo on the tiny base."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*endings, "--out", str(out)]) == 0
    return out


def test_score_and_chat_open_the_demo_s_run(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", "How do I cheer up a friend?"]
    answers = ["--answer", "What a lovely thing to do!", "--answer", "It is hopeless."]
    assert main(["score", str(whole), *asked, *answers, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert len(scores) == 2 and scores[0] != scores[1]
    chat = ["chat", str(whole), *asked, "--role", "policy", "--seed", "1", "--json"]
    assert main([*chat, "--max-new-tokens", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"]


def started(words: list[str], file: Path, **options: Any) -> subprocess.Popen[str]:
    """A command that has come as far as to write this file."""
    command = [sys.executable, "-m", "lorarlhf.cli", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    while not file.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return process


def test_killed_in_ppo_it_resumes_to_the_same_metrics(
    endings: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started([*endings, "--out", str(out)], out / "checkpoints" / "checkpoint-1")
    process.kill()
    process.communicate()
    assert not (out / "summary.json").exists()
    # With another rater than the default; what is not given is as it was.
    assert main(["demo", "--out", str(out), "--resume"]) == 0

    def metrics(run: Path) -> list[dict]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]

    assert metrics(out) == metrics(whole)
    assert [row["step"] for row in metrics(out) if row["stage"] == "ppo"] == [1, 2]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (out, whole)]
    assert summaries[0]["win_rate"] == summaries[1]["win_rate"]
    assert summaries[0]["best_of_n"] == summaries[1]["best_of_n"]


def test_ctrl_c_stops_cleanly(endings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    # A shell's background job ignores Ctrl-C, and its children do unless they are told otherwise.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = [*endings, "--out", str(out)]
    process = started(words, out / "preferences.jsonl", preexec_fn=listening)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    # Where Ctrl-C falls into code that a library runs by itself, Python ends by the signal; a shell
    # calls both 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert "--resume" in told and "Traceback" not in told
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
