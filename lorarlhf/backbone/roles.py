"""The four roles on one base: LoRA adapters by name, scalar heads, and switching between them.

PEFT has one set of active adapters for the whole model. A forward of one role, a switch, a forward
of another role and then one `backward()` gives the first role no gradient, or a wrong one with
gradient checkpointing (docs/architecture.md). Therefore each forward and its backward run inside
one `switched(...)`, which restores everything afterwards, also after an exception.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from lorarlhf.backbone.structure import decoder_of

# The names of the roles' adapters in PEFT. TRL's DPO and RLOO use the adapters "default" and "ref",
# so with these names they find the policy and the reference.
ADAPTERS = {"policy": "default", "reference": "ref", "reward": "reward", "value": "value"}
ROLES = tuple(ADAPTERS)
GUESTS = ("guest-1", "guest-2", "guest-3")
"""Further policies that only answer, beside the four roles: those of other runs, for a server."""
ADAPTERS |= {name: name for name in GUESTS}
HEADED = ("reward", "value")
POOLINGS = ("mean", "last")
SHRINK_TOKENS = 16
"""Length of an answer whose mean-pooled score counts half. Measured by benchmarks/demo_seeds.py."""


def normed(trunk: torch.Tensor) -> torch.Tensor:
    """The trunk's output (..., H) as a head reads it: in float32, with root mean square 1.

    Inside a model the size of states varies: 7 in the small base, and hundreds in others.
    """
    return nn.functional.rms_norm(trunk.float(), trunk.shape[-1:])


class ScalarHead(nn.Module):
    """A linear layer from a token's states to one number, kept and computed in float32.

    The states are the final hidden state and optionally the trunk's output. Preference is most
    linearly readable in the middle of a model; the last layers turn the state into the next token.
    The trunk's part comes from a fit (`lorarlhf.rewards.fit`) and does not train: a critic that
    trained it too learned more slowly.

    Args:
        hidden_size: H, the base's hidden size.
        pooling: how a whole answer is scored: `mean` over its tokens, or its `last` token. The
            value role scores every token and ignores this.
        reads_trunk: whether there is a part for the `normed` trunk.

    Attributes:
        weight, bias: (H,) and a scalar, trained.
        trunk_weight: (H,), or None.
    """

    def __init__(
        self,
        hidden_size: int,
        pooling: str = "mean",
        *,
        reads_trunk: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {POOLINGS}, not {pooling!r}")
        self.pooling = pooling
        like: Any = {"dtype": torch.float32, "device": device}
        self.weight = nn.Parameter(torch.zeros(hidden_size, **like))
        self.bias = nn.Parameter(torch.zeros((), **like))
        self.trunk_weight: torch.Tensor | None
        trunk_weight = torch.zeros(hidden_size, **like) if reads_trunk else None
        self.register_buffer("trunk_weight", trunk_weight)
        self.score_mean: torch.Tensor
        self.score_std: torch.Tensor
        # Mean and standard deviation of the scores of the reference's answers, with which PPO
        # normalises (arXiv 1909.08593, section 2.1). Stored here so that they are saved with the
        # head.
        self.register_buffer("score_mean", torch.zeros((), **like))
        self.register_buffer("score_std", torch.ones((), **like))

    def forward(self, hidden: torch.Tensor, trunk: torch.Tensor | None = None) -> torch.Tensor:
        """Final states and trunk (..., H) of any dtype -> float32 scores (...).

        Raises:
            ValueError: the head reads the trunk, but none was given.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            score = hidden.float() @ self.weight + self.bias
            if self.trunk_weight is None:
                return score
            if trunk is None:
                raise ValueError("this head also reads the trunk's output; pass it as `trunk`")
            return score + normed(trunk) @ self.trunk_weight

    @property
    def full_weight(self) -> torch.Tensor:
        """A copy of all weights, the trunk's part first: (F,), where F is 2H or H."""
        parts = [self.trunk_weight] if self.trunk_weight is not None else []
        return torch.cat([*parts, self.weight.detach()])

    @full_weight.setter
    def full_weight(self, weight: torch.Tensor) -> None:
        size = len(self.weight)
        if len(weight) != len(self.full_weight):
            raise ValueError(f"{len(self.full_weight)} weights are expected, not {len(weight)}")
        self.weight.data.copy_(weight[-size:])
        if self.trunk_weight is not None:
            self.trunk_weight.copy_(weight[:size].detach())

    def pool(
        self, hidden: torch.Tensor, mask: torch.Tensor, trunk: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score whole answers: states (B, T, H), mask (B, T) of the tokens to pool -> (B,).

        `mean` averages over the n masked tokens and multiplies by n / (n + 16), which shrinks the
        score towards 0, where the fit puts the average answer. The mean of four tokens is noisy
        and often extreme, and a policy that is rewarded for it learns to say four words. `last`
        takes the last masked token.
        """
        if self.pooling == "last":
            columns = torch.arange(mask.shape[1], device=mask.device)
            last = (mask.long() * columns).argmax(dim=1)
            rows = torch.arange(len(hidden), device=mask.device)
            return self(hidden[rows, last], None if trunk is None else trunk[rows, last])
        # The mean of the tokens' scores is the score of their mean.
        total = (self(hidden, trunk) * mask).sum(dim=1)
        return total / (mask.sum(dim=1).clamp(min=1) + SHRINK_TOKENS)

    def score_pooled(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """`pool` from states that are pooled already: (N, F) of counts (N,) of tokens -> (N,)."""
        scores = states.float() @ self.full_weight + self.bias.detach()
        return scores if self.pooling == "last" else scores * counts / (counts + SHRINK_TOKENS)


def reads_trunk(pooling: str, keeps_trunk: bool) -> bool:
    """Whether a head with this pooling reads the trunk; `last` keeps the shape other tools know."""
    return pooling == "mean" and keeps_trunk


def lora_layers(model: PeftModel) -> list[LoraLayer]:
    """The modules that carry adapters, in the model's order."""
    return [module for _, module in _numbered(model)]


def _numbered(model: PeftModel) -> list[tuple[int, LoraLayer]]:
    """`lora_layers`, each with the index of its decoder layer."""
    # Roles are switched many times in an update and there are thousands of modules, so the list
    # is cached for as long as the adapters are the same.
    adapters = list(model.peft_config.values())
    known, layers = _LAYERS.get(model, ([], []))
    if len(known) != len(adapters) or any(a is not b for a, b in zip(known, adapters, strict=True)):
        named = model.named_modules()
        layers = [
            (layer_of(name), module) for name, module in named if isinstance(module, LoraLayer)
        ]
        _LAYERS[model] = adapters, layers
    return layers


Numbered = list[tuple[int, LoraLayer]]
_LAYERS: WeakKeyDictionary[PeftModel, tuple[list[Any], Numbered]] = WeakKeyDictionary()


def adapter_parameters(model: PeftModel, adapter: str) -> dict[str, nn.Parameter]:
    """The LoRA weights of one adapter by their full names."""
    part = f".{adapter}."
    return {name: p for name, p in model.named_parameters() if part in name and "lora_" in name}


def same_below(model: PeftModel, one: str, other: str | None, layer: int) -> bool:
    """Whether two adapters (None: the bare base) have the same weights below a decoder layer.

    The states below that layer are then the same for both.
    """
    for number, module in _numbered(model):
        if number >= layer:
            continue
        parts: list[Any] = [module.lora_A, module.lora_B]
        if other is None and parts[1][one].weight.any():
            return False
        if other and not all(torch.equal(p[one].weight, p[other].weight) for p in parts):
            return False
    return True


def adapts_below(model: PeftModel, split: int) -> bool:
    """Whether a layer below `split` carries adapters.

    PEFT adapts the experts of some mixture-of-experts families in every layer, whatever the
    configuration says (0.21.2, `target_parameters`). The lower layers are then no trunk.
    """
    names = adapter_parameters(model, ADAPTERS["policy"])
    return any(layer_of(name) < split for name in names)


def layer_of(name: str) -> int:
    """The index of the decoder layer that contains a weight, from the weight's full name."""
    found = re.search(r"\.layers\.(\d+)\.", f"{name}.")
    assert found, name  # only the decoder's layers get adapters
    return int(found[1])


def lora_config(model: nn.Module, first: int, rank: int, alpha: int, dropout: float) -> LoraConfig:
    """LoRA on every linear layer of the decoder's layers `first` and above.

    The module names are read from the layers, so families with fused projections work too. The
    layers of a part that reads images or sound may have the same names; they are left out.
    """
    decoder = decoder_of(model)
    names = {
        name.rsplit(".", 1)[-1]
        for layer in decoder.layers[first:]
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)  # bitsandbytes' layers are subclasses
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(names),
        exclude_modules=_other_layers(model, decoder),
        layers_to_transform=list(range(first, len(decoder.layers))),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )


