"""Policy and value train their upper layers alone; what lies below is run once and kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.backbone.limits import count_trained_layers
from lorarlhf.ppo import checkpoint
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import (
    MicroBatch,
    first_trained_layer,
    make_micro_batches,
    policy_logprobs,
    token_values,
)
from lorarlhf.ppo.rollout import collect, reward_scores
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runtime.errors import UserError

PROMPTS = ["Hi?", "Why is the sky blue?", "Name a bird."]


@pytest.fixture(params=["upper-half", "all", 3])
def backbone(request: pytest.FixtureRequest, tiny_base: Path) -> Backbone:
    """Four layers, with adapters on two, all or three of them, none of them zero."""
    made = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4, adapter_layers=request.param
    )
    made.add_role("reward")
    made.add_role("value", copy_of="reward")
    for name, weight in made.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    torch.nn.init.normal_(made.heads["value"].weight)
    return made


def micro_batch(backbone: Backbone) -> MicroBatch:
    encoded = [backbone.encode(prompt) for prompt in PROMPTS]
    answers = [Completion("", [40 + n, 50, 60 + n], ended=False) for n in range(3)]
    (micro,) = make_micro_batches(backbone, encoded, answers, size=3)
    return micro


def outputs(backbone: Backbone, micro: MicroBatch, role: str, first: int = 0) -> torch.Tensor:
    """What a role says of each token of the answers."""
    if role == "value":
        return token_values(backbone, micro, first)
    return policy_logprobs(backbone, micro, 1.0, first)[0]


def upper_gradients(backbone: Backbone, role: str, first: int, kept: bool) -> list[torch.Tensor]:
    micro = micro_batch(backbone)
    backbone.model.zero_grad(set_to_none=True)
    with backbone.role(role, train=True):
        outputs(backbone, micro, role, first if kept else 0).sin().sum().backward()
    assert (role in micro.lower) == kept
    named = roles.adapter_parameters(backbone.model, roles.ADAPTERS[role])
    weights = [p for name, p in named.items() if roles.layer_of(name) >= first]
    return [p.grad.clone() for p in weights if p.grad is not None]


@pytest.mark.parametrize(
    ("adapted", "policy", "value"), [(1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 3, 2), (15, 10, 5)]
)
def test_two_thirds_of_the_policy_and_a_third_of_the_value_train_by_default(
    adapted: int, policy: int, value: int
) -> None:
    assert count_trained_layers("policy", None, adapted) == policy
    assert count_trained_layers("value", None, adapted) == value
    assert count_trained_layers("value", 1, adapted) == 1
    assert count_trained_layers("value", 99, adapted) == adapted


def test_the_first_layer_that_trains(backbone: Backbone) -> None:
    first = {2: {"policy": 0, "value": 3}, 4: {"policy": 1, "value": 2}}.get(
        backbone.adapter_layers, {"policy": 2, "value": 3}
    )
    args = PPOConfig("out")
    assert {role: first_trained_layer(backbone, args, role) for role in first} == first
    args = PPOConfig("out", policy_layers=9, value_layers=9)
    assert {first_trained_layer(backbone, args, role) for role in first} == {0}
    backbone.add_role("value", own_adapter=False)  # only a head, on the policy's states
    assert first_trained_layer(backbone, PPOConfig("out"), "value") == first["policy"]


def test_a_value_that_is_only_a_head_reads_what_the_policy_keeps(backbone: Backbone) -> None:
    backbone.add_role("value", own_adapter=False)
    torch.nn.init.normal_(backbone.heads["value"].weight)
    with torch.no_grad():
        with backbone.role("value"):
            whole = token_values(backbone, micro_batch(backbone))
        micro = micro_batch(backbone)
        with backbone.role("policy"):
            outputs(backbone, micro, "policy", 3)
        with backbone.role("value"):
            assert torch.equal(token_values(backbone, micro, 3), whole)
    assert list(micro.lower) == ["policy"]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("role", ["policy", "value"])
def test_outputs_and_gradients_above_what_is_kept_are_those_of_a_whole_pass(
    backbone: Backbone, role: str, packs: bool
) -> None:
    backbone.forward.packs = packs
    micro, first = micro_batch(backbone), 3
    with torch.no_grad(), backbone.role(role):
        whole = outputs(backbone, micro, role)
        assert not micro.lower
        ours = outputs(backbone, micro, role, first)
        assert torch.equal(outputs(backbone, micro, role, first), ours)  # from what is kept
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    mine, theirs = (upper_gradients(backbone, role, first, kept) for kept in (True, False))
    assert len(mine) == len(theirs) == 14  # A and B of the last layer's seven products
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def ppo(backbone: Backbone, folder: Path, **changes: Any) -> PPOTrainer:
    settings: dict[str, Any] = {"rollout_batch_size": 3, "max_new_tokens": 5, "updates": 2}
    settings |= {"critic_warmup": 0, "save_steps": 1, "value_learning_rate": 1e-2} | changes
    args = PPOConfig(output_dir=str(folder), **settings)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    return PPOTrainer(backbone, args, rows, lambda completions, **_: [len(c) for c in completions])


def by_layer(backbone: Backbone, role: str = "value") -> dict[int, torch.Tensor]:
    named = roles.adapter_parameters(backbone.model, roles.ADAPTERS[role])
    layers = sorted({roles.layer_of(name) for name in named})
    return {
        number: torch.cat(
            [p.detach().flatten() for n, p in named.items() if roles.layer_of(n) == number]
        )
        for number in layers
    }


@pytest.mark.parametrize("role", ["policy", "value"])
def test_the_lower_layers_of_a_role_stay(backbone: Backbone, role: str, tmp_path: Path) -> None:
    before = by_layer(backbone, role)
    trainer = ppo(backbone, tmp_path, **{f"{role}_layers": 1})
    trainer.train()
    after = by_layer(backbone, role)
    moved = [number for number in before if not torch.equal(before[number], after[number])]
    assert moved == [3] and len(before) == backbone.adapter_layers
    assert all(p.grad is None for p in backbone.parameters_of(role))


def test_a_family_that_can_not_be_cut_trains_the_same_layers(
    backbone: Backbone, tiny_base: Path, tmp_path: Path
) -> None:
    weights: dict[str, list[dict[int, torch.Tensor]]] = {"policy": [], "value": []}
    state = {n: p.detach().clone() for n, p in backbone.model.named_parameters() if "lora_" in n}
    for splits in (True, False):
        for name, weight in backbone.model.named_parameters():
            if "lora_" in name:
                weight.data.copy_(state[name])
        backbone.heads.pop("value")
        backbone.add_role("value", copy_of="reward")
        backbone.forward.splits = splits
        trainer = ppo(backbone, tmp_path / str(splits), updates=1, adam_epsilon=1e-3)
        trainer.train()
        for role, found in weights.items():
            found.append(by_layer(backbone, role))
            assert all(p.grad is None for p in backbone.parameters_of(role)), role
    for ours, theirs in weights.values():
        for number, mine in ours.items():
            torch.testing.assert_close(mine, theirs[number], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["policy_layers", "value_layers"])
def test_a_resumed_run_trains_the_same_layers(name: str, tiny_base: Path, tmp_path: Path) -> None:
    made = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    ppo(made, tmp_path, updates=1, **{name: 1}).train()
    again = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    with pytest.raises(UserError, match=f"{name}=1, which can't change"):
        ppo(again, tmp_path, **{name: 2}).train(resume_from_checkpoint=True)
    ppo(again, tmp_path, **{name: 1}).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_a_version_that_trained_other_layers(
    tiny_base: Path, tmp_path: Path
) -> None:
    made = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    ppo(made, tmp_path, updates=1).train()
    (path,) = tmp_path.rglob("state.json")
    state = json.loads(path.read_text())
    for older in ({"value_layers": None}, {}):
        kept = {name: x for name, x in state.items() if not name.endswith("_layers")}
        path.write_text(json.dumps(kept | older))
        with pytest.raises(UserError, match="from an older version, which trained other layers"):
            checkpoint._load(ppo(made, tmp_path), path.parent)


# ---- what two roles have in common


@pytest.fixture
def copied(tiny_base: Path, randomise: Callable[..., None]) -> Backbone:
    """Three of four layers carry adapters; reference and value are copies of policy and reward."""
    made = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4, adapter_layers=3
    )
    made.add_role("reward")
    for seed, role in enumerate(("policy", "reward")):
        randomise(made, role, seed=seed)
    made.freeze_reference()
    made.add_role("value", copy_of="reward")
    return made


def change(backbone: Backbone, role: str, layer: int) -> None:
    named = roles.adapter_parameters(backbone.model, roles.ADAPTERS[role])
    for name, weight in named.items():
        if roles.layer_of(name) == layer and "lora_B" in name:
            weight.data += 0.3


def test_roles_that_are_the_same_below_a_layer(copied: Backbone) -> None:
    assert copied.same_below("value", "reward", 4) and copied.same_below("reference", "policy", 4)
    assert not copied.same_below("value", "policy", 2) and copied.same_below("value", "policy", 1)
    change(copied, "value", 2)
    assert copied.same_below("value", "reward", 2) and not copied.same_below("value", "reward", 3)
    copied.model.delete_adapter("ref")  # the reference is the bare base then
    assert not copied.same_below("policy", "reference", 4)
    assert not copied.same_below("reference", "policy", 4)
    fresh = Backbone.load(str(copied.base_path), bits=16, lora_rank=4)
    assert fresh.same_below("policy", "reference", 4) and fresh.same_below("base", "reference", 4)


@pytest.mark.parametrize("changed", [None, "reward", "reference"])
def test_what_roles_have_in_common_is_run_once(
    copied: Backbone, tmp_path: Path, changed: str | None
) -> None:
    if changed:
        change(copied, changed, 1)
    args = PPOConfig(str(tmp_path), rollout_batch_size=3, max_new_tokens=5, use_cpu=True)
    # Found out by forwards of their own.
    assert copied.forward.splits_at(2) and copied.forward.splits_at(3)
    runs: list[str] = []
    hook = copied.decoder.layers[1].register_forward_hook(
        lambda *_: runs.append(copied.model.active_adapter)
    )
    rollout = collect(copied, [{"prompt": prompt} for prompt in PROMPTS], args, seed=0)
    sampled = runs.count("default")
    scores, _ = reward_scores(copied, rollout)
    hook.remove()
    assert runs.count("ref") == (changed == "reference") and sampled > 5
    assert runs.count("value") == 1 and runs.count("reward") == (changed == "reward")
    for micro in rollout.micro_batches:
        micro.lower.clear()
    torch.testing.assert_close(scores, reward_scores(copied, rollout)[0], rtol=1e-5, atol=1e-6)
    gap = (rollout.logprobs - rollout.ref_logprobs).abs().max()
    assert gap == 0.0 if changed != "reference" else gap > 1e-3
