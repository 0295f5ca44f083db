"""The kept trunk gives the plain forward's numbers, for every role and every known family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lorarlhf.backbone import roles, trunk
from lorarlhf.backbone.base import Backbone

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2},
    "phi3": {},
    "smollm3": {"no_rope_layer_interval": 2},
}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def tiny_model(family: str) -> Any:
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


def kept_and_plain(
    decoder: nn.Module, split: int, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states above a kept trunk, and of the plain forward."""
    with torch.no_grad():
        inputs = trunk.padded_inputs(ids, mask)
        kept = trunk.run_lower(decoder, split, inputs)
        return trunk.run_upper(decoder, split, kept, inputs), trunk.run_decoder(decoder, inputs)


@pytest.mark.parametrize("role", [*roles.ROLES, "base"])
def test_every_role_is_exact_above_the_kept_trunk(
    tiny: Backbone, randomise: Callable[..., None], batch: Callable[..., Any], role: str
) -> None:
    for name in ("reference", "reward", "value"):
        tiny.add_role(name)
    for seed, name in enumerate(roles.ROLES):
        randomise(tiny, name, seed=seed)
    ids, mask = batch(tiny, [12, 7, 1])
    assert tiny.forward.keeps_trunk
    with torch.no_grad():
        with tiny.role("reward"):  # whichever role is active, the trunk is the same
            kept = tiny.forward.trunk(ids, mask)
        with tiny.role(role):
            upper, plain = tiny.forward.hidden(ids, mask, kept), tiny.forward.hidden(ids, mask)
    assert torch.equal(upper, plain)


def test_gradients_are_equal_above_the_kept_trunk(
    tiny: Backbone, randomise: Callable[..., None], batch: Callable[..., Any]
) -> None:
    randomise(tiny, "policy")
    ids, mask = batch(tiny, [9, 4])
    grads = []
    for kept in (None, tiny.forward.trunk(ids, mask)):
        with tiny.role("policy", train=True):
            tiny.forward.hidden(ids, mask, kept)[mask.bool()][:, ::2].square().sum().backward()
        grads.append([p.grad for p in tiny.parameters_of("policy")])
        tiny.model.zero_grad(set_to_none=True)
    for plain, above in zip(*grads, strict=True):
        assert torch.equal(plain, above)


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_are_exact_at_every_split(family: str, split: int) -> None:
    decoder = tiny_model(family).get_decoder()
    ids = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(split))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :10] = 0
    upper, plain = kept_and_plain(decoder, split, ids, mask)
    assert torch.equal(upper[mask.bool()], plain[mask.bool()])
    assert plain[0].std() > 0.1  # not a constant: the comparison says something
    assert trunk.trunk_is_exact(decoder, split, 97)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_no_hidden_state(family: str) -> None:
    decoder = tiny_model(family).get_decoder()
    ids = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(5))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    alone, plain = kept_and_plain(decoder, 2, ids, torch.ones_like(ids))
    upper, _ = kept_and_plain(decoder, 2, padded, mask)
    torch.testing.assert_close(upper[:, 3:], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(alone, plain)


def test_the_layers_are_put_back_after_an_exception(
    tiny: Backbone, batch: Callable[..., Any]
) -> None:
    ids, mask = batch(tiny, [5])
    decoder = tiny.decoder
    layers, norm = list(decoder.layers), decoder.norm
    kept = tiny.forward.trunk(ids, mask)
    assert kept is not None

    @contextmanager
    def broken(layer: nn.Module) -> Iterator[None]:
        def fail(*_: Any) -> None:
            raise RuntimeError("in the middle of a layer")

        handle = layer.register_forward_pre_hook(fail)
        try:
            with pytest.raises(RuntimeError, match="in the middle of a layer"):
                yield
        finally:
            handle.remove()

    with broken(layers[1]):
        tiny.forward.trunk(ids, mask)
    with broken(layers[3]):
        tiny.forward.hidden(ids, mask, kept)
    assert all(a is b for a, b in zip(decoder.layers, layers, strict=True))
    assert decoder.norm is norm


class _Remembering(nn.Module):
    """A layer that needs more than the hidden states: the embedding that the first layer saw."""

    def __init__(self, layer: nn.Module, memory: dict[str, torch.Tensor], first: bool) -> None:
        super().__init__()
        self.layer, self.memory, self.first = layer, memory, first

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.first:
            self.memory["embedded"] = hidden_states + 1
        out = self.layer(hidden_states, *args, **kwargs)
        return out if self.first else out + self.memory.get("embedded", 0.0)


def test_a_family_that_shares_state_between_layers_falls_back(
    tiny: Backbone,
    tiny_base: Path,
    batch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorarlhf.backbone import base

    load = base.load_model

    def load_other_family(*args: Any) -> Any:
        model = load(*args)
        memory: dict[str, torch.Tensor] = {}
        layers = model.model.layers
        for place in (0, 3):
            layers[place] = _Remembering(layers[place], memory, first=place == 0)
        # Without the first layer nothing is remembered; then the old memory must not help out.
        model.model.register_forward_pre_hook(lambda *_: memory.clear())
        return model

    monkeypatch.setattr(base, "load_model", load_other_family)
    other = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2)
    ids, mask = batch(other, [8, 3])
    assert tiny.forward.keeps_trunk
    assert not other.forward.keeps_trunk
    assert other.forward.trunk(ids, mask) is None
    with torch.no_grad():
        ours = other.forward.hidden(ids, mask, other.forward.trunk(ids, mask))
        plain = other.model.get_base_model()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=trunk.position_ids(mask),
            output_hidden_states=True,
        ).hidden_states[-1]
    assert torch.equal(ours, plain)


def test_a_decoder_of_another_make_falls_back() -> None:
    decoder = tiny_model("llama").get_decoder()
    del decoder._modules["norm"]
    decoder.forward = lambda **_: None
    assert not trunk.trunk_is_exact(decoder, 2, 97)


def test_with_adapters_on_all_layers_there_is_no_trunk(
    tiny_base: Path, batch: Callable[..., Any]
) -> None:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", adapter_layers="all")
    assert (backbone.split, backbone.forward.keeps_trunk) == (0, False)
    assert backbone.forward.trunk(*batch(backbone, [4])) is None


def test_position_ids_count_real_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert trunk.position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
