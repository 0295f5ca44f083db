"""The roles on one base: the switch puts everything back, and each role trains alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone

ALL = [*roles.ROLES, "base"]


@pytest.fixture
def four(tiny: Backbone, randomise: Callable[..., None]) -> Backbone:
    """A backbone with all four roles, each with random weights of its own."""
    for role in ("reference", "reward", "value"):
        tiny.add_role(role)
    for seed, role in enumerate(roles.ROLES):
        randomise(tiny, role, seed=seed)
    return tiny


def snapshot(model: PeftModel) -> dict[str, Any]:
    """All that the switch may touch."""
    return {
        "active": list(model.active_adapters),
        "name": model.active_adapter,
        "layers": [(x.active_adapters, x.disable_adapters) for x in roles.lora_layers(model)],
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
    }


def unusual_state(backbone: Backbone) -> None:
    """Settings that no switch would make by itself, so that only putting back restores them."""
    backbone.model.set_adapter("reward")
    backbone.model.train()
    for place, layer in enumerate(backbone.decoder.layers):
        layer.mlp.train(place % 2 == 0)
    for place, (name, weight) in enumerate(backbone.model.named_parameters()):
        if "lora_" in name:
            weight.requires_grad_(place % 3 == 0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("role", ALL)
def test_the_switch_restores_everything(four: Backbone, role: str, train: bool) -> None:
    unusual_state(four)
    before = snapshot(four.model)
    with four.role(role, train=train):
        assert snapshot(four.model) != before
    assert snapshot(four.model) == before


@pytest.mark.parametrize("role", ALL)
def test_the_switch_restores_everything_after_an_exception(four: Backbone, role: str) -> None:
    unusual_state(four)
    before = snapshot(four.model)
    with pytest.raises(RuntimeError, match="in the middle"), four.role(role, train=True):
        raise RuntimeError("in the middle")
    assert snapshot(four.model) == before


def test_nested_switches_restore_each_level(four: Backbone) -> None:
    unusual_state(four)
    outside = snapshot(four.model)
    with four.role("policy", train=True):
        policy = snapshot(four.model)
        with four.role("base"):
            base = snapshot(four.model)
            with pytest.raises(KeyError), four.role("value", train=True):
                raise KeyError
            assert snapshot(four.model) == base
        assert snapshot(four.model) == policy
    assert snapshot(four.model) == outside


def test_the_switch_leaves_disabled_adapters_disabled(four: Backbone) -> None:
    with four.model.disable_adapter():
        before = snapshot(four.model)
        with four.role("value", train=True):
            assert not any(x.disable_adapters for x in roles.lora_layers(four.model))
        assert snapshot(four.model) == before


@pytest.mark.parametrize("role", roles.ROLES)
def test_only_the_trained_role_requires_gradients(four: Backbone, role: str) -> None:
    def trainable() -> set[str]:
        return {name for name, p in four.model.named_parameters() if p.requires_grad}

    own = set(roles.adapter_parameters(four.model, roles.ADAPTERS[role]))
    with four.role(role, train=True):
        assert trainable() == own
        assert not any(module.training for module in four.model.modules())
    with four.role(role):
        assert trainable() == set()
    with four.role("base", train=True):
        assert trainable() == set()


def test_every_role_gives_its_own_hidden_states(four: Backbone, batch: Callable[..., Any]) -> None:
    ids, mask = batch(four, [7, 4])
    with torch.no_grad():
        hidden = {}
        for role in ALL:
            with four.role(role):
                hidden[role] = four.forward.hidden(ids, mask)
    for first in ALL:
        for second in ALL:
            assert torch.equal(hidden[first], hidden[second]) == (first == second)


def test_base_is_the_plain_model(four: Backbone, batch: Callable[..., Any]) -> None:
    ids, mask = batch(four, [7, 4])
    plain = AutoModelForCausalLM.from_pretrained(
        four.base_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        with four.role("base"):
            ours = four.model(input_ids=ids, attention_mask=mask).logits
        theirs = plain(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(ours, theirs)


def test_the_reference_is_the_base_until_it_is_frozen(
    tiny: Backbone, randomise: Callable[..., None], batch: Callable[..., Any]
) -> None:
    ids, mask = batch(tiny, [6])
    randomise(tiny, "policy", seed=3)

    def hidden(role: str) -> torch.Tensor:
        with torch.no_grad(), tiny.role(role):
            return tiny.forward.hidden(ids, mask)

    assert not tiny.has("reference")
    assert torch.equal(hidden("reference"), hidden("base"))
    tiny.freeze_reference()
    frozen = hidden("policy")
    assert torch.equal(hidden("reference"), frozen)
    randomise(tiny, "policy", seed=4)
    assert torch.equal(hidden("reference"), frozen)
    assert not torch.equal(hidden("policy"), frozen)


@pytest.mark.parametrize(("first", "second"), [("policy", "value"), ("value", "policy")])
def test_the_backward_of_one_role_leaves_the_others_alone(
    four: Backbone, batch: Callable[..., Any], first: str, second: str
) -> None:
    ids, mask = batch(four, [7, 5])

    def backward(role: str) -> None:
        with four.role(role, train=True):
            trunk = four.forward.trunk(ids, mask)
            hidden = four.forward.hidden(ids, mask, trunk)
            out = four.heads[role](hidden, trunk) if role in four.heads else hidden[..., ::2]
            out.square().sum().backward()

    backward(first)
    assert all(p.grad is not None and p.grad.any() for p in four.parameters_of(first))
    for role in roles.ROLES:
        if role != first:
            assert all(p.grad is None for p in four.parameters_of(role))
    kept = [p.grad.clone() for p in four.parameters_of(first) if p.grad is not None]
    backward(second)
    assert all(p.grad is not None and p.grad.any() for p in four.parameters_of(second))
    for weight, grad in zip(four.parameters_of(first), kept, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, grad)
    base = [p for name, p in four.model.named_parameters() if "lora_" not in name]
    assert all(p.grad is None for p in base)


@pytest.mark.parametrize("role", roles.ROLES)
def test_no_role_has_dropout(tiny_base: Path, batch: Callable[..., Any], role: str) -> None:
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_dropout=0.5
    )
    if not backbone.has(role):
        backbone.add_role(role)
    for weight in backbone.parameters_of(role):
        torch.nn.init.normal_(weight, std=0.1)
    ids, mask = batch(backbone, [9, 5])
    backbone.model.train()
    with backbone.role(role, train=True):
        assert torch.equal(backbone.forward.hidden(ids, mask), backbone.forward.hidden(ids, mask))


@pytest.mark.parametrize("pooling", roles.POOLINGS)
def test_the_value_starts_with_the_normalised_score(
    four: Backbone, batch: Callable[..., Any], randomise: Callable[..., None], pooling: str
) -> None:
    four.add_role("reward", pooling=pooling)
    randomise(four, "reward", seed=3)
    four.heads["reward"].full_weight = torch.randn(len(four.heads["reward"].full_weight))
    four.heads["reward"].bias.data.fill_(0.3)
    four.heads["reward"].score_mean.fill_(0.7)
    four.heads["reward"].score_std.fill_(2.5)
    four.add_role("value", copy_of="reward")
    ids, mask = batch(four, [6, 3])
    trunk = four.forward.trunk(ids, mask)
    with torch.no_grad():
        with four.role("reward"):
            scores = four.heads["reward"](four.forward.hidden(ids, mask, trunk), trunk)
        with four.role("value"):
            values = four.heads["value"](four.forward.hidden(ids, mask, trunk), trunk)
    torch.testing.assert_close(values, (scores - 0.7) / 2.5, rtol=1e-5, atol=1e-5)
    assert four.heads["value"].pooling == pooling
    assert (four.heads["value"].trunk_weight is not None) == (pooling == "mean")


def test_a_role_added_again_starts_anew(four: Backbone) -> None:
    four.add_role("value")
    weights = roles.adapter_parameters(four.model, "value")
    assert all(not p.any() for name, p in weights.items() if "lora_B" in name)
    assert not four.heads["value"].weight.any()


def test_all_adapter_weights_and_heads_are_float32(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype="bfloat16", adapter_layers=2)
    for role in ("reference", "reward", "value"):
        backbone.add_role(role)
    for role in roles.ROLES:
        assert {p.dtype for p in backbone.parameters_of(role)} == {torch.float32}
    hidden, trunk = torch.randn(2, 3, backbone.hidden_size).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        score = backbone.heads["value"](hidden, trunk)
    assert score.dtype == torch.float32


def test_adapters_sit_on_every_linear_layer_of_the_upper_layers(tiny: Backbone) -> None:
    names = {name.split(".layers.")[1] for name in roles.adapter_parameters(tiny.model, "default")}
    assert {int(name.split(".")[0]) for name in names} == {2, 3}
    projections = {name.split(".")[2] for name in names}
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert projections == wanted


def test_pooling_by_hand() -> None:
    head = roles.ScalarHead(2, "mean")
    head.weight.data = torch.tensor([1.0, 10.0])
    head.bias.data.fill_(0.5)
    hidden = torch.tensor(
        [
            [[9.0, 9.0], [1.0, 0.0], [3.0, 2.0], [9.0, 9.0]],
            [[2.0, 4.0], [0.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
        ]
    )
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    # mean of (1, 0) and (3, 2) is (2, 1): 2 + 10 + 0.5; drawn to 0 by 2/(2+16) and 1/(1+16)
    expected = [12.5 * 2 / 18, 42.5 / 17]
    assert head.pool(hidden, mask).tolist() == pytest.approx(expected)
    pooled = torch.tensor([[2.0, 1.0], [2.0, 4.0]]), torch.tensor([2, 1])
    assert head.score_pooled(*pooled).tolist() == pytest.approx(expected)
    head.pooling = "last"
    assert head.pool(hidden, mask).tolist() == [23.5, 42.5]
    last = torch.tensor([[3.0, 2.0], [2.0, 4.0]])
    assert head.score_pooled(last, pooled[1]).tolist() == [23.5, 42.5]


def test_a_head_on_the_trunk_by_hand() -> None:
    head = roles.ScalarHead(2, "mean", reads_trunk=True)
    head.full_weight = torch.tensor([1.0, 2.0, 10.0, 100.0])
    head.bias.data.fill_(0.5)
    trunk = torch.tensor([[[3.0, 4.0], [0.0, -7.0]]])
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    # (3, 4) has the root mean square sqrt(12.5), (0, -7) has 7 / sqrt(2)
    tokens = [11 / 12.5**0.5 + 10.5, -2 * 2**0.5 + 200.5]
    assert head(hidden, trunk)[0].tolist() == pytest.approx(tokens)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert head.pool(hidden, mask, trunk).tolist() == pytest.approx([sum(tokens) / 18])
    with pytest.raises(ValueError, match="pass it as `trunk`"):
        head(hidden)
    with pytest.raises(ValueError, match="4 weights are expected, not 2"):
        head.full_weight = torch.zeros(2)


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="'first'"):
        roles.ScalarHead(4, "first")


def test_a_switch_to_read_leaves_requires_grad_alone(four: Backbone) -> None:
    weights = [p for name, p in four.model.named_parameters() if "lora_" in name]
    for place, weight in enumerate(weights):
        weight.requires_grad_(place % 3 == 0)
    before = [weight.requires_grad for weight in weights]
    with torch.no_grad(), four.role("value"):
        assert [weight.requires_grad for weight in weights] == before
        assert four.model.active_adapter == "value"
    assert [weight.requires_grad for weight in weights] == before
