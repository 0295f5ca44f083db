"""`Backbone`: one base model, loaded once in 4, 8 or 16 bit, with the roles that share it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lorarlhf.backbone import roles, storage, trunk
from lorarlhf.backbone.base_files import BaseFiles, open_base
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.footprint import Footprint
from lorarlhf.backbone.forward import Forward
from lorarlhf.backbone.kernels.dequantised import keep_dequantised
from lorarlhf.backbone.kernels.lora_linear import fuse_lora
from lorarlhf.backbone.limits import DEQUANTISED_WEIGHTS, count_adapter_layers
from lorarlhf.backbone.lm_head import LMHead
from lorarlhf.backbone.loading import load_model
from lorarlhf.backbone.structure import decoder_of, layers_of, make_contiguous, never_repack
from lorarlhf.backbone.tokenizer import Prompt, turn_end, turn_end_notice
from lorarlhf.runtime import distributed
from lorarlhf.runtime.quiet import hide_library_bars


class Backbone:
    """One base model in memory, shared by the roles `policy`, `reference`, `reward`, `value`.

    Create one with `Backbone.load`.

    Attributes:
        model: the PEFT model around the causal language model.
        causal: the causal language model under the adapters.
        decoder: its layers without the LM head.
        lm_head: the LM head's weight and cap on logits.
        hidden_size: H, the size of a hidden state.
        encoder: encodes prompts with the tokenizer.
        tokenizer: pads on the left, with a padding token other than the stop token if possible.
        base: the name given to `load`; base_path: the folder or id that was loaded.
        bits: precision of the base's weights.
        stop_id: the token that an answer ends with in training: the one with which the chat
            template ends a turn, or else the tokenizer's EOS; None if there is neither.
        adapter_layers: number of layers with adapters; split: index of the first of them.
        heads: the float32 scalar heads of `reward` and `value`.
        forward: forwards through the layers; `forward.keeps_trunk` says whether the layers below
            `split` can be run once and kept.
        footprint: memory figures of the base's weights.
    """

    def __init__(self, model: Any, files: BaseFiles, settings: dict[str, Any]) -> None:
        self.tokenizer, self.encoder = files.tokenizer, files.encoder
        self.base, self.base_path = files.name, files.path
        self.device, self.compute_dtype = files.device, files.dtype
        self.bits: int = settings["bits"]
        self.heads: dict[str, roles.ScalarHead] = {}
        layers = layers_of(model, self.base)
        self.adapter_layers = count_adapter_layers(settings["adapter_layers"], len(layers))
        self.split = len(layers) - self.adapter_layers
        self._config = roles.lora_config(
            model,
            self.split,
            settings["lora_rank"],
            settings["lora_alpha"],
            settings["lora_dropout"],
        )
        never_repack(model)
        model.get_output_embeddings().register_forward_pre_hook(make_contiguous)
        trunk.check_range(model, self.base)
        self.forward = Forward(model, self.split, self.device, self.compute_dtype)
        self.causal, self.decoder = model, decoder_of(model)
        self.stop_id = turn_end(self.tokenizer)
        if self.stop_id is None:
            self.stop_id = self.tokenizer.eos_token_id
        # TRL's trainers and exported models read the stop tokens there.
        model.generation_config.eos_token_id = self.stop_ids or None
        self.hidden_size: int = model.get_input_embeddings().weight.shape[1]
        self.lm_head = LMHead(model, self.base)
        self.footprint = Footprint(model)
        torch.manual_seed(settings["seed"])
        self.model: PeftModel = get_peft_model(model, self._config, ADAPTER_POLICY)
        if roles.adapts_below(self.model, self.split):
            self.forward.keeps_trunk = False
        fuse_lora(self.model)
        self.model.eval()
        self.float32_adapters()

    @classmethod
    def load(
        cls,
        base: str | BaseFiles = "smollm2-135m",
        *,
        bits: int = 4,
        adapter_layers: int | str = "upper-half",
        lora_rank: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        device: str | None = None,
        compute_dtype: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
        seed: int = 0,
        log: Callable[[str], None] = lambda text: None,
    ) -> "Backbone":
        """Find, download if needed, and load a base, and put a fresh policy adapter on it.

        Args:
            base: `smollm2-135m`, a folder, a Hugging Face id, or what `open_base` returned, which
                then decides device, dtype and tokenizer.
            bits: 4 (NF4 with double quantisation), 8, or 16 (no quantisation).
            adapter_layers: `upper-half`, `all`, or a number of layers counted from the top.
            lora_rank, lora_alpha, lora_dropout: LoRA's settings (arXiv 2106.09685).
            device: `cuda`, `xpu`, `mps` or `cpu`; the best available one by default.
            compute_dtype: `bfloat16`, `float16` or `float32`; the fastest that the device supports
                by default.
            chat_template: a Jinja file for bases without a chat template.
            thinking: let a base whose chat template knows `enable_thinking` think first.
            seed: of the adapters' initial weights.
            log: called with one line before each slow step.

        Raises:
            UserError: no such base, not a causal language model, no network, no disk space, or
                the base overflows in float16.
        """
        hide_library_bars()
        if isinstance(base, str):
            base = open_base(
                base,
                bits=bits,
                device=device,
                compute_dtype=compute_dtype,
                chat_template=chat_template,
                thinking=thinking,
                log=log,
            )
        settings = {
            "bits": bits,
            "adapter_layers": adapter_layers,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "seed": seed,
        }
        model = load_model(base.path, bits, base.device, base.dtype, base.plain_modules)
        backbone = cls(model, base, settings)
        give_back_memory()  # temporary tensors of loading and quantising
        for notice in backbone._notices():
            log(notice)
        return backbone

    def _notices(self) -> Iterator[str]:
        """What is unusual about the base, one line each."""
        if notice := turn_end_notice(self.tokenizer, set(self.stop_ids)):
            yield notice
        if self.split and not self.forward.keeps_trunk:
            yield (
                f"{self.base} is of a family whose lower layers can't be run separately: each pass "
                "runs all layers, which is slower, and a reward role reads only the final states."
            )
        weights = self.causal.named_parameters()
        experts = sum(w.nbytes for name, w in weights if ".experts." in name and w.dim() == 3)
        if experts and self.bits < 16:
            yield (
                f"{self.base} is a mixture of experts. They take {experts / 1e9:.1f} GB, because "
                "bitsandbytes does not quantise them."
            )

    # ---- roles

    def has(self, role: str) -> bool:
        """Whether the role has an adapter of its own."""
        return roles.ADAPTERS[role] in self.model.peft_config

    def add_role(
        self,
        role: str,
        *,
        copy_of: str | None = None,
        pooling: str = "mean",
        own_adapter: bool = True,
    ) -> None:
        """Add a role's adapter, fresh or as a copy of another role's; an older one is replaced.

        `reward` and `value` get a scalar head: a copy of the other's head if it exists, with the
        normalisation of scores folded in, and zeros otherwise. Without `own_adapter` the role is
        only that head, on the policy's states.
        """
        adapter = roles.ADAPTERS[role]
        if self.has(role) and role != "policy":
            self.model.delete_adapter(adapter)
        if own_adapter and not self.has(role):
            self.model.add_adapter(adapter, self._config)
        if role in roles.HEADED:
            if copy_of in self.heads:
                pooling = self.heads[copy_of].pooling
            reads_trunk = roles.reads_trunk(pooling, self.forward.keeps_trunk)
            self.heads[role] = roles.ScalarHead(
                self.hidden_size, pooling, reads_trunk=reads_trunk, device=self.device
            )
        if copy_of is not None and self.has(copy_of):
            self._copy_weights(copy_of, role, own_adapter)
        self.float32_adapters()
        self.model.eval()  # PEFT leaves new layers in train mode

    def _copy_weights(self, source: str, target: str, own_adapter: bool) -> None:
        if own_adapter:
            ours = roles.adapter_parameters(self.model, roles.ADAPTERS[target])
            theirs = roles.adapter_parameters(self.model, roles.ADAPTERS[source])
            for mine, other in zip(ours.values(), theirs.values(), strict=True):
                mine.data.copy_(other.data)
        if target in self.heads and source in self.heads:
            head, other_head = self.heads[target], self.heads[source]
            head.full_weight = other_head.full_weight / other_head.score_std
            head.bias.data.copy_((other_head.bias - other_head.score_mean) / other_head.score_std)

    @contextmanager
    def role(self, name: str, *, train: bool = False, first: int = 0) -> Iterator[None]:
        """Switch to a role (or `base`: adapters off) for one forward, or forward and backward.

        The reference is its own adapter if SFT made one, and the bare base otherwise. A value
        without an adapter reads the policy's states.

        Args:
            train: whether the role's adapter trains, in its layers from `first` on.
        """
        with roles.switched(self.model, self._adapter_of(name), train=train, first=first):
            yield

    def _adapter_of(self, name: str) -> str | None:
        if name == "base" or (name == "reference" and not self.has("reference")):
            return None
        if name == "value" and not self.has("value"):
            return roles.ADAPTERS["policy"]
        return roles.ADAPTERS[name]

    def same_below(self, one: str, other: str, layer: int) -> bool:
        """Whether two roles have the same weights, and so the same states, below a layer."""
        adapters = self._adapter_of(one), self._adapter_of(other)
        if adapters[0] is None:
            return adapters[1] is None or self.same_below(other, one, layer)
        return roles.same_below(self.model, adapters[0], adapters[1], layer)

    def freeze_reference(self) -> None:
        """Make the reference a copy of the current policy."""
        self.add_role("reference", copy_of="policy")

    def parameters_of(self, role: str, first: int = 0) -> list[nn.Parameter]:
        """LoRA weights of a role from layer `first` on, then those of its head if it has one."""
        named = roles.adapter_parameters(self.model, roles.ADAPTERS[role])
        weights = [p for name, p in named.items() if roles.layer_of(name) >= first]
        return weights + list(self.heads[role].parameters()) if role in self.heads else weights

    def float32_adapters(self) -> None:
        """Cast all adapter weights to float32: bfloat16 would lose small optimizer steps."""
        for name, weight in self.model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()

    @contextmanager
    def stage(self, adapter_role: str) -> Iterator[PeftModel]:
        """Lend the model to one of TRL's trainers, with a role's adapter as the one that trains.

        TRL casts the adapters of a quantised model to bfloat16, wraps `forward`, switches
        checkpointing on and leaves the model in train mode. All of that is undone at the end.
        """
        causal = self.causal
        config = causal.config.get_text_config()  # of a base that reads images, too
        cache = config.use_cache
        hooks = causal.get_input_embeddings()._forward_hooks
        own_hooks = dict(hooks)
        self.model.set_adapter(roles.ADAPTERS[adapter_role])
        try:
            yield self.model
        finally:
            causal.__dict__.pop("forward", None)  # TRL's fused LM head
            causal.gradient_checkpointing_disable()
            if hasattr(causal, "_require_grads_hook"):
                causal.disable_input_require_grads()
            # That removes only the newest of the hooks that TRL, PEFT and transformers each set.
            # With one left over, every later backward would run through the trunk.
            hooks.clear()
            hooks.update(own_hooks)
            config.use_cache = cache
            self.model.set_adapter(ADAPTER_POLICY)
            self.model.requires_grad_(False)
            self.model.eval()
            self.float32_adapters()
            give_back_memory()

    @contextmanager
    def dequantised(
        self,
        first: int = 0,
        *,
        backward: bool = False,
        head: bool = True,
        max_weights: int = DEQUANTISED_WEIGHTS,
    ) -> Iterator[None]:
        """Keep 4-bit weights dequantised inside the context, and the LM head packed, on the CPU.

        For phases that read each weight many times.

        Args:
            first: only layers from here on.
            backward: also keep what the backward needs; for phases that train.
            head: whether the LM head is used, by this package's own code.
            max_weights: how many weights of the layers are kept, at most.
        """
        layers = layers_of(self.causal, self.base)[first:]
        room = max_weights * self.compute_dtype.itemsize
        packed = self.causal.get_output_embeddings() if head else None
        with keep_dequantised(layers, room, backward=backward, head=packed):
            give_back_memory()  # the weights from which the packed ones were made
            yield

    # ---- prompts

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt (see `PromptEncoder.encode`)."""
        return self.encoder.encode(prompt)

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer, including those of the generation config."""
        eos = self.causal.generation_config.eos_token_id
        listed = eos if isinstance(eos, list) else [eos]
        ids = {*listed, self.tokenizer.eos_token_id, self.stop_id}
        return sorted(token for token in ids if token is not None)

    @property
    def pad_id(self) -> int:
        """The padding token. Masks are made from lengths, never from this id."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.stop_ids[0]

    # ---- storage

    def save(self, role: str, folder: str | Path) -> Path:
        """Save a role as a plain PEFT folder (safetensors); only the main process writes."""
        if distributed.is_main():
            storage.save_role(self, role, Path(folder))
        return Path(folder)

    def load_role(self, role: str, folder: str | Path) -> None:
        """Load a role from a folder that `save` wrote; the policy also from a plain PEFT folder."""
        storage.load_role(self, role, Path(folder))


ADAPTER_POLICY = roles.ADAPTERS["policy"]
