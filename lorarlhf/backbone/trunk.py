"""The trunk: the frozen lower layers, which no role changes, so their output is kept.

Both halves run through the decoder's own forward, so that masks, rotary embeddings, kinds of layers
and the scaling of embeddings are the family's own. The layers that are left out are replaced by a
module that passes the hidden states on or, in place of the first one, inserts the kept states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorarlhf.backbone.kernels import attention
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.oom import is_out_of_memory
from lorarlhf.backbone.structure import decoder_of
from lorarlhf.runtime.errors import UserError

Inputs = dict[str, Any]


class _Skip(nn.Module):
    """Replaces a layer that is left out; has its attributes (such as the kind of its mask)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = layer  # not a submodule: its weights stay the decoder's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["replaced"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class _Enter(_Skip):
    """Replaces the first layer above a kept trunk: returns the kept states, whatever its input."""

    def __init__(self, layer: nn.Module, kept: torch.Tensor) -> None:
        super().__init__(layer)
        self.__dict__["kept"] = kept

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.__dict__["kept"]


@contextmanager
def _replaced(parent: nn.Module, swaps: dict[str, Any]) -> Iterator[None]:
    """Swap children of `parent` by name inside the context."""
    originals = {name: parent._modules[name] for name in swaps}
    parent._modules.update(swaps)
    try:
        yield
    finally:
        parent._modules.update(originals)


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) counted from the mask, so that left padding changes no result."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def padded_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Inputs:
    """Arguments of the decoder for padded sequences: ids and mask, both (B, T)."""
    positions = position_ids(attention_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}


def packed_inputs(pack: Pack) -> Inputs:
    """Arguments of the decoder for packed sequences: N rows as a batch of one."""
    ready = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=pack.input_ids.device)
    return {
        "input_ids": pack.input_ids,
        "attention_mask": ready,  # with four dimensions transformers makes no mask of its own
        "position_ids": pack.position_ids,
        "packing": pack,
    }


def run_decoder(decoder: Any, inputs: Inputs) -> torch.Tensor:
    """All layers and the final norm -> hidden states (B, T, H), of packed sequences (1, N, H)."""
    return decoder(**inputs, use_cache=False).last_hidden_state


