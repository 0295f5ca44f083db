"""What training commands say about memory before the base is loaded, and when they stop."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lorarlhf.backbone.base_files import BaseFiles
from lorarlhf.backbone.loading import load_tokenizer
from lorarlhf.backbone.memory import estimate
from lorarlhf.backbone.memory_plan import MACHINES, Plan
from lorarlhf.backbone.shape import Shape
from lorarlhf.backbone.tokenizer import PromptEncoder
from lorarlhf.cli import preflight
from lorarlhf.cli.main import main
from lorarlhf.cli.preflight import MemoryEstimate, estimate_memory
from lorarlhf.cli.row_checks import Length, prepare_rows
from lorarlhf.project import load
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.stages.table import STAGES

CPU = torch.device("cpu")
BIG = Shape(4096, 32, 32, 8, 128, 14336, 128256, tied=False)  # an 8B
PLAN = Plan("ppo", adapter_layers=16, micro_batch_size=8, prompt_tokens=256, answer_tokens=256)
Sft = Callable[..., tuple[int, str]]


@pytest.fixture
def sft(
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Sft:
    """Run sft on two rows with so many free bytes; returns status and standard error."""
    demos = tmp_path / "demos.jsonl"
    write_jsonl(demos, [{"prompt": "Hi?", "completion": "Yes. " * n} for n in (2, 30)])

    def run(free: int, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(preflight, "free_for_us", lambda device: free)
        command = ["sft", "--data", str(demos), "--base", str(tiny_base), *words]
        command += ["--out", str(tmp_path / "run"), "--set", "bits=16", "--set", "epochs=1"]
        status = main(command)
        return status, capsys.readouterr().err

    return run


def test_a_command_says_what_it_will_take_and_keeps_it(sft: Sft, tmp_path: Path) -> None:
    status, err = sft(8 * 10**9)
    assert status == 0
    assert re.search(r"Memory: about 0\.\d GB at the peak, 8\.0 GB free .*; 4 at a time", err)
    assert err.index("Memory:") < err.index("Loading")
    assert 500 < read_json(tmp_path / "run" / "run.json")["expected_mb"] < 1000


def test_what_does_not_fit_stops_before_anything_is_loaded_or_written(
    sft: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_backbone", lambda *_: pytest.fail("was loaded"))
    status, err = sft(10**8)
    assert status == 2 and "That does not fit." in err and "--no-memory-check" in err
    assert "Take a smaller base" in err  # the libraries alone are larger
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_check_can_be_left_out(sft: Sft, tmp_path: Path) -> None:
    status, err = sft(10**8, "--no-memory-check")
    assert status == 0 and "0.1 GB free" in err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"] == 2


def test_each_piece_of_advice_fits() -> None:
    whole = MemoryEstimate(BIG, PLAN, smaller=(4, 2, 1))
    free = whole.parts["total"] - 10**9
    with pytest.raises(UserError) as told:
        whole.check(free)
    named = dict(re.findall(r"--set ([\w.]+)=(\w+)", str(told.value)))
    assert named["micro_batch_size"] in "421" and named["gradient_checkpointing"] == "true"
    assert named["max_new_tokens"] == "128" and named["adapter_layers"] == "8"
    names = {"max_new_tokens": "answer_tokens"}
    for name, value in named.items():
        changed = replace(PLAN, **{names.get(name, name): value == "true" or int(value)})
        assert estimate(BIG, changed)["total"] <= free, name
    whole.check(free + 10**9)
    with pytest.raises(UserError) as told:
        MemoryEstimate(BIG, PLAN, new_adapters=False).check(
            free
        )  # a run's adapters have their shape
    assert "adapter_layers" not in str(told.value) and "micro_batch" not in str(told.value)
    with pytest.raises(UserError, match=r"trl.gradient_checkpointing=true.*max_tokens=384"):
        sft = MemoryEstimate(BIG, replace(PLAN, stage="sft", device="cpu"))
        sft.check(sft.parts["total"] - 1)


def test_where_no_single_change_is_enough_all_are_named_together() -> None:
    plan = replace(PLAN, bits=16)
    small = {"micro_batch_size": 1, "gradient_checkpointing": True, "adapter_layers": 8}
    free = estimate(BIG, replace(plan, bits=4, answer_tokens=128, **small))["total"]
    whole = MemoryEstimate(BIG, plan, smaller=(4, 2, 1))
    with pytest.raises(UserError) as told:
        whole.check(free)
    named = dict(re.findall(r"--set ([\w.]+)=(\w+)", str(told.value)))
    assert named.pop("max_new_tokens") == "128" and named.pop("bits") == "4"
    assert named == {name: str(value).lower() for name, value in small.items()}
    with pytest.raises(UserError, match="Take a smaller base, or shorter texts"):
        whole.check(free - 1)


def base(config: Any, float_bytes: int) -> BaseFiles:
    dtype = {2: torch.bfloat16, 4: torch.float32}[float_bytes]
    return BaseFiles("base", "", config, None, CPU, dtype)


def estimated(
    stage: Stage, settings: Settings, base: BaseFiles, has_reference: bool, **more: int
) -> MemoryEstimate | None:
    longest = Length(5, 7)
    return estimate_memory(stage, settings, base, longest, has_reference=has_reference, **more)


def test_the_plan_is_that_of_the_settings(tiny_base: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_base)
    sets = ["batch_size=6", "micro_batch_size=4", "adapter_layers=all", "bits=16", "lora_rank=2"]
    found = estimated(STAGES["dpo"], resolve(STAGES["dpo"], sets=sets), base(config, 4), False)
    assert found is not None
    layers = config.num_hidden_layers
    assert found.plan == Plan(
        "dpo",
        bits=16,
        adapter_layers=layers,
        lora_rank=2,
        micro_batch_size=3,  # what divides the batch
        rollout_batch_size=1,
        prompt_tokens=5,
        answer_tokens=7,
        float_bytes=4,
        device="cpu",
        reference=False,
    )
    sets = ["gradient_checkpointing=true", "value_adapter=false", "micro_batch_size=2"]
    found = estimated(STAGES["ppo"], resolve(STAGES["ppo"], sets=sets), base(config, 2), True)
    assert found is not None and found.plan.gradient_checkpointing and found.plan.reference
    assert not found.plan.value_adapter and found.plan.rollout_batch_size == 16
    sets = ["trl.gradient_checkpointing=true", "trl.per_device_train_batch_size=1"]
    found = estimated(STAGES["sft"], resolve(STAGES["sft"], sets=sets), base(config, 2), False)
    assert found is not None and found.plan.checkpointed and found.plan.micro_batch_size == 1
    sets = ["rollout_batch_size=18", "num_minibatches=2"]
    found = estimated(STAGES["ppo"], resolve(STAGES["ppo"], sets=sets), base(config, 2), True)
    assert found is not None and (found.plan.micro_batch_size, found.smaller) == (8, (3, 1))
    found = estimated(
        STAGES["sft"], resolve(STAGES["sft"]), base(config, 2), True, reward_models=10**9
    )
    assert found is not None and found.smaller == (2, 1)
    assert found.parts["total"] == estimate(found.shape, found.plan)["total"] + 10**9
    for algorithm in ("rloo", "grpo"):
        sets = [f"algorithm={algorithm}", "rollout_batch_size=12", "micro_batch_size=4"]
        settings = resolve(STAGES["ppo"], sets=sets)
        found = estimated(STAGES["ppo"], settings, base(config, 2), False)
        assert found is not None and found.plan.stage == "rloo" and found.smaller == (3, 2, 1)
        assert (found.plan.micro_batch_size, found.plan.rollout_batch_size) == (4, 12)
        settings = resolve(STAGES["ppo"], sets=[*sets, "trl.steps_per_generation=2"])
        assert estimated(STAGES["ppo"], settings, base(config, 2), False) is None
        ways = [name for name, _, _ in replace(found, shape=BIG)._ways()]
        assert ways[3:] == ["gradient_checkpointing", "adapter_layers", "max_new_tokens"]
    for family in ("gpt2", "gemma3n_text"):  # sizes under other names, and one a layer
        odd = AutoConfig.for_model(family)
        assert estimated(STAGES["sft"], resolve(STAGES["sft"]), base(odd, 2), False) is None
    fit = resolve(STAGES["reward"], sets=["epochs=0"])
    assert estimated(STAGES["reward"], fit, base(config, 2), False) is None


def test_the_longest_row_is_measured(tiny_base: Path) -> None:
    encoder = PromptEncoder("tiny", load_tokenizer(str(tiny_base), None))

    def longest_of(stage: str, rows: list[dict[str, Any]], *sets: str) -> Length:
        settings = resolve(STAGES[stage], sets=["plain=true", *sets])
        return prepare_rows(STAGES[stage], encoder, rows, settings)[1]

    rows = [{"prompt": "a b c", "chosen": "d " * n, "rejected": "e " * (9 - n)} for n in (2, 6)]
    longest = longest_of("dpo", rows)
    prompt, answers = encoder.encode("a b c"), [encoder.encode("e " * 7), encoder.encode("d " * 6)]
    assert longest == (len(prompt), max(map(len, answers)))
    rows.append({"prompt": "a " * 30, "chosen": "b", "rejected": "c"})
    both = longest_of("dpo", rows)  # the longest row, and the longest answer
    assert both.answer == longest.answer and sum(both) > len(encoder.encode("a " * 30))
    rows.pop()
    limit = sum(longest) - 2
    cut = longest_of("dpo", rows, f"max_tokens={limit}")
    assert sum(cut) == limit and cut.answer == longest.answer
    assert longest_of("sft", [{"text": "a b c"}]) == (0, len(prompt))
    assert longest_of("ppo", [{"prompt": "a b c"}], "max_new_tokens=11") == (len(prompt), 11)


def test_free_memory_counts_what_is_held_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "main_memory", lambda: (10**9, 2 * 10**9))
    assert 10**9 < preflight.free_for_us(CPU) < 10**10
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2)
    context = MACHINES["cuda"].runtime
    assert preflight.free_for_us(torch.device("cuda", 0)) == 7 + 2 + context
