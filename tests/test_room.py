"""What training commands say about memory before the base is loaded, and when they stop."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lorarlhf import parents, room, training
from lorarlhf.backbone.loading import load_tokenizer
from lorarlhf.backbone.reading import Reader
from lorarlhf.cli import main
from lorarlhf.data import write_jsonl
from lorarlhf.errors import UserError
from lorarlhf.memory import Plan, Shape, estimate
from lorarlhf.room import Foretold, foretell
from lorarlhf.row_checks import Length, check_rows
from lorarlhf.runs import read_json
from lorarlhf.settings import resolve

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
    foretold = Foretold(BIG, PLAN)
    free = foretold.parts["total"] - 10**9
    with pytest.raises(UserError) as told:
        foretold.check(free)
    named = dict(re.findall(r"--set ([\w.]+)=(\w+)", str(told.value)))
    assert named["micro_batch_size"] in "421" and named["gradient_checkpointing"] == "true"
    smaller = replace(PLAN, micro_batch_size=int(named["micro_batch_size"]))
    checkpointed = replace(PLAN, gradient_checkpointing=True)
    assert all(estimate(BIG, plan)["total"] <= free for plan in (smaller, checkpointed))
    foretold.check(free + 10**9)


def test_where_no_single_change_is_enough_all_are_named_together() -> None:
    plan = replace(PLAN, bits=16)
    smallest = Foretold(BIG, plan)._smallest()
    free = estimate(BIG, smallest)["total"]
    with pytest.raises(UserError, match=r"all of these together: micro_batch_size=1.*bits=4"):
        Foretold(BIG, plan).check(free)
    with pytest.raises(UserError, match="Take a smaller base"):
        Foretold(BIG, plan).check(free - 1)


def test_the_plan_is_that_of_the_settings(tiny_base: Path) -> None:
    config, longest = AutoConfig.from_pretrained(tiny_base), Length(5, 7)
    sets = ["batch_size=6", "micro_batch_size=4", "adapter_layers=all", "bits=16", "lora_rank=2"]
    found = foretell("dpo", config, resolve("dpo", sets=sets), CPU, 4, longest, False)
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
    found = foretell("ppo", config, resolve("ppo", sets=sets), CPU, 2, longest, True)
    assert found is not None and found.plan.gradient_checkpointing and found.plan.reference
    assert not found.plan.value_adapter and found.plan.rollout_batch_size == 16
    sets = ["trl.gradient_checkpointing=true", "trl.per_device_train_batch_size=1"]
    found = foretell("sft", config, resolve("sft", sets=sets), CPU, 2, longest, False)
    assert found is not None and found.plan.checkpointed and found.plan.micro_batch_size == 1
    rloo = resolve("ppo", sets=["algorithm=rloo"])
    assert foretell("ppo", config, rloo, CPU, 2, longest, True) is None
    odd = AutoConfig.for_model("gpt2")
    assert foretell("sft", odd, resolve("sft"), CPU, 2, longest, False) is None


def test_the_longest_row_is_measured(tiny_base: Path) -> None:
    reader = Reader("tiny", load_tokenizer(str(tiny_base), None))
    rows = [{"prompt": "a b c", "chosen": "d " * n, "rejected": "e " * (9 - n)} for n in (2, 6)]
    plain = resolve("dpo", sets=["plain=true"])
    _, longest = check_rows("dpo", reader, rows, plain)
    prompt, answers = reader.encode("a b c"), [reader.encode("e " * 7), reader.encode("d " * 6)]
    assert longest == (len(prompt), max(map(len, answers)))
    limit = sum(longest) - 2
    _, cut = check_rows(
        "dpo", reader, rows, resolve("dpo", sets=["plain=true", f"max_tokens={limit}"])
    )
    assert cut == (longest.prompt, longest.answer - 2)
    _, text = check_rows("sft", reader, [{"text": "a b c"}], resolve("sft", sets=["plain=true"]))
    assert text == (0, len(prompt))
    sets = ["plain=true", "max_new_tokens=11"]
    _, asked = check_rows("ppo", reader, [{"prompt": "a b c"}], resolve("ppo", sets=sets))
    assert asked == (len(prompt), 11)


def test_free_memory_counts_what_is_held_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "main_memory", lambda: (10**9, 2 * 10**9))
    assert 10**9 < room.free_for_us(CPU) < 10**10
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert room.free_for_us(torch.device("cuda", 0)) == 7