def _other_layers(model: nn.Module, decoder: nn.Module) -> str | None:
    """A pattern of the modules in lists of layers that are not the decoder's; None without any."""
    own = next(
        f"{name}.".lstrip(".") for name, module in model.named_modules() if module is decoder
    )
    others = {
        f".{name}"[1 : found.start() + 1]
        for name, _ in model.named_modules()
        if (found := re.search(r"\.layers\.", f".{name}.")) and not f"{name}.".startswith(own)
    }
    return rf"({'|'.join(map(re.escape, sorted(others)))})layers\..*" if others else None


@contextmanager
def switched(
    model: PeftModel, adapter: str | None, *, train: bool = False, first: int = 0
) -> Iterator[None]:
    """Make one adapter active (None: the bare base) inside the context.

    Run the forward and its backward inside. Afterwards, also after an exception, these are
    restored: the active adapter, whether adapters are enabled, train or eval mode of every module,
    and `requires_grad` of every adapter weight.

    Entered under `torch.no_grad()` to read, it leaves `requires_grad` as it is. Switching then
    takes a fifth of the time, which matters to a chat that switches every few tokens.

    Args:
        train: only this adapter's weights require gradients, from layer `first` on; otherwise no
            weight does (except when entered to read).
    """
    layers = lora_layers(model)
    reads = not train and not torch.is_grad_enabled()
    weights = [] if reads else [p for layer in layers for _, p in _weights(layer)]
    grads = [(p, p.requires_grad) for p in weights]
    checkpointed = _checkpointed(model) if train else []
    modes: dict[nn.Module, bool] = {}
    if model.training or checkpointed:
        modes = {module: module.training for module in model.modules()}
    active = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    before = model.active_adapter, _tuner(model).active_adapter
    try:
        if model.training:
            model.eval()  # no dropout in any role, including LoRA's
        # Layers checkpoint only in train mode. Only the layers themselves are switched, because
        # their children's dropout must stay off.
        for module in checkpointed:
            module.training = True
        _activate(model, adapter)
        if not reads:
            _require_gradients(model, adapter if train else None, first)
        yield
    finally:
        for layer, names, disabled in active:
            # Not model.disable_adapter(), which changes requires_grad at its end.
            layer._active_adapter, layer._disable_adapters = names, disabled
        model.active_adapter, _tuner(model).active_adapter = before
        for module, training in modes.items():
            module.training = training
        for weight, flag in grads:
            weight.requires_grad = flag


