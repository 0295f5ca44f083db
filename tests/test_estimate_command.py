"""`lorarlhf estimate` without a project: the table of all stages, JSON, and mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorarlhf.backbone.memory import estimate
from lorarlhf.backbone.memory_plan import COUNTED, Plan
from lorarlhf.backbone.shape import Shape
from lorarlhf.cli.main import main


def test_a_table_of_all_stages(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--base", str(tiny_base), "--card", "12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["GB", *COUNTED]
    assert [line.split()[0] for line in lines[1:12]] == [
        *("base", "adapters", "heads", "optimizer", "kept_trunk", "activations", "logits"),
        *("kv_cache", "scratch", "runtime", "total"),
    ]
    assert "fits" in lines[12] and lines[12].split()[1:] == ["yes"] * len(COUNTED)
    assert lines[-1] == "Computed, not measured on this kind of card."


def test_json_in_bytes(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "--base", str(tiny_base / "config.json"), "--stage", "ppo", "--json"]
    assert main([*words, "--device", "cpu", "--card", "0.1", "--adapter-layers", "all"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured"] and list(result["bytes"]) == ["ppo"]
    assert result["fits"] == {"ppo": False}
    assert result["largest"]["ppo"] == {"micro_batch_size": 0, "answer_tokens": 0}
    shape = Shape.of(json.loads((tiny_base / "config.json").read_text()))
    plan = Plan("ppo", device="cpu", adapter_layers=shape.layers)
    assert result["bytes"]["ppo"] == estimate(shape, plan)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "none.json"], "none.json can't be read as JSON"),
        (["--base", "./none"], "There is no model folder none"),
        (["--adapter-layers", "99"], "--adapter-layers is upper-half, all or a number from 1 to"),
        (["--prompt-tokens", "0"], "--prompt-tokens is 1 or more, not 0"),
        (["--card", "-1"], "--card is above 0 gigabytes, not -1"),
    ],
)
def test_mistakes(
    tiny_base: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    base = [] if "--base" in words else ["--base", str(tiny_base)]
    assert main(["estimate", *base, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_configuration_that_is_no_decoders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert main(["estimate", "--base", str(tmp_path / "config.json")]) == 2
    assert "does not have the sizes of a decoder" in capsys.readouterr().err


def test_settings_of_ppo_can_be_named(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def parts(*words: str) -> dict[str, int]:
        command = ["estimate", "--base", str(tiny_base), "--stage", "ppo", "--json", *words]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)["bytes"]["ppo"]

    plain, none = parts(), parts("--no-reference", "--no-value-adapter")
    assert none["adapters"] == plain["adapters"] / 2
    assert parts("--policy-layers", "1", "--value-layers", "1")["optimizer"] < plain["optimizer"]
    assert parts("--gradient-checkpointing")["activations"] < plain["activations"]
    assert parts("--no-gradient-checkpointing") == plain


def test_no_torch_is_needed(tiny_base: Path) -> None:
    program = (
        "import sys; from lorarlhf.cli.main import main; "
        f"main(['estimate', '--base', {str(tiny_base)!r}]); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
