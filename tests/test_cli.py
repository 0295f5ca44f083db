"""The command line itself: what it parses, what it answers without torch, and how errors look."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorarlhf import __version__
from lorarlhf.cli.commands import COMMANDS
from lorarlhf.cli.main import explain, main
from lorarlhf.cli.parser import SUMMARIES, build_parser
from lorarlhf.cli.result import Result
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import replace_nonfinite

COMMAND = [sys.executable, "-m", "lorarlhf.cli"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command in this process."""
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Standard error of a command that must end as the user's mistake, with nothing printed."""
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and "Traceback" not in err
    return err


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- quick answers


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0 and done.stderr == ""
    assert min(seconds) < 0.5
    assert all(name in done.stdout for name in SUMMARIES)


HEAVY = "{'torch', 'transformers', 'trl', 'datasets', 'numpy', 'matplotlib', 'yaml'}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from lorarlhf.cli.main import main; main(['sft', '--help']); "
    assert python(code + f"print(sorted({HEAVY} & set(sys.modules)))").endswith("\n[]")


def test_a_broken_data_file_is_reported_before_torch_is_imported() -> None:
    code = "import sys; from lorarlhf.cli.main import main; "
    code += "status = main(['sft', '--data', 'none.jsonl']); "
    assert python(code + "print(status, 'torch' in sys.modules)") == "2 False"


@pytest.mark.parametrize("command", SUMMARIES)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "") and "--json" in out and "--debug" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"lorarlhf {__version__}\n", "")


def test_every_command_is_both_parsed_and_run() -> None:
    assert list(SUMMARIES) == list(COMMANDS)


def test_no_command_shows_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "doctor" in mistake(capsys)


def test_ui_without_a_project_names_the_command_that_makes_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = mistake(capsys, "ui", "mine")
    assert "lorarlhf new mine" in error
    assert list(tmp_path.iterdir()) == []  # nobody was there to agree


def test_ui_offers_to_make_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda: "")
    pages = SimpleNamespace(main=lambda args: opened.append(args.project) or {})
    monkeypatch.setitem(sys.modules, "lorarlhf_ui.app", pages)
    assert main(["ui"]) == 0
    assert opened == ["my-assistant"]
    assert (tmp_path / "my-assistant" / "project.yaml").is_file()
    assert main(["ui"]) == 0  # now it is found
    assert opened == ["my-assistant"] * 2


def test_ui_names_what_it_can_not_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    project = str(tmp_path / "mine")
    assert main(["new", project]) == 0
    capsys.readouterr()
    assert "has its base already" in mistake(capsys, "ui", project, "--base", "other")
    assert "--rater is a name" in mistake(capsys, "ui", project, "--no-model", "--rater", " ")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert "Choose another port" in mistake(capsys, "ui", project, "--no-model", "--port", port)
    assert "Choose another port" in mistake(capsys, "ui", project, "--no-model", "--port", "99999")


