"""Packed sequences give the numbers of the padded forward, for every known family, and its
gradients."""

from typing import Any

import pytest
import torch
from test_trunk import FAMILIES, SIZES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from lorarlhf.backbone import trunk
from lorarlhf.backbone.kernels import attention
from lorarlhf.backbone.kernels.packing import Pack, common_prefix

CPU = torch.device("cpu")
BEGIN = [5, 6, 7, 8, 9]
SEQUENCES = [
    [*BEGIN, 11],
    [*BEGIN, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21],
    [*BEGIN, 12, 30, 31],
    [*BEGIN, 40, 41, 42, 43],
]


def family_with(family: str, kind: str) -> Any:
    attention.register()
    model = tiny_model(family)
    model.set_attn_implementation(attention.NAMES.get(kind, kind))
    return model.requires_grad_(True)


def run(model: Any, inputs: trunk.Inputs, rows: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states (N, H) and the gradients of all weights for a loss that weighs each number."""
    hidden = rows(trunk.run_decoder(model.get_decoder(), inputs))
    model.zero_grad()
    (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum().backward()
    grads = [p.grad.clone() for p in model.get_decoder().parameters() if p.grad is not None]
    return hidden.detach(), grads


# ---- the layout


def test_a_pack_by_hand() -> None:
    pack = Pack.of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7, 8]], CPU, max_shared=4)
    assert (pack.shared, pack.lengths) == (4, [1, 3])
    assert pack.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 5, 6]]
    assert pack.gather.tolist() == [0, 0, 0, 1, 2, 3]
    assert pack.scatter.tolist() == [0, 3, 4, 5]
    assert [pack.row(0, i) for i in (0, 3, 4)] == [0, 3, 4]
    assert [pack.row(1, i) for i in (0, 3, 4, 6)] == [0, 3, 5, 7]


@pytest.mark.parametrize(
    ("most", "shared"), [(0, 0), (3, 0), (4, 4), (5, 5), (9, 5)], ids=lambda n: str(n)
)
def test_short_beginnings_are_not_shared(most: int, shared: int) -> None:
    assert common_prefix(SEQUENCES, most) == shared
    assert Pack.of(SEQUENCES, CPU, most).shared == shared
    assert Pack.of(SEQUENCES[:1], CPU, most).shared == 0  # nobody to share it with


@pytest.mark.parametrize("most", [0, 5])
def test_padded_and_packed_are_each_others_inverse(most: int) -> None:
    pack = Pack.of(SEQUENCES, CPU, most)
    ids, mask = pack.padded(pad=0)
    assert [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)] == SEQUENCES
    assert not ids[~mask.bool()].any()
    states = torch.randn(*ids.shape, 3)
    states[:, : pack.shared] = states[:1, : pack.shared]
    rows = pack.rows_of(states)
    assert len(rows) == pack.input_ids.numel() == sum(map(len, SEQUENCES)) - 3 * pack.shared
    real = mask.bool()
    assert torch.equal(pack.padded_rows(rows)[real], states[real])


# ---- the numbers


@pytest.mark.parametrize("most", [0, 5], ids=["apart", "shared"])
@pytest.mark.parametrize("kind", list(attention.NAMES))
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_and_gradients_are_the_padded_ones(family: str, kind: str, most: int) -> None:
    """Against transformers' own attention, beyond the width of the sliding windows."""
    pack = Pack.of(SEQUENCES, CPU, most)
    padded = trunk.padded_inputs(*pack.padded(pad=0))
    wanted, wanted_grads = run(family_with(family, "eager"), padded, pack.rows_of)
    model = family_with(family, kind)
    ours, grads = run(model, trunk.packed_inputs(pack), lambda hidden: hidden[0])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.1
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", list(attention.NAMES))
@pytest.mark.parametrize("family", FAMILIES)
def test_without_packing_it_is_the_familys_attention(family: str, kind: str) -> None:
    pack = Pack.of(SEQUENCES, CPU)
    padded = trunk.padded_inputs(*pack.padded(pad=0))
    wanted, wanted_grads = run(family_with(family, "eager"), padded, pack.rows_of)
    ours, grads = run(family_with(family, kind), padded, pack.rows_of)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


def test_a_sequence_sees_no_other() -> None:
    model = family_with("llama", "plain")
    changed = [SEQUENCES[0], [*BEGIN, 50, 51, 52], *SEQUENCES[2:]]
    with torch.no_grad():
        before, after = (
            trunk.run_decoder(model.get_decoder(), trunk.packed_inputs(Pack.of(some, CPU, 5)))[0]
            for some in (SEQUENCES, changed)
        )
    torch.testing.assert_close(before[:6], after[:6])  # the beginning, and the first one's own
    torch.testing.assert_close(before[-7:], after[-7:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_known_family_takes_packing(family: str) -> None:
    model = family_with(family, "eager")
    assert trunk.adopt_packing(model, CPU, 97)
    assert model.config._attn_implementation == attention.NAMES["plain"]


# Heads of another size for values; a window that is masked but not told to the attention; sinks.
ODD: dict[str, tuple[dict[str, Any], bool]] = {
    "deepseek_v3": (
        {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8}
        | {"q_lora_rank": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {"topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        | {"num_key_value_heads": 4, "head_dim": 8},
        True,
    ),
    "qwen2_moe": (
        {"sliding_window": 12, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 4}
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
        False,
    ),
    "phimoe": ({"sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2}, False),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12}, False),
}


@pytest.mark.parametrize("family", ODD)
def test_odd_families_keep_their_own_numbers(family: str) -> None:
    fields, packs = ODD[family]
    config = AutoConfig.for_model(family, **(SIZES | fields))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            weight.data.fill_(1.0)
    sequences = [[(5 * i + k) % 97 for i in range(20 + 3 * k)] for k in range(3)]
    pack = Pack.of(sequences, CPU)
    padded = trunk.padded_inputs(*pack.padded(pad=0))
    with torch.no_grad():
        wanted = pack.rows_of(trunk.run_decoder(model.get_decoder(), padded))
        assert trunk.adopt_packing(model, CPU, 97) == packs
        after = pack.rows_of(trunk.run_decoder(model.get_decoder(), padded))
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-4)
        if packs:
            packed = trunk.run_decoder(model.get_decoder(), trunk.packed_inputs(pack))[0]
            torch.testing.assert_close(packed, wanted, rtol=1e-4, atol=1e-4)


def test_a_family_with_an_unknown_kind_of_mask_is_not_packed() -> None:
    model = family_with("llama", "eager")
    model.config.layer_types = ["chunked_attention"] * 4
    assert not trunk.adopt_packing(model, CPU, 97)
    assert model.config._attn_implementation == "eager"