def _require_gradients(model: PeftModel, adapter: str | None, first: int) -> None:
    """Of the adapters' weights only this adapter's, from layer `first` on, require gradients."""
    for number, layer in _numbered(model):
        for name, weight in _weights(layer):
            weight.requires_grad = name == adapter and number >= first


def _activate(model: PeftModel, adapter: str | None) -> None:
    for layer in lora_layers(model):
        # Not layer.set_adapter(), which searches through submodules: roles are switched often.
        if adapter is not None:
            layer._active_adapter = [adapter]
        layer._disable_adapters = adapter is None
    if adapter is not None:
        model.active_adapter = _tuner(model).active_adapter = adapter


def _weights(layer: LoraLayer) -> Iterator[tuple[str, nn.Parameter]]:
    """The LoRA weights, each with its adapter's name."""
    for part in layer.adapter_layer_names:
        for name, held in getattr(layer, part).items():
            if isinstance(held, nn.Parameter):
                yield name, held
            else:
                for weight in held._parameters.values():
                    if weight is not None:
                        yield name, weight


def _checkpointed(model: PeftModel) -> list[nn.Module]:
    layers = getattr(decoder_of(model.get_base_model()), "layers", [])
    return [layer for layer in layers if getattr(layer, "gradient_checkpointing", False)]


def _tuner(model: PeftModel) -> Any:
    return model.base_model  # PEFT's LoRA model, which can make several adapters active at once