def run_lower(
    decoder: Any, last: int, inputs: Inputs, first: int = 0, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """The layers below `last`, without gradient -> hidden states (B, T, H).

    Args:
        kept: the output of the layers below `first`, to start from.
    """
    layers = decoder.layers
    swaps: dict[str, Any] = {str(i): _Skip(layers[i]) for i in range(last, len(layers))}
    if kept is not None:
        swaps |= _entrance(layers, first, kept)
    with torch.no_grad(), _replaced(layers, swaps), _replaced(decoder, {"norm": nn.Identity()}):
        return run_decoder(decoder, inputs)


def run_upper(decoder: Any, first: int, kept: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The layers from `first` on and the final norm, above kept states (B, T, H) -> (B, T, H)."""
    with _replaced(decoder.layers, _entrance(decoder.layers, first, kept)):
        return run_decoder(decoder, inputs)


def _entrance(layers: Any, first: int, kept: torch.Tensor) -> dict[str, Any]:
    """Replacements for the layers below `first`, of which there is at least one."""
    skips: dict[str, Any] = {str(i): _Skip(layers[i]) for i in range(1, first)}
    return skips | {"0": _Enter(layers[0], kept)}


@contextmanager
def remembered_trunk(decoder: Any, split: int) -> Iterator[None]:
    """Inside, a forward with the same inputs as the one before it starts from that one's trunk.

    For training code that runs the policy and then the reference on one batch. Every number stays
    what it is, to the last bit. Forwards with a cache of keys, or that return more than the final
    states, run from the start.

    Args:
        split: the layers below it are the trunk; at least one.
    """
    own, last = decoder.forward, decoder.layers[split - 1]
    outer = vars(decoder).get("forward")
    before: Inputs = {}
    kept: list[torch.Tensor] = []

    def forward(*args: Any, **inputs: Any) -> Any:
        more = any(value for name, value in inputs.items() if name.startswith("output_"))
        known = inputs.get("use_cache") is False and inputs.get("input_ids") is not None
        if args or more or not known:
            return own(*args, **inputs)
        if kept and _same(inputs, before):
            with _replaced(decoder.layers, _entrance(decoder.layers, split, kept[0])):
                return own(**inputs)
        kept.clear()
        before.clear()
        hook = last.register_forward_hook(lambda layer, given, out: _keep(kept, out))
        try:
            output = own(**inputs)
        finally:
            hook.remove()
        before.update({name: _copied(value) for name, value in inputs.items()})
        return output

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward  # the class's own shows again
        if outer is not None:
            decoder.forward = outer


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _keep(kept: list[torch.Tensor], output: Any) -> None:
    states = output[0] if isinstance(output, tuple) else output
    kept[:] = [states.detach()]


def _same(inputs: Inputs, before: Inputs) -> bool:
    """Whether two forwards have the same arguments, tensors by value."""
    if inputs.keys() != before.keys():
        return False
    for name, value in inputs.items():
        other = before[name]
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            if value.shape != other.shape or not torch.equal(value, other):
                return False
        elif value is not other and value != other:
            return False
    return True


def check_range(model: Any, base: str) -> None:
    """Check on a few tokens that a base does not overflow in float16 (largest number 65,504).

    Raises:
        UserError: it does; every loss would be NaN.
    """
    if model.dtype != torch.float16:
        return
    words = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(16, device=model.device)[None] * 7) % words
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if not logits.isfinite().all():
        raise UserError(
            f"{base} overflows in float16: its states are too large for that format. Use "
            "--set compute_dtype=float32, or bfloat16 on a card that supports it."
        )


def trunk_is_exact(decoder: Any, split: int, vocabulary: int) -> bool:
    """Whether a kept trunk gives the plain forward's numbers, on a few tokens with padding.

    False for a family whose layers share more than the hidden states; the caller then uses the
    plain forward, so that no number is wrong.
    """
    device = next(decoder.parameters()).device
    ids = (torch.arange(16, device=device).reshape(2, 8) * 7) % vocabulary
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    inputs = padded_inputs(ids, mask)
    try:
        with torch.no_grad():
            plain = run_decoder(decoder, inputs)
            upper = run_upper(decoder, split, run_lower(decoder, split, inputs), inputs)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # the family's decoder is built differently (no `layers` or `norm`)
    real = mask.bool()
    return torch.allclose(plain[real].float(), upper[real].float(), rtol=1e-3, atol=1e-3)


def adopt_packing(model: Any, device: torch.device, vocabulary: int) -> bool:
    """Give a family the packing attention if that gives the family's own numbers.

    Otherwise it keeps its own attention, and packed sequences are run padded. The numbers are
    compared on a few tokens. What these can't show, other kinds of masks and wide windows, is read
    from the configuration and from the windows that the layers pass on.

    Returns:
        whether the family packs.
    """
    config, decoder = model.config.get_text_config(), decoder_of(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not {"full_attention", "sliding_attention"}.issuperset(kinds):
        return False
    prefix, rest = range(5), ((8, 9), range(9, 14))
    sequences = [[(7 * i) % vocabulary for i in (*prefix, *own)] for own in rest]
    pack = Pack.of(sequences, device, max_shared=5)
    padded, real = pack.padded(pad=0)
    inputs, own_attention = padded_inputs(padded, real), config._attn_implementation
    attention.register()
    try:
        with torch.no_grad():
            wanted = pack.rows_of(run_decoder(decoder, inputs)).float()
            model.set_attn_implementation(attention.name_for(device))
            unpacked = pack.rows_of(run_decoder(decoder, inputs)).float()
            packed = run_decoder(decoder, packed_inputs(pack))[0].float()
        window = getattr(config, "sliding_window", None)
        slides = window is not None and (kinds is None or "sliding_attention" in kinds)
        window_passed = bool(pack.windows) or not slides
        exact = all(_same_numbers(x, wanted, decoder) for x in (unpacked, packed))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        window_passed = exact = False
    if not (window_passed and exact):
        model.set_attn_implementation(own_attention)
    return window_passed and exact


def _same_numbers(states: torch.Tensor, wanted: torch.Tensor, decoder: Any) -> bool:
    """Whether states (n, H) differ by rounding alone: other shapes are summed in another order.

    In 16 bit between two attention kernels single elements of a real base move by more than one,
    and the states by two hundredths of their norm; a wrong mask moves a row by far more.
    """
    if next(decoder.parameters()).dtype == torch.float32:
        return torch.allclose(states, wanted, rtol=1e-3, atol=1e-3)
    off = (states - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    return bool((off <= 0.1).all() and off.mean() <= 0.05)
