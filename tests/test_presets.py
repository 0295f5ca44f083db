"""The presets are up to date, every stage accepts them, and they fit their card."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import on_gpu  # noqa: E402
import presets  # noqa: E402
import stage_memory  # noqa: E402
from tiny import write_base  # noqa: E402

from lorarlhf.backbone.base import Backbone  # noqa: E402
from lorarlhf.backbone.memory import estimate  # noqa: E402
from lorarlhf.backbone.shape import Shape  # noqa: E402
from lorarlhf.project.settings import resolve  # noqa: E402
from lorarlhf.runtime.errors import UserError  # noqa: E402
from lorarlhf.stages.table import STAGES  # noqa: E402

FILES = sorted((ROOT / "recipes/presets").glob("*.yaml"))


def test_the_files_are_what_the_script_writes() -> None:
    there = {path.name: path.read_text() for path in presets.FOLDER.glob("*.[ym]*")}
    assert there == presets.files()
    cards = {path.name.split("gb-")[0] for path in FILES}
    assert cards == {"8", "12", "16", "24"} and len(FILES) == 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_stage_of_a_preset_is_accepted_and_fits(path: Path) -> None:
    card, name = path.stem.split("gb-")
    base, shape = presets.BASES[name]
    plans = presets.plans_for(shape, int(card))
    assert plans
    for stage, plan in plans.items():
        settings = resolve(STAGES[stage], config=path)
        assert settings.base == base and settings.backbone["bits"] == 4
        assert settings.backbone["adapter_layers"] == plan.adapter_layers
        assert settings.own["micro_batch_size"] == plan.micro_batch_size
        if stage == "ppo":
            assert settings.own["max_new_tokens"] == plan.answer_tokens >= 256
            assert settings.own["rollout_batch_size"] == plan.rollout_batch_size
            assert settings.own["gradient_checkpointing"] is plan.gradient_checkpointing
        assert estimate(shape, plan)["total"] <= 0.92 * int(card) * 2**30
    most = max(estimate(shape, plan)["total"] for plan in plans.values())
    assert ("tight" in presets.purpose(int(card), shape, plans)) == (
        most > 0.85 * int(card) * 2**30
    )


def test_a_larger_card_takes_no_less() -> None:
    for _, shape in presets.BASES.values():
        found = [presets.plans_for(shape, card) for card in presets.CARDS]
        for small, large in zip(found, found[1:], strict=False):
            assert small.keys() <= large.keys()


def test_a_settings_file_for_all_stages(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "bits: 8\nsft:\n  micro_batch_size: 2\n  trl:\n    max_steps: 7\nppo:\n  updates: 3\ndpo:\n"
    )
    sft = resolve(STAGES["sft"], config=path)
    assert (sft.own["micro_batch_size"], sft.backbone["bits"], sft.trl) == (2, 8, {"max_steps": 7})
    assert resolve(STAGES["ppo"], config=path).own["updates"] == 3
    assert resolve(STAGES["dpo"], config=path).own["micro_batch_size"] == 4
    assert resolve(STAGES["ppo"], config=path, sets=["updates=5"]).own["updates"] == 5
    path.write_text("micro_batch_size: 1\nsft:\n  micro_batch_size: 2\n")
    assert resolve(STAGES["sft"], config=path).own["micro_batch_size"] == 2
    assert resolve(STAGES["dpo"], config=path).own["micro_batch_size"] == 1
    path.write_text("sft:\n  micro_batch: 2\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 2: there is no setting micro_batch"):
        resolve(STAGES["sft"], config=path)
    path.write_text("sft: 3\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 1: expected one `key: value` a line"):
        resolve(STAGES["sft"], config=path)
    path.write_text("sft:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(UserError, match=r"line 3: epochs is on line 2 already"):
        resolve(STAGES["sft"], config=path)


def test_a_preset_that_is_not_there_is_named() -> None:
    for name in ("9", "12gb-9b", "big"):
        with pytest.raises(SystemExit, match="There is no preset"):
            on_gpu.what_to_run(name, "smollm2-135m")


def test_everything_runs_all_presets_of_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    kept: list[str] = []

    def noted(name: str, *_: object) -> dict[str, object]:
        asked.append(name)
        return {"name": name, "failed": False, "seconds": 1, "said": []}

    monkeypatch.setattr(on_gpu, "step", noted)
    monkeypatch.setattr(on_gpu, "keep", lambda preset, rows: kept.append(preset))
    monkeypatch.setattr(on_gpu, "is_such_a_card", lambda preset: preset.startswith("8gb"))
    monkeypatch.setattr(on_gpu, "environment", lambda device: {})
    for device in ("cpu", "cuda"):
        asked.clear()
        words = ["x", "--everything", "--device", device, "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            on_gpu.main()
        assert ended.value.code == 0
        assert kept == ["8gb-1.5b", "8gb-3b", "8gb-4b", "8gb-7b"] * (device == "cuda")
    assert asked[:3] == ["doctor", "demo", "sft"] and asked[-2:] == ["ppo_vs_trl", "ppo_limits"]
    assert "8gb-3b dpo" in asked and "8gb-7b orpo" not in asked  # too large for this card


def test_what_was_measured_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    steps = [
        {"name": "8gb-1.5b sft", "stage": "sft", "measured": 4.36e9, "failed": False},
        {"name": "8gb-1.5b ppo", "stage": "ppo", "failed": True},
    ]
    on_gpu.keep("8gb-1.5b", steps)
    assert json.loads((tmp_path / "measured.json").read_text()) == {"8gb-1.5b": {"sft": 4.36}}
    (line,) = [
        line
        for line in (tmp_path / "README.md").read_text().splitlines()
        if line.startswith("| 8 GB | Qwen/Qwen2.5-1.5B")
    ]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[6] == "4.4" and cells.count("-") == len(presets.STAGES) - 1
    on_gpu.keep("8gb-1.5b", [{"name": "x", "stage": "ppo", "measured": 5e9, "failed": False}])
    assert json.loads((tmp_path / "measured.json").read_text())["8gb-1.5b"]["sft"] == 4.36


@pytest.mark.parametrize("stage", presets.STAGES)
def test_every_stage_is_measured(
    stage: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "stop_ids", Backbone.stop_ids)  # PPO's rows change it
    sizes = {"prompt_tokens": 8, "answer_tokens": 6, "micro": 2, "rollout": 4, "reference": True}
    layers = {"bits": 4, "adapter_layers": "upper-half"}
    args = argparse.Namespace(gradient_checkpointing=False, **sizes, **layers)
    backbone = Backbone.load(str(tiny_base), lora_rank=4)
    before = [weight.clone() for weight in backbone.parameters_of("policy")]
    stage_memory.run_stage(stage, backbone, args, tmp_path)
    after = backbone.parameters_of("policy")
    moved = any(not torch.equal(*both) for both in zip(before, after, strict=True))
    assert moved == (stage in ("sft", "dpo", "orpo", "kto"))  # PPO's reward is a new head: 0
    heads = {"reward": ["reward"], "ppo": ["reward", "value"]}
    assert sorted(backbone.heads) == heads.get(stage, [])
    row = {"float_bytes": 4, "device": "cpu", "interpreter_mb": 500, "peak_mb": 9}
    assert "%" in stage_memory.estimated(stage, str(tiny_base), args, row)["off"]


def test_the_script_for_cards_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU, with one stage that fails and one after it."""
    monkeypatch.setattr(presets, "STAGES", ("dpo", "ppo"))
    base = write_base(tmp_path / "base")
    words = ["on_gpu.py", "--device", "cpu", "--base", str(base), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    own = on_gpu.measured

    def broken(base: str, plan: object, *rest: object) -> object:
        name = "/nowhere" if plan.stage == "dpo" else base  # type: ignore[attr-defined]
        return own(name, plan, *rest)

    monkeypatch.setattr(on_gpu, "measured", broken)
    with pytest.raises(SystemExit) as ended:
        on_gpu.main()
    assert ended.value.code == 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in report.splitlines() if "|" in line}
    assert "FAILED" not in rows["ppo"] and "%" in rows["ppo"]
    assert "FAILED" in rows["dpo"] and "There is no model folder /nowhere" in report
    assert "compute dtype" in report
    # Most answers of a random model are ties for the rater, in some dtypes all of them: the demo
    # fails, and the report says so.
    few = ("could not tell any of 24 pairs apart", "A reward role needs pairs")
    assert "FAILED" in rows["demo"] and any(text in report for text in few)


def test_shapes_are_those_of_their_families() -> None:
    from transformers import AutoConfig

    _, shape = presets.BASES["4b"]
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=2560,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=9728,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    assert Shape.of(config.to_dict()) == shape
