"""Training that runs two roles on one batch runs the trunk once, and ends with the same weights."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.forward import Forward
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, train_kto


def loaded(base: Path, **named: Any) -> Backbone:
    given = {"compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4} | named
    return Backbone.load(str(base), **given)


def counted(backbone: Backbone) -> dict[str, int]:
    """How often the lowest and the highest layer run, from now on."""
    calls = {"lowest": 0, "highest": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    for name, place in (("lowest", 0), ("highest", -1)):
        backbone.decoder.layers[place].register_forward_hook(count(name))
    return calls


@pytest.mark.parametrize(
    ("checkpointing", "dtype"), [(False, "float32"), (True, "float32"), (False, "bfloat16")]
)
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_the_reference_starts_at_the_policy_s_trunk(
    stage: str,
    checkpointing: bool,
    dtype: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, calls = [], []
    for remembers in (True, False):
        backbone = loaded(tiny_base, compute_dtype=dtype)
        calls.append(counted(backbone))
        if not remembers:
            monkeypatch.setattr(Forward, "remembered_trunk", lambda self: contextlib.nullcontext())
        run = Run(tmp_path / str(remembers), stage, {"seed": 0})
        train(stage, backbone, run, {"gradient_checkpointing": checkpointing})
        weights.append([weight.detach().clone() for weight in backbone.parameters_of("policy")])
        assert "forward" not in vars(backbone.decoder)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert any(weight.abs().sum() > 0 for weight in weights[0])
    ours, plain = calls
    # The reference's forwards, without their trunk; checkpointing runs the upper layers again.
    assert ours["highest"] == plain["highest"]
    assert ours["lowest"] == plain["lowest"] / 2


def train(stage: str, backbone: Backbone, run: Run, trl: dict[str, Any]) -> None:
    prompts = [f"What is {n}?" for n in range(6)]
    sizes: dict[str, Any] = {"epochs": 2.0, "batch_size": 2, "micro_batch_size": 2, "trl": trl}
    sizes["evaluations"] = 0  # the forwards of the training alone are counted
    if stage == "kto":
        rows = [
            {"prompt": p, "completion": f"A sum of {n}.", "label": bool(n % 2)}
            for n, p in enumerate(prompts)
        ]
        train_kto(backbone, rows, run, KTOSettings(**sizes))
    else:
        pairs = [{"prompt": p, "chosen": "A sum.", "rejected": "No."} for p in prompts]
        train_direct(backbone, pairs, run, stage, DirectSettings(**sizes))


def test_other_inputs_run_from_the_start(tiny_base: Path, randomise: Callable[..., None]) -> None:
    backbone = loaded(tiny_base)
    randomise(backbone, "policy")
    ids = torch.arange(24).view(2, 12) % 50 + 4
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    asked = [(ids, mask), (ids, torch.ones_like(ids)), (ids + 1, mask), (ids[:, 2:], mask[:, 2:])]

    @torch.no_grad()
    def states(one: torch.Tensor, other: torch.Tensor, role: str, **more: Any) -> torch.Tensor:
        with backbone.role(role):
            given = {"input_ids": one, "attention_mask": other, "use_cache": False}
            return backbone.decoder(**given | more).last_hidden_state

    wanted = [[states(*some, role) for role in ("policy", "base")] for some in asked]
    calls = counted(backbone)
    with backbone.forward.remembered_trunk():
        for some, theirs in zip(asked, wanted, strict=True):
            for role, states_of in zip(("policy", "base"), theirs, strict=True):
                assert torch.equal(states(*some, role), states_of)
        assert calls == {"lowest": len(asked), "highest": 2 * len(asked)}
        cached = states(*asked[-1], "base", use_cache=True)  # keys of all layers are wanted
        assert torch.equal(cached, wanted[-1][1]) and calls["lowest"] == len(asked) + 1
    assert torch.equal(states(*asked[-1], "policy"), wanted[-1][0])


def test_a_batch_that_is_filled_anew_runs_from_the_start(tiny_base: Path) -> None:
    backbone = loaded(tiny_base)
    ids = torch.arange(12)[None] + 4
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad(), backbone.role("base"):
        wanted = backbone.decoder(**given | {"input_ids": ids + 1}).last_hidden_state
        calls = counted(backbone)
        with backbone.forward.remembered_trunk(), backbone.forward.remembered_trunk():
            backbone.decoder(**given)
            ids += 1
            assert torch.equal(backbone.decoder(**given).last_hidden_state, wanted)
            layers = backbone.decoder(**given, output_hidden_states=True).hidden_states
    assert calls["lowest"] == 3 and len(layers) == len(backbone.decoder.layers) + 1
    assert "forward" not in vars(backbone.decoder)


def test_without_a_trunk_nothing_is_remembered(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), compute_dtype="float32", adapter_layers="all")
    with backbone.forward.remembered_trunk():
        assert "forward" not in vars(backbone.decoder)
