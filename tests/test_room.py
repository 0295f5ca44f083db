"""What training commands say about memory before the base is loaded, and when they stop."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lorarlhf.backbone.loading import load_tokenizer
from lorarlhf.backbone.memory import MACHINES, Plan, estimate
from lorarlhf.backbone.shape import Shape
from lorarlhf.backbone.tokenizer import PromptEncoder
from lorarlhf.cli import preflight as room
from lorarlhf.cli import train as training
from lorarlhf.cli.main import main
from lorarlhf.cli.preflight import Length, MemoryEstimate, check_rows, estimate_memory
from lorarlhf.project import lineage as parents
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl

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
        monkeypatch.setattr(room, "free_for_us", lambda device: free)
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
    monkeypatch.setattr(training, "load_backbone", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr(parents, "load_backbone", lambda *_: pytest.fail("was loaded"))
    status, err = sft(10**8)
    assert status == 2 and "That does not fit." in err and "--no-memory-check" in err
    assert "Take a smaller base" in err  # the libraries alone are larger
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_check_can_be_left_out(sft: Sft, tmp_path: Path) -> None:
    status, err = sft(10**8, "--no-memory-check")
    assert status == 0 and "0.1 GB free" in err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"] == 2


def test_each_piece_of_advice_fits() -> None:
    estimated = MemoryEstimate(BIG, PLAN, smaller=(4, 2, 1))
    free = estimated.parts["total"] - 10**9
    with pytest.raises(UserError) as told:
        estimated.check(free)
    named = dict(re.findall(r"--set ([\w.]+)=(\w+)", str(told.value)))
    assert named["micro_batch_size"] in "421" and named["gradient_checkpointing"] == "true"
    assert named["max_new_tokens"] == "128" and named["adapter_layers"] == "8"
    names = {"max_new_tokens": "answer_tokens"}
    for name, value in named.items():
        changed = replace(PLAN, **{names.get(name, name): value == "true" or int(value)})
        assert estimate(BIG, changed)["total"] <= free, name
    estimated.check(free + 10**9)
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
    estimated = MemoryEstimate(BIG, plan, smaller=(4, 2, 1))
    with pytest.raises(UserError) as told:
        estimated.check(free)
    named = dict(re.findall(r"--set ([\w.]+)=(\w+)", str(told.value)))
    assert named.pop("max_new_tokens") == "128" and named.pop("bits") == "4"
    assert named == {name: str(value).lower() for name, value in small.items()}
    with pytest.raises(UserError, match="Take a smaller base, or shorter texts"):
        estimated.check(free - 1)


def test_the_plan_is_that_of_the_settings(tiny_base: Path) -> None:
    config, longest = AutoConfig.from_pretrained(tiny_base), Length(5, 7)
    sets = ["batch_size=6", "micro_batch_size=4", "adapter_layers=all", "bits=16", "lora_rank=2"]
    found = estimate_memory("dpo", config, resolve("dpo", sets=sets), CPU, 4, longest, False)
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
    found = estimate_memory("ppo", config, resolve("ppo", sets=sets), CPU, 2, longest, True)
    assert found is not None and found.plan.gradient_checkpointing and found.plan.reference
    assert not found.plan.value_adapter and found.plan.rollout_batch_size == 16
    sets = ["trl.gradient_checkpointing=true", "trl.per_device_train_batch_size=1"]
    found = estimate_memory("sft", config, resolve("sft", sets=sets), CPU, 2, longest, False)
    assert found is not None and found.plan.checkpointed and found.plan.micro_batch_size == 1
    sets = ["rollout_batch_size=18", "num_minibatches=2"]
    found = estimate_memory("ppo", config, resolve("ppo", sets=sets), CPU, 2, longest, True)
    assert found is not None and (found.plan.micro_batch_size, found.smaller) == (8, (3, 1))
    found = estimate_memory("sft", config, resolve("sft"), CPU, 2, longest, True, besides=10**9)
    assert found is not None and found.smaller == (2, 1)
    assert found.parts["total"] == estimate(found.shape, found.plan)["total"] + 10**9
    rloo = resolve("ppo", sets=["algorithm=rloo"])
    assert estimate_memory("ppo", config, rloo, CPU, 2, longest, True) is None
    for family in ("gpt2", "gemma3n_text"):  # sizes under other names, and one a layer
        odd = AutoConfig.for_model(family)
        assert estimate_memory("sft", odd, resolve("sft"), CPU, 2, longest, False) is None
    fit = resolve("reward", sets=["epochs=0"])
    assert estimate_memory("reward", config, fit, CPU, 2, longest, False) is None


def test_the_longest_row_is_measured(tiny_base: Path) -> None:
    reader = PromptEncoder("tiny", load_tokenizer(str(tiny_base), None))
    rows = [{"prompt": "a b c", "chosen": "d " * n, "rejected": "e " * (9 - n)} for n in (2, 6)]
    plain = resolve("dpo", sets=["plain=true"])
    _, longest = check_rows("dpo", reader, rows, plain)
    prompt, answers = reader.encode("a b c"), [reader.encode("e " * 7), reader.encode("d " * 6)]
    assert longest == (len(prompt), max(map(len, answers)))
    rows.append({"prompt": "a " * 30, "chosen": "b", "rejected": "c"})
    _, both = check_rows("dpo", reader, rows, plain)  # the longest row, and the longest answer
    assert both.answer == longest.answer and sum(both) > len(reader.encode("a " * 30))
    rows.pop()
    limit = sum(longest) - 2
    _, cut = check_rows(
        "dpo", reader, rows, resolve("dpo", sets=["plain=true", f"max_tokens={limit}"])
    )
    assert sum(cut) == limit and cut.answer == longest.answer
    _, text = check_rows("sft", reader, [{"text": "a b c"}], resolve("sft", sets=["plain=true"]))
    assert text == (0, len(prompt))
    sets = ["plain=true", "max_new_tokens=11"]
    _, asked = check_rows("ppo", reader, [{"prompt": "a b c"}], resolve("ppo", sets=sets))
    assert asked == (len(prompt), 11)


def test_free_memory_counts_what_is_held_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "main_memory", lambda: (10**9, 2 * 10**9))
    assert 10**9 < room.free_for_us(CPU) < 10**10
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2)
    context = MACHINES["cuda"].runtime
    assert room.free_for_us(torch.device("cuda", 0)) == 7 + 2 + context
