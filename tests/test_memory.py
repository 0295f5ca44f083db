"""What a plan takes: the counts against tensors that are really there, and the command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_base

from lorarlhf.backbone import memory
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels.attention import _Rules
from lorarlhf.backbone.limits import bucket_for
from lorarlhf.backbone.memory import (
    adapter_bytes,
    base_bytes,
    estimate,
    largest,
    sampled_rows,
    score_bytes,
    token_bytes,
)
from lorarlhf.backbone.memory_plan import COUNTED, MACHINES, Plan
from lorarlhf.backbone.shape import Shape, read_shape

ROOT = Path(__file__).parents[1]
# Two heads of 4, one key head, MLP of 16, 10 words: small enough to count by hand.
HAND = Shape(8, 4, 2, 1, 4, 16, 10, tied=True)
PLAN = Plan("ppo", lora_rank=2, micro_batch_size=2, rollout_batch_size=4, prompt_tokens=3)
PLAN = replace(PLAN, answer_tokens=5, device="cpu")


# ---- counts by hand


def test_the_matrices_of_a_layer() -> None:
    attention = [(8, 8), (8, 4), (8, 4), (8, 8)]
    assert HAND.matrices == [*attention, (8, 16), (8, 16), (16, 8)]
    assert len(replace(HAND, experts=3).matrices) == 4 + 9


@pytest.mark.parametrize(("bits", "each"), [(16, 2.0), (8, 1.0), (4, 0.515869140625)])
def test_the_base(bits: int, each: float) -> None:
    linear = 4 * (2 * 64 + 2 * 32 + 3 * 128)
    others = 2 * (10 * 8 + 9 * 8)  # embeddings, two norms a layer and one at the end
    assert base_bytes(HAND, bits) == round(linear * each) + others
    assert base_bytes(replace(HAND, tied=False), bits) == base_bytes(HAND, bits) + 160


def test_the_adapters_and_their_optimizer() -> None:
    ends = 2 * 16 + 2 * 12 + 3 * 24  # in and out of every matrix
    assert adapter_bytes(HAND, PLAN) == 2 * 2 * ends * 4  # two upper layers, rank 2, float32
    assert adapter_bytes(HAND, replace(PLAN, adapter_layers=4)) == 2 * adapter_bytes(HAND, PLAN)
    parts = estimate(HAND, PLAN)
    one = adapter_bytes(HAND, PLAN)
    assert parts["adapters"] == 4 * one  # policy, reference, reward, value
    # Adam of the policy's layers and half of the value's, gradients of the policy's.
    assert parts["optimizer"] == 2 * one + one + one
    few = estimate(HAND, replace(PLAN, policy_layers=1))
    assert few["optimizer"] == one + one + one / 2
    whole = estimate(HAND, replace(PLAN, value_layers=9))
    assert whole["optimizer"] == 2 * 2 * one + one
    assert parts["kept_trunk"] == 2 * whole["kept_trunk"]  # and the value's own
    assert few["kept_trunk"] == 3 * whole["kept_trunk"]  # and the policy's
    assert estimate(HAND, replace(PLAN, stage="sft"))["adapters"] == one
    frugal = estimate(HAND, replace(PLAN, reference=False, value_adapter=False))
    assert (frugal["adapters"], frugal["optimizer"]) == (2 * one, 3 * one)


def test_the_heads() -> None:
    """Two of the final state and the trunk (16 + 1): one still, one with gradient and Adam."""
    assert estimate(HAND, PLAN)["heads"] == 17 * 4 + 17 * 4 * 4
    assert estimate(HAND, replace(PLAN, adapter_layers=4))["heads"] == 9 * 4 * 5
    assert estimate(HAND, replace(PLAN, stage="reward"))["heads"] == 17 * 4 * 4
    assert estimate(HAND, replace(PLAN, stage="dpo"))["heads"] == 0


def test_what_a_token_keeps_in_a_layer() -> None:
    norms = 2 * 8  # what goes into them
    products = 2 * 8 + 2 * 8 + 2 * 4 + 4 * 16 + 7 * 2  # norms out, q and o, k and v, MLP, low rank
    attended = 2 * 8  # 2 heads look at 8 tokens
    for size in (2, 4):
        plan = replace(PLAN, float_bytes=size)
        assert token_bytes(HAND, plan) == size * (norms + products)
        assert score_bytes(HAND, plan) == size * attended
        # On a card what came out, and keys and values of every head: three times 8 numbers.
        plan = replace(plan, device="cuda")
        assert token_bytes(HAND, plan) == size * (norms + products + 3 * 8)
        assert score_bytes(HAND, plan) == 0


def test_what_attention_with_capped_scores_keeps() -> None:
    """Of each head and pair of tokens two numbers, on every device; without a cap one."""
    for capped, cap in ((False, None), (True, 50.0)):
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        rules = _Rules(torch.nn.Identity(), torch.zeros(1, 4, 9, 8), None, 0.0, {"softcap": cap})
        query, *keys = (torch.randn(1, heads, 9, 8, requires_grad=True) for heads in (4, 2, 2))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found = rules.plain(query, keys[0], keys[1], None)
        pairs = 4 * 9 * 9  # heads, tokens, tokens
        assert [size for size in kept.values() if size == pairs] == [pairs] * (2 if capped else 1)
        found.sum().backward()
        shape = replace(HAND, capped=capped)
        scores = 2 * 2 * 8  # 2 bytes, 2 heads, 8 tokens
        assert score_bytes(shape, PLAN) == scores * (2 if capped else 1)
        on_card = replace(PLAN, device="cuda")
        assert score_bytes(shape, on_card) == (2 * scores if capped else 0)
        if capped:
            assert token_bytes(shape, on_card) == token_bytes(shape, PLAN)


def test_a_card_samples_more_together_where_learning_takes_more_memory() -> None:
    shape = Shape(2048, 16, 32, 8, 64, 8192, 49152, tied=True)
    for micro, tokens in ((1, 512), (2, 256), (8, 32), (1, 32)):
        plan = Plan(
            "ppo",
            micro_batch_size=micro,
            rollout_batch_size=256,
            prompt_tokens=tokens,
            answer_tokens=tokens,
        )
        rows, parts = sampled_rows(shape, plan), estimate(shape, plan)
        learning = parts["kept_trunk"] + parts["activations"] + parts["logits"]
        assert rows >= micro
        assert rows == micro or parts["kv_cache"] <= learning
        assert sampled_rows(shape, replace(plan, rollout_batch_size=3)) == 3
        assert sampled_rows(shape, replace(plan, device="cpu")) == 8 * micro
        more = memory._cache_of(shape, plan, bucket_for(rows + 1))
        assert rows == 256 or more > learning
    whole = Plan("ppo", micro_batch_size=1, rollout_batch_size=16)
    assert sampled_rows(shape, whole) == 16  # two passes of eight before


def test_activations_and_checkpointing() -> None:
    tokens = 2 * 8
    scores = tokens * score_bytes(HAND, PLAN)
    kept = tokens * MACHINES["cpu"].heap  # in bytes a byte of a token
    half = estimate(HAND, replace(PLAN, policy_layers=1))["activations"]
    assert half == round(kept * token_bytes(HAND, PLAN) + scores)
    whole = estimate(HAND, PLAN)["activations"]
    assert whole == round(2 * (kept * token_bytes(HAND, PLAN) + scores))
    pairs = estimate(HAND, replace(PLAN, stage="dpo"))["activations"]
    assert pairs == pytest.approx(2 * whole, abs=1)
    less = estimate(HAND, replace(PLAN, gradient_checkpointing=True))["activations"]
    assert less == round(kept * (2 * 8 * 2 + token_bytes(HAND, PLAN)) + scores)


def test_checkpointing_is_the_stages_own_unless_said() -> None:
    assert not PLAN.checkpointed and not replace(PLAN, device="cuda").checkpointed
    assert replace(PLAN, stage="sft", device="cuda").checkpointed
    assert not replace(PLAN, stage="sft", device="cuda", gradient_checkpointing=False).checkpointed


def test_the_kept_trunk_and_the_cache() -> None:
    parts = estimate(HAND, PLAN)
    assert parts["kept_trunk"] == 2 * 4 * 8 * 8 * 2  # below the adapters, and below the value's
    everywhere = replace(PLAN, adapter_layers=4)
    assert estimate(HAND, everywhere)["kept_trunk"] == 2 * 4 * 8 * 8 * 2
    everything = replace(everywhere, policy_layers=4, value_layers=4)
    assert estimate(HAND, everything)["kept_trunk"] == 0
    keys = 4 * 8 * 4 * (2 * 4 * 2)  # rows, tokens, layers, keys and values
    logits = 4 * 10 * (2 + 20)  # as they are, and as probabilities
    prompts = 4 * 3 * (4 * 8 + 3 * 16) * 2  # rows, tokens, one layer's states and MLP
    assert parts["kv_cache"] == round(1.65 * keys) + prompts + logits
    many = replace(PLAN, rollout_batch_size=64, micro_batch_size=1)
    few = replace(many, rollout_batch_size=8)
    assert estimate(HAND, many)["kv_cache"] == estimate(HAND, few)["kv_cache"]  # 8 at once
    # Of a large vocabulary no more probabilities at once than the device's cache takes.
    wide = replace(HAND, vocabulary=1 << 19)
    without = round(1.65 * keys) + prompts + 4 * (1 << 19) * 2
    assert estimate(wide, PLAN)["kv_cache"] == without + (1 << 20) * 20


def test_the_weights_that_a_cpu_keeps_ready() -> None:
    """PPO packs layers that train twice over, and all for sampling, with holes if it learns little.

    A layer has 576 weights of 2 bytes; two of four layers train.
    """
    layer = 2 * (2 * 64 + 2 * 32 + 3 * 128)
    one = 2 * 128 * 2  # the largest matrix, for the forward and the backward
    assert estimate(HAND, replace(PLAN, stage="sft"))["scratch"] == one + (4 + 2) * layer
    learning = ("kept_trunk", "activations", "logits")
    small = replace(PLAN, micro_batch_size=1, rollout_batch_size=1, prompt_tokens=1)
    parts = estimate(HAND, replace(small, answer_tokens=1))
    learned = sum(parts[name] for name in learning)
    assert learned < (1.65 - 0.5) * 4 * layer
    assert parts["scratch"] == one + 4 * layer + round(1.65 * 4 * layer) - learned
    many = estimate(HAND, replace(PLAN, micro_batch_size=64))  # holes of half of them stay
    assert many["scratch"] == one + 4 * layer + 4 * layer // 2


def test_many_kept_states_wait_in_the_hosts_memory() -> None:
    card = replace(PLAN, device="cuda", rollout_batch_size=1 << 20)
    many = 2 * card.tokens * 8 * 2  # of one micro-batch: the trunk, and below what the value trains
    assert estimate(HAND, card)["kept_trunk"] == many
    on_cpu = estimate(HAND, replace(card, device="cpu"))["kept_trunk"]
    assert on_cpu == 2 * (1 << 20) * 8 * 8 * 2


@pytest.mark.parametrize("stage", COUNTED)
def test_the_total_counts_sampling_and_learning_apart_on_a_card(stage: str) -> None:
    parts = estimate(HAND, replace(PLAN, stage=stage))
    assert parts.pop("total") == sum(parts.values())
    parts = estimate(HAND, replace(PLAN, stage=stage, device="cuda"))
    learning = parts["kept_trunk"] + parts["activations"] + parts["logits"]
    total = parts.pop("total")
    assert total == sum(parts.values()) - min(learning, parts["kv_cache"])


def test_what_fits() -> None:
    shape = Shape(2048, 16, 32, 8, 64, 8192, 49152, tied=True)
    plan = Plan("ppo", device="cuda")
    room = estimate(shape, replace(plan, micro_batch_size=8))["total"]
    assert largest(shape, plan, room)["micro_batch_size"] == 8
    assert largest(shape, plan, room - 1)["micro_batch_size"] == 4
    most = largest(shape, plan, room)["answer_tokens"]
    assert most % 32 == 0
    assert estimate(shape, replace(plan, answer_tokens=most))["total"] <= room
    assert estimate(shape, replace(plan, answer_tokens=most + 32))["total"] > room
    assert largest(shape, plan, 10**9) == {"micro_batch_size": 0, "answer_tokens": 0}


def test_kto_is_dpo_with_one_answer_a_row() -> None:
    """TRL runs the KL completions without gradients: they keep nothing for the backward."""
    for device in ("cpu", "cuda"):
        plan = replace(PLAN, stage="kto", device=device)
        kto, dpo = estimate(HAND, plan), estimate(HAND, replace(plan, stage="dpo"))
        assert kto["adapters"] == dpo["adapters"] == 2 * adapter_bytes(HAND, plan)
        assert kto["optimizer"] == dpo["optimizer"] and kto["heads"] == kto["kv_cache"] == 0
        assert plan.tokens == 2 * 8 and plan.checkpointed == (device == "cuda")
        assert kto["logits"] == pytest.approx(dpo["logits"] / 2)
        assert kto["activations"] == pytest.approx(dpo["activations"] / 2, abs=1)


def test_rloo_is_dpo_with_one_answer_a_row_that_samples_the_whole_rollout_at_once() -> None:
    rloo, kto = (estimate(HAND, replace(PLAN, stage=stage)) for stage in ("rloo", "kto"))
    one = adapter_bytes(HAND, PLAN)
    assert rloo["adapters"] == 3 * one  # TRL makes a reference, whatever the plan says
    assert estimate(HAND, replace(PLAN, stage="rloo", reference=False)) == rloo
    for part in ("optimizer", "activations", "logits", "kept_trunk", "scratch"):
        assert rloo[part] == kto[part]
    assert rloo["heads"] == (2 * 8 + 1) * 4
    keys = 64 * 8 * 4 * (2 * 4 * 2)  # rows, tokens, layers, keys and values
    prompts = 64 * 3 * (4 * 8 + 3 * 16) * 2
    many = replace(PLAN, stage="rloo", rollout_batch_size=64, micro_batch_size=1)
    wide = replace(HAND, vocabulary=1 << 16)
    logits = 64 * (1 << 16) * (2 + 20)
    assert estimate(wide, many)["kv_cache"] == round(1.65 * keys) + prompts + logits
    on_card = replace(PLAN, stage="rloo", device="cuda")
    assert not on_card.checkpointed and replace(on_card, gradient_checkpointing=True).checkpointed


# ---- against what is really there


def test_adapters_of_a_real_backbone(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    real = sum(p.nbytes for p in backbone.parameters_of("policy"))
    assert adapter_bytes(Shape.of(config), Plan("sft", lora_rank=4)) == real


def test_the_weights_of_the_small_base(small_base: Backbone) -> None:
    from bitsandbytes.nn import Linear4bit

    shape = read_shape("smollm2-135m")
    found: dict[int, int] = {}  # by storage: the LM head is the embeddings
    for name, weight in small_base.model.named_parameters():
        if "lora_" not in name:
            found[weight.data_ptr()] = weight.nbytes
    for module in small_base.causal.modules():
        if isinstance(module, Linear4bit):
            state: Any = module.weight.quant_state
            for scales in (state.absmax, state.state2.absmax):
                found[scales.data_ptr()] = scales.nbytes
    wanted = base_bytes(shape, 4, small_base.compute_dtype.itemsize)
    assert wanted == pytest.approx(sum(found.values()), rel=0.01)


@pytest.mark.slow
def test_the_peak_of_ppo_is_estimated() -> None:
    """The figures are made by this benchmark; here only that code and counts have not parted."""
    command = [sys.executable, str(ROOT / "benchmarks" / "stage_memory.py"), "--stages", "ppo"]
    command += ["--prompt-tokens", "16", "--answer-tokens", "16", "--micro", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    row = dict(zip(done.stdout.split()[::2], done.stdout.split()[1::2], strict=True))
    wanted = float(row["estimate_mb"])
    assert float(row["interpreter_mb"]) + float(row["peak_mb"]) == pytest.approx(wanted, rel=0.15)


# ---- configurations


def test_shapes_of_configurations(tmp_path: Path) -> None:
    for family in ("llama", "gemma2", "qwen3", "phi3"):
        folder = write_base(tmp_path / family, family=family)
        shape = Shape.of(json.loads((folder / "config.json").read_text()))
        sizes = json.loads((folder / "config.json").read_text())
        assert (shape.hidden, shape.layers) == (sizes["hidden_size"], sizes["num_hidden_layers"])
        assert shape.heads >= shape.key_heads >= 1
    nested = {"text_config": json.loads((folder / "config.json").read_text())}
    assert Shape.of(nested) == shape
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 8, "vocab_size": 9}
    assert Shape.of(small | {"model_type": "gemma2"}).tied and not Shape.of(small).tied
    assert Shape.of(small | {"attn_logit_softcapping": 50.0}).capped
    assert not Shape.of(small).capped
