"""The backbone: one base in 4, 8 or 16 bit, and gradients that are right in all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorarlhf.backbone.base import Backbone, count_adapter_layers
from lorarlhf.backbone.devices import compute_dtype_for
from lorarlhf.backbone.fetch import PACKAGED
from lorarlhf.backbone.generation import generate
from lorarlhf.backbone.loading import load_model, load_tokenizer
from lorarlhf.runtime.errors import UserError

# ---- four-bit weights and their gradients


@pytest.fixture(scope="module")
def dequantised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 16-bit base whose weights are those that the tiny base has in 4 bit."""
    folder = tmp_path_factory.mktemp("dequantised")
    quantised = load_model(str(tiny_base), 4, torch.device("cpu"), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    modules = dict(quantised.named_modules())
    for name, module in plain.named_modules():
        if isinstance(modules[name], bitsandbytes.nn.Linear4bit):
            weight = modules[name].weight
            exact = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            module.weight.data = exact.float()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def lora(backbone: Backbone, randomise: Callable[..., None]) -> Backbone:
    randomise(backbone, "policy", seed=11)
    return backbone


def policy_gradient(backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with backbone.role("policy", train=True):
        hidden = backbone.forward.hidden(ids, mask, backbone.forward.trunk(ids, mask))
        hidden[mask.bool()][:, ::2].float().square().mean().backward()  # the norm fixes the whole
    grads = [p.grad for p in backbone.parameters_of("policy")]
    assert all(grad is not None for grad in grads)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize(("dtype", "closest"), [("float32", 0.9999), ("bfloat16", 0.85)])
def test_gradients_flow_in_4_bit_after_forwards_in_eval_mode(
    tiny_base: Path,
    dequantised: Path,
    randomise: Callable[..., None],
    batch: Callable[..., Any],
    dtype: str,
    closest: float,
) -> None:
    """bitsandbytes repacks CPU weights in eval mode and then passes no gradient on: not here.

    It does so on CPUs with AVX512-BF16 only; elsewhere this holds in any case.
    """
    shape: dict[str, Any] = {"adapter_layers": "all", "lora_rank": 4}
    exact = lora(
        Backbone.load(str(dequantised), bits=16, compute_dtype="float32", **shape), randomise
    )
    quantised = lora(Backbone.load(str(tiny_base), bits=4, compute_dtype=dtype, **shape), randomise)
    ids, mask = batch(exact, [24, 17])
    wanted = policy_gradient(exact, ids, mask)
    with torch.no_grad():
        for role in ("base", "policy"):
            with quantised.role(role):
                quantised.forward.hidden(ids, mask)
    generate(quantised, ["Hi"], max_new_tokens=3)
    ours = policy_gradient(quantised, ids, mask)
    likeness = torch.cosine_similarity(ours, wanted, dim=0).item()
    assert likeness > closest
    assert (ours.norm() / wanted.norm()).item() == pytest.approx(1, abs=1 - closest)


def test_the_layers_with_adapters_are_never_repacked(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, adapter_layers=2)
    generate(backbone, ["Hi"], max_new_tokens=3)
    upper = [
        module
        for layer in backbone.decoder.layers[backbone.split :]
        for module in layer.modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    assert len(upper) == 14
    for module in upper:
        assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_precision_gives_about_the_same_logits(
    tiny: Backbone, tiny_base: Path, batch: Callable[..., Any], bits: int
) -> None:
    other = Backbone.load(str(tiny_base), bits=bits, adapter_layers=2)
    ids, mask = batch(tiny, [20, 12])
    with torch.no_grad(), tiny.role("base"), other.role("base"):
        wanted = tiny.forward.hidden(ids, mask)[mask.bool()]
        got = other.forward.hidden(ids, mask)[mask.bool()].float()
    likeness = torch.cosine_similarity(got, wanted, dim=1).mean().item()
    assert likeness > {4: 0.9, 8: 0.995, 16: 0.999}[bits]
    assert other.bits == bits
    assert other.forward.keeps_trunk


def test_mixed_precision_gives_the_gradients_of_float32(
    tiny: Backbone, tiny_base: Path, randomise: Callable[..., None], batch: Callable[..., Any]
) -> None:
    half = lora(
        Backbone.load(
            str(tiny_base), bits=16, compute_dtype="bfloat16", adapter_layers=2, lora_rank=4
        ),
        randomise,
    )
    ids, mask = batch(tiny, [20, 12])
    wanted, got = (policy_gradient(b, ids, mask) for b in (lora(tiny, randomise), half))
    assert got.dtype == torch.float32
    assert torch.cosine_similarity(got, wanted, dim=0).item() > 0.98


# ---- settings


def test_adapter_layers() -> None:
    assert [count_adapter_layers("upper-half", n) for n in (1, 4, 5, 30)] == [1, 2, 3, 15]
    assert count_adapter_layers("all", 7) == 7
    assert (count_adapter_layers(1, 7), count_adapter_layers("7", 7)) == (1, 7)
    for wrong in (0, 8, -1, "lower-half"):
        with pytest.raises(ValueError, match="a number from 1 to 7"):
            count_adapter_layers(wrong, 7)


def test_the_seed_decides_the_first_adapter_weights(tiny_base: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        backbone = Backbone.load(str(tiny_base), bits=16, adapter_layers=1, seed=seed)
        return torch.cat([p.detach().flatten() for p in backbone.parameters_of("policy")])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_an_unknown_compute_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="'float8'"):
        compute_dtype_for(torch.device("cpu"), "float8")


@pytest.mark.parametrize(
    ("capability", "amx", "has_bfloat16", "name", "expected"),
    [
        ("AVX512", True, True, "Intel Xeon", torch.bfloat16),
        ("AVX512", False, True, "Intel Xeon", torch.float32),  # a virtual machine that hides AMX
        ("AVX512", False, True, "AMD Zen 4", torch.bfloat16),
        ("AVX512", False, True, None, torch.bfloat16),  # a PyTorch that does not name the CPU
        ("AVX512", False, False, "AMD Zen 3", torch.float32),
        ("AVX2", False, False, "Intel Core", torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    amx: bool,
    has_bfloat16: bool,
    name: str | None,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    if name is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    assert compute_dtype_for(torch.device("cpu")) == expected


# ---- prompts and tokens


def test_plain_prompts_and_conversations(tiny: Backbone) -> None:
    tokenizer = tiny.tokenizer
    assert tokenizer.decode(tiny.encode("Name a fish.")) == "Name a fish."
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    wanted = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert tokenizer.decode(tiny.encode(talk)) == wanted + "<|im_start|>assistant\n"
    assert len([i for i in tiny.encode(talk) if i == tokenizer.eos_token_id]) == 2


def test_every_stop_token_of_the_base_counts(tiny: Backbone) -> None:
    own = tiny.tokenizer.eos_token_id
    assert tiny.stop_ids == [own]
    tiny.causal.generation_config.eos_token_id = [own, 7]
    assert tiny.stop_ids == [own, 7]
    tiny.causal.generation_config.eos_token_id = None
    assert tiny.stop_ids == [own]
    assert tiny.pad_id not in tiny.stop_ids
    assert tiny.tokenizer.padding_side == "left"


def test_a_tokenizer_without_a_pad_token_gets_a_spare_one(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "no spare")
    assert load_tokenizer(str(tmp_path / "no spare"), None).pad_token == "<|im_end|>"
    tokenizer.unk_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "spare")
    assert load_tokenizer(str(tmp_path / "spare"), None).pad_token == "<|im_start|>"


def test_a_chat_template_can_be_named(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    shouting = load_tokenizer(str(tiny_base), str(file))
    talk = [{"role": "user", "content": "Hi"}]
    assert shouting.apply_chat_template(talk, tokenize=False) == "Hi!"
    with pytest.raises(UserError, match="no chat template file .*nowhere.jinja"):
        load_tokenizer(str(tiny_base), str(tmp_path / "nowhere.jinja"))


def test_the_lm_head_and_the_cap_on_logits(tiny: Backbone) -> None:
    weight, cap = tiny.lm_head.weight, tiny.lm_head.softcap
    assert (tuple(weight.shape), cap) == ((len(tiny.tokenizer), tiny.hidden_size), None)
    assert not weight.requires_grad
    tiny.causal.config.final_logit_softcapping = 30.0
    assert tiny.lm_head.softcap == 30.0


def test_bytes_leave_adapters_out(tiny: Backbone) -> None:
    before = tiny.footprint.bytes()
    plain = AutoModelForCausalLM.from_pretrained(tiny.base_path, dtype=torch.float32)
    assert before == sum(p.numel() * 4 for p in plain.parameters())
    tiny.add_role("reward")
    assert tiny.footprint.bytes() == before


def test_8_bit_products_are_whole_in_float16(tiny_base: Path) -> None:
    """Sums of them are beyond float16's range before they are scaled."""
    backbone = Backbone.load(str(tiny_base), bits=8, compute_dtype="float16")
    layer: Any = backbone.decoder.layers[0].mlp.up_proj
    x = torch.ones(2, 64, dtype=torch.float16)
    layer.weight.data.fill_(127)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        y = layer(x)
    torch.testing.assert_close(y[0].float(), 64 * layer.state.SCB.float(), rtol=0.01, atol=0)


# ---- the real small base


@pytest.mark.slow
def test_the_small_base(small_base: Backbone) -> None:
    assert (small_base.bits, small_base.adapter_layers, small_base.split) == (4, 15, 15)
    assert small_base.forward.keeps_trunk
    assert small_base.footprint.copies() == 1
    plain = {
        name: module.weight.numel()
        for name, module in small_base.decoder.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "lora_" not in name
        and not hasattr(module.weight, "quant_state")
    }
    assert sum(plain.values()) == PACKAGED["smollm2-135m"].plain_weights
    assert small_base.tokenizer.decode(small_base.stop_ids) == "<|im_end|>"
    assert small_base.pad_id not in small_base.stop_ids
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = generate(small_base, [question], max_new_tokens=12, temperature=0)
    assert "The capital of France is Paris" in answer.text


@pytest.mark.slow
def test_the_small_base_is_exact_above_the_kept_trunk_and_trains(
    small_base: Backbone, batch: Callable[..., Any]
) -> None:
    ids, mask = batch(small_base, [12, 9])
    with torch.no_grad(), small_base.role("policy"):
        kept = small_base.forward.trunk(ids, mask)
        plain = small_base.forward.hidden(ids, mask)
        assert torch.equal(small_base.forward.hidden(ids, mask, kept), plain)
    try:
        with small_base.role("policy", train=True):
            small_base.forward.hidden(ids, mask, kept)[..., ::2].float().square().mean().backward()
        grads = {
            name: p.grad.norm().item()
            for name, p in small_base.model.named_parameters()
            if "lora_B.default" in name and p.grad is not None
        }
        assert len(grads) == 15 * 7
        assert min(grads.values()) > 0
    finally:
        small_base.model.zero_grad(set_to_none=True)