# ---- mistakes in the words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune"], "invalid choice: 'tune'"),
        (["sft"], "--data"),
        (["sft", "--data", "x", "--bogus", "1"], "--bogus"),
        (["sft", "--data", "x", "--seed", "one"], "--seed"),
        (
            ["sft", "--dat", "x"],
            "unrecognized arguments: --dat",
        ),
        (["chat", "RUN", "--role", "king"], "invalid choice: 'king'"),
        (["chat", "--json", "--base", "b"], "add --prompt"),
        (["chat", "RUN", "--prompt", "x", "--temperature", "-1"], "--temperature is 0"),
        (["chat", "RUN", "--prompt", "x", "--temperature", "nan"], "--temperature is 0"),
        (["chat", "RUN", "--prompt", "x", "--max-new-tokens", "0"], "1 or more, not 0"),
        (["chat", "--prompt", "x", "--role", "policy"], "--role policy needs a run"),
        (["chat", "none", "--prompt", "x"], "there is no such folder"),
        (["chat", "none", "--prompt", "x", "--role", "base"], "not the folder of a finished run"),
        (["score", "none", "--prompt", "x", "--answer", "y"], "there is no such folder"),
        (["score", "none", "--prompt", "x"], "Say what to score"),
        (["score", "none", "--file", "f", "--prompt", "x"], "not both"),
        (["demo", "--noise", "2", "--out", "none"], "noise"),
        (["demo", "--pairs", "1", "--out", "none"], "--pairs is 2 or more, not 1"),
        (["demo", "--updates", "0", "--out", "none"], "--updates is 1 or more, not 0"),
        (["demo", "--bits", "5", "--out", "none"], "--bits is 4, 8 or 16, not 5"),
        (["demo", "--adapter-layers", "no", "--out", "none"], "--adapter-layers is upper-half"),
        (["demo", "--rater", "cheerfull", "--out", "none"], "'cheerful'"),
    ],
)
def test_a_mistake_is_one_paragraph_and_status_2(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = mistake(capsys, *words)
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---- the demo's options


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the loop itself, and keeps the options that it was given."""
    import lorarlhf.cli.demo

    given: list[Any] = []

    def run_demo(options: Any) -> dict[str, Any]:
        given.append(options)
        print("a line of the demo")
        return {"win_rate": {"rate": 0.75}, "broken": float("nan")}

    monkeypatch.setattr(lorarlhf.cli.demo, "run_demo", run_demo)
    return given


def test_demo_without_options_takes_its_own_defaults(
    demo: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from lorarlhf.cli.demo_options import DemoOptions

    assert run(capsys, "demo") == (0, "a line of the demo\n", "")
    assert demo == [DemoOptions()]


def test_demo_hands_its_options_on(demo: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = "--out o --rater plain --noise 0 --pairs 9 --updates 3 --seed 5 --base b --bits 16"
    status, _, _ = run(capsys, "demo", *words.split(), "--adapter-layers", "2", "--quick")
    (options,) = demo
    assert status == 0
    assert (options.out, options.rater, options.noise, options.pairs) == ("o", "plain", 0.0, 9)
    assert (options.updates, options.seed, options.base, options.bits) == (3, 5, "b", 16)
    assert int(options.adapter_layers) == 2 and options.quick and not options.resume


def test_demo_as_json_prints_one_object(
    demo: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "demo", "--json", "--resume")
    assert status == 0 and demo[0].resume
    assert json.loads(out) == {"win_rate": {"rate": 0.75}, "broken": None}  # JSON knows no NaN
    assert err == "a line of the demo\n"


# ---- how commands end


def ends_with(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | Result) -> None:
    def command(args: Any) -> Result:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setitem(COMMANDS, "ui", command)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("Mend it."), 2, "Mend it."),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "disk is full while writing"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "disk is full."),
        (MemoryError(), 1, "ran out of memory"),
        (RuntimeError("two\nlines"), 1, "ui failed: RuntimeError: two lines. Run it again with"),
        (SystemExit("bye"), 1, "ui failed: SystemExit: bye."),
    ],
)
def test_each_kind_of_failure_has_its_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LORARLHF_DEBUG", raising=False)
    ends_with(monkeypatch, error)
    found, out, err = run(capsys, "ui")
    assert (found, out) == (status, "")
    assert said in err and "Traceback" not in err and err.count("\n") == 1


def test_debug_shows_the_traceback_and_everything_that_was_silenced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    monkeypatch.setenv("LORARLHF_DEBUG", "")
    ends_with(monkeypatch, UserError("Mend it."))
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    kept = list(logger.filters)
    assert kept  # quiet.py drops a line of this one
    try:
        status, _, err = run(capsys, "ui", "--debug")
        assert logger.filters == []
    finally:
        logger.filters[:] = kept
    assert status == 2 and "Traceback" in err and err.endswith("Mend it.\n")
    assert os.environ["LORARLHF_DEBUG"] == "1"


def test_a_result_decides_text_json_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_with(monkeypatch, Result({"a": [1, float("inf")]}, "a is 1", status=1))
    assert run(capsys, "ui") == (1, "a is 1\n", "")
    assert run(capsys, "ui", "--json") == (1, '{"a": [1, null]}\n', "")


def test_a_reader_that_has_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_output_survives_a_terminal_without_utf8() -> None:
    code = "from lorarlhf.cli import commands, main as cli; "
    code += "commands.COMMANDS['ui'] = lambda a: commands.Result({'x': 'é'}, 'é'); "
    done = subprocess.run(
        [sys.executable, "-c", code + "cli.main(['ui']); cli.main(['ui', '--json'])"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.split() == [b"?", b'{"x":', b'"\\u00e9"}']


def test_the_parser_leaves_what_was_not_given_empty() -> None:
    args = build_parser().parse_args(["ppo", "--prompts", "p"])
    assert (args.data, args.out, args.base, args.seed, args.config) == ("p", None, None, None, None)
    assert (args.set, args.reward_function, args.resume) == ([], [], False)


def test_memory_errors_of_a_card_get_advice() -> None:
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.")
    status, text = explain(error, "ppo")
    assert status == 1 and "micro_batch_size=1" in text
    assert "micro_batch_size=2" in explain(error, "kto")[1]  # the smallest that KTO takes
    assert "--set" not in explain(error, "chat")[1]  # which has no such setting


def test_finite_keeps_what_json_knows() -> None:
    data = {"a": (1.5, None, "x"), "b": [float("-inf")]}
    assert replace_nonfinite(data) == {"a": [1.5, None, "x"], "b": [None]}
