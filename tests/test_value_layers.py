"""The value trains its upper layers alone; what lies below is run once a rollout and kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.errors import UserError
from lorarlhf.generation import Completion
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import MicroBatch, make_micro_batches, token_values, value_trained_from
from lorarlhf.ppo.trainer import PPOTrainer

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


def upper_gradients(backbone: Backbone, first: int, kept: bool) -> list[torch.Tensor]:
    micro = micro_batch(backbone)
    backbone.model.zero_grad(set_to_none=True)
    with backbone.role("value", train=True):
        token_values(backbone, micro, first if kept else 0).sin().sum().backward()
    assert (micro.value_trunk is not None) == kept
    weights = backbone.parameters_of("value", first)[:-2]  # the head's two come last
    return [p.grad.clone() for p in weights if p.grad is not None]


def test_half_of_the_layers_with_adapters_train_by_default(backbone: Backbone) -> None:
    first = value_trained_from(backbone, PPOConfig("out"))
    assert first == {2: 3, 4: 2, 3: 2}[backbone.adapter_layers]
    assert value_trained_from(backbone, PPOConfig("out", value_layers=1)) == 3
    assert value_trained_from(backbone, PPOConfig("out", value_layers=9)) == backbone.split


@pytest.mark.parametrize("packs", [True, False])
def test_values_and_gradients_above_what_is_kept_are_those_of_a_whole_pass(
    backbone: Backbone, packs: bool
) -> None:
    backbone.packs = packs
    micro, first = micro_batch(backbone), 3
    with torch.no_grad(), backbone.role("value"):
        whole = token_values(backbone, micro)
        assert micro.value_trunk is None
        values = token_values(backbone, micro, first)
        assert torch.equal(token_values(backbone, micro, first), values)  # from what is kept
    torch.testing.assert_close(values, whole, rtol=1e-5, atol=1e-5)
    ours, theirs = (upper_gradients(backbone, first, kept) for kept in (True, False))
    assert len(ours) == len(theirs) == 14  # A and B of the last layer's seven products
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def ppo(backbone: Backbone, folder: Path, **changes: Any) -> PPOTrainer:
    settings: dict[str, Any] = {"rollout_batch_size": 3, "max_new_tokens": 5, "updates": 2}
    settings |= {"critic_warmup": 0, "save_steps": 1, "value_learning_rate": 1e-2} | changes
    args = PPOConfig(output_dir=str(folder), **settings)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    return PPOTrainer(backbone, args, rows, lambda completions, **_: [len(c) for c in completions])


def by_layer(backbone: Backbone) -> dict[int, torch.Tensor]:
    named = roles.adapter_parameters(backbone.model, roles.ADAPTERS["value"])
    layers = sorted({roles.layer_of(name) for name in named})
    return {
        number: torch.cat(
            [p.detach().flatten() for n, p in named.items() if roles.layer_of(n) == number]
        )
        for number in layers
    }


def test_the_lower_layers_of_the_value_stay(backbone: Backbone, tmp_path: Path) -> None:
    before = by_layer(backbone)
    trainer = ppo(backbone, tmp_path, value_layers=1)
    trainer.train()
    after = by_layer(backbone)
    moved = [number for number in before if not torch.equal(before[number], after[number])]
    assert moved == [3] and len(before) == backbone.adapter_layers
    assert all(p.grad is None for p in backbone.parameters_of("value"))


def test_a_family_that_can_not_be_cut_trains_the_same_layers(
    backbone: Backbone, tiny_base: Path, tmp_path: Path
) -> None:
    weights = []
    state = {n: p.detach().clone() for n, p in backbone.model.named_parameters() if "lora_" in n}
    for splits in (True, False):
        for name, weight in backbone.model.named_parameters():
            if "lora_" in name:
                weight.data.copy_(state[name])
        backbone.heads.pop("value")
        backbone.add_role("value", copy_of="reward")
        backbone.splits = splits
        trainer = ppo(backbone, tmp_path / str(splits), updates=1, adam_epsilon=1e-3)
        trainer.train()
        weights.append(by_layer(backbone))
    for number, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][number], rtol=0, atol=1e-5)


def test_a_resumed_run_trains_the_same_layers(tiny_base: Path, tmp_path: Path) -> None:
    made = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    ppo(made, tmp_path, value_layers=1, updates=1).train()
    again = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    with pytest.raises(UserError, match="value_layers=1, which can't change"):
        ppo(again, tmp_path).train(resume_from_checkpoint=True)
    ppo(again, tmp_path, value_layers=1).train(resume_from_checkpoint=True)
