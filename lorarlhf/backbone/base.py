"""`Backbone`: one base model, loaded once in 4, 8 or 16 bit, with the roles that share it."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lorarlhf.backbone import roles, storage, trunk
from lorarlhf.backbone.base_files import BaseFiles, open_base
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.forward import Forward
from lorarlhf.backbone.kernels.dequantised import keep_dequantised
from lorarlhf.backbone.kernels.lora_linear import fuse_lora, ready_adapters
from lorarlhf.backbone.limits import count_adapter_layers
from lorarlhf.backbone.loading import load_model
from lorarlhf.backbone.structure import contiguous, decoder_of, layers_of, never_repack
from lorarlhf.backbone.tokenizer import Prompt, PromptEncoder
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.quiet import hide_library_bars


class Backbone:
    """One base model in memory, shared by the roles `policy`, `reference`, `reward`, `value`.

    Make one with `Backbone.load`. The shapes below: B sequences, T tokens, H hidden size.

    Attributes:
        model: the PEFT model over the causal language model.
        tokenizer: padded left, with a padding token other than the stop token where there is one.
        base: the name given to `load`; base_path: the folder or id that was loaded.
        bits, adapter_layers, split: precision; number of layers with adapters; first of them.
        heads: the float32 scalar heads of `reward` and `value`.
        passes: forwards through the layers; `passes.keeps_trunk`: is there a trunk to be kept.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.base: str = settings["base"]
        self.base_path: str = settings["base_path"]
        self.bits: int = settings["bits"]
        self.device = torch.device(settings["device"])
        self.compute_dtype: torch.dtype = settings["compute_dtype"]
        self.heads: dict[str, roles.ScalarHead] = {}
        layers = layers_of(model, self.base)
        self.adapter_layers = count_adapter_layers(settings["adapter_layers"], len(layers))
        self.split = len(layers) - self.adapter_layers
        self._config = roles.lora_config(
            layers,
            self.split,
            settings["lora_rank"],
            settings["lora_alpha"],
            settings["lora_dropout"],
        )
        never_repack(model)
        model.get_output_embeddings().register_forward_pre_hook(contiguous)
        trunk.check_range(model, self.base)
        self.forward = Forward(model, self.split, self.device, self.compute_dtype)
        self._base_shapes = Counter(_key(p) for p in model.parameters())
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
        seed: int = 0,
        log: Callable[[str], None] = lambda text: None,
    ) -> "Backbone":
        """Find, fetch where needed, and load a base, with a fresh policy adapter on it.

        Args:
            base: `smollm2-135m`, a folder, or a Hugging Face id; or a base that was opened before,
                which brings its device, dtype and tokenizer.
            bits: 4 (NF4 with double quantisation), 8, or 16 (no quantisation).
            adapter_layers: `upper-half`, `all`, or a number of layers counted from the top.
            lora_rank, lora_alpha, lora_dropout: LoRA's settings (arXiv 2106.09685).
            device: `cuda`, `cpu` or `mps`; the best one that is there by default.
            compute_dtype: `bfloat16`, `float16` or `float32`; what the device has by default.
            chat_template: a Jinja file for bases that bring no chat template.
            seed: of the adapters' first weights.
            log: called with one line before each slow step.

        Raises:
            UserError: no such base, not a causal language model, no network, no disk space; it
                overflows in float16.
        """
        hide_library_bars()
        if isinstance(base, str):
            base = open_base(
                base,
                bits=bits,
                device=device,
                compute_dtype=compute_dtype,
                chat_template=chat_template,
                log=log,
            )
        settings = {
            "base": base.name,
            "base_path": base.path,
            "bits": bits,
            "device": base.device,
            "compute_dtype": base.dtype,
            "adapter_layers": adapter_layers,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "seed": seed,
        }
        model = load_model(base.path, bits, base.device, base.dtype)
        backbone = cls(model, base.tokenizer, settings)
        give_back_memory()  # what loading and quantising took besides
        if backbone.split and not backbone.forward.keeps_trunk:
            log(
                f"{base.name} is of a family whose lower layers can't be kept apart: each pass "
                "runs all layers, which is slower, and a reward role reads the final states alone."
            )
        return backbone

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
        """Add a role's adapter anew (an older one is dropped), fresh or as a copy of another's.

        `reward` and `value` get a scalar head: a copy of the other's head where there is one, with
        the score's normalisation folded in for the value; zeros otherwise. Without `own_adapter`
        the role is that head alone, on the policy's states.
        """
        adapter = roles.ADAPTERS[role]
        if self.has(role) and role != "policy":
            self.model.delete_adapter(adapter)
        if own_adapter and not self.has(role):
            self.model.add_adapter(adapter, self._config)
        if role in roles.HEADED:
            if copy_of in self.heads:
                pooling = self.heads[copy_of].pooling
            reads_trunk = self.reads_trunk(pooling)
            self.heads[role] = roles.ScalarHead(
                self.hidden_size, pooling, reads_trunk=reads_trunk, device=self.device
            )
        if copy_of is not None and self.has(copy_of):
            self._copy_weights(copy_of, role, own_adapter)
        self.float32_adapters()
        self.model.eval()  # PEFT leaves new layers in train mode

    def reads_trunk(self, pooling: str) -> bool:
        """Whether a head with this pooling reads the trunk: `last` is the shape others know."""
        return pooling == "mean" and self.forward.keeps_trunk

    def _copy_weights(self, source: str, target: str, own_adapter: bool) -> None:
        if own_adapter:
            ours = roles.adapter_parameters(self.model, roles.ADAPTERS[target])
            theirs = roles.adapter_parameters(self.model, roles.ADAPTERS[source])
            for mine, other in zip(ours.values(), theirs.values(), strict=True):
                mine.data.copy_(other.data)
        if target in self.heads and source in self.heads:
            head, other_head = self.heads[target], self.heads[source]
            head.whole_weight = other_head.whole_weight / other_head.score_std
            head.bias.data.copy_((other_head.bias - other_head.score_mean) / other_head.score_std)

    @contextmanager
    def role(self, name: str, *, train: bool = False, first: int = 0) -> Iterator[None]:
        """Switch to a role (or `base`: adapters off) for one forward, or forward and backward.

        With `train` its layers from `first` on train.

        The reference is its own adapter where SFT made one, the bare base otherwise; a value
        without an adapter reads the policy's states.
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
        """Whether two roles have the same weights below a layer, and so the same states there."""
        adapters = self._adapter_of(one), self._adapter_of(other)
        if adapters[0] is None:
            return adapters[1] is None or self.same_below(other, one, layer)
        return roles.same_below(self.model, adapters[0], adapters[1], layer)

    def freeze_reference(self) -> None:
        """Make the reference a copy of the policy as it stands now."""
        self.add_role("reference", copy_of="policy")

    def parameters_of(self, role: str, first: int = 0) -> list[nn.Parameter]:
        """The LoRA weights of a role from layer `first` on (its head, if it has one, is last)."""
        named = roles.adapter_parameters(self.model, roles.ADAPTERS[role])
        weights = [p for name, p in named.items() if roles.layer_of(name) >= first]
        return weights + list(self.heads[role].parameters()) if role in self.heads else weights

    def float32_adapters(self) -> None:
        """Keep all adapter weights in float32: small steps would be lost in bfloat16."""
        for name, weight in self.model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()

    @contextmanager
    def stage(self, adapter_role: str) -> Iterator[PeftModel]:
        """Hand the model to one of TRL's trainers, and take it back as it was.

        TRL casts the adapters of a quantised model to bfloat16, wraps `forward`, switches
        checkpointing on and leaves the model in train mode. Inside, the role's adapter is active
        and the only one that trains.
        """
        causal = self.causal
        cache = causal.config.use_cache
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
            # It knows only the newest of the hooks that TRL, PEFT and transformers each set; with
            # one left over, every later backward would run down through the trunk.
            hooks.clear()
            hooks.update(own_hooks)
            causal.config.use_cache = cache
            self.model.set_adapter(ADAPTER_POLICY)
            self.model.requires_grad_(False)
            self.model.eval()
            self.float32_adapters()
            give_back_memory()

    # ---- forward

    def dense(
        self, room: int, first: int = 0, *, backward: bool = False
    ) -> AbstractContextManager[None]:
        """Keep 4-bit weights dequantised inside, on the CPU, while they fit into `room` bytes.

        For phases that read each weight of the layers from `first` on often; `backward` for those
        in which they also train.
        """
        return keep_dequantised(layers_of(self.causal, self.base)[first:], room, backward=backward)

    def ready(self) -> AbstractContextManager[None]:
        """Hold the active role's adapter as it is multiplied, for many forwards without gradient.

        Nothing may train inside.
        """
        return ready_adapters(roles.lora_layers(self.model), self.compute_dtype)

    @property
    def causal(self) -> Any:
        """The causal language model under the adapters."""
        return self.model.get_base_model()

    @property
    def decoder(self) -> Any:
        """The layers without the LM head."""
        return decoder_of(self.causal)

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.causal.get_input_embeddings().weight.shape[1]

    @property
    def lm_head(self) -> tuple[torch.Tensor, float | None]:
        """The LM head's frozen weight (V, H), and the family's cap on logits (Gemma 2) if any."""
        model = self.causal
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return model.get_output_embeddings().weight, cap

    @torch.no_grad()
    def check_lm_head(self) -> None:
        """See on a few tokens that `lm_head` gives the family's own logits.

        Raises:
            UserError: it scales its logits in a way that is not known here (Granite, Cohere).
        """
        ids = torch.arange(8, device=self.device)[None]
        with self.role("base"):
            own = self.causal(input_ids=ids).logits.float()
            hidden = trunk.run_decoder(self.decoder, trunk.padded_inputs(ids, torch.ones_like(ids)))
        weight, cap = self.lm_head
        ours = (hidden[0] @ weight.T).float()
        ours = cap * torch.tanh(ours / cap) if cap else ours
        if not torch.allclose(ours, own[0], rtol=0.05, atol=0.05):
            raise UserError(
                f"{self.base} is of the family {self.causal.config.model_type}, which changes its "
                "logits in a way that PPO here does not know, and would be trained wrongly. Use "
                "DPO or ORPO, or another base."
            )

    # ---- prompts

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt (see `Reader.encode`)."""
        return PromptEncoder(self.base, self.tokenizer).encode(prompt)

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: every EOS of the base's generation config."""
        eos = self.causal.generation_config.eos_token_id
        listed = eos if isinstance(eos, list) else [eos] if eos is not None else []
        own = self.tokenizer.eos_token_id
        return sorted({*listed, *([own] if own is not None else [])})

    @property
    def pad_id(self) -> int:
        """The padding token; masks come from lengths and never from it."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.stop_ids[0]

    # ---- storage and accounts

    def save(self, role: str, folder: str | Path) -> Path:
        """Save a role as a plain PEFT folder (safetensors); of several processes the first does."""
        return (
            storage.save_role(self, role, Path(folder)) if distributed.is_main() else Path(folder)
        )

    def load_role(self, role: str, folder: str | Path) -> None:
        """Load a role from a folder that `save` wrote, or a plain PEFT folder for the policy."""
        storage.load_role(self, role, Path(folder))

    def bytes(self) -> int:
        """Memory of the base's weights, adapters left out."""
        return sum(
            p.untyped_storage().nbytes()
            for name, p in self.model.named_parameters()
            if "lora_" not in name
        )

    def copies(self) -> int:
        """How many copies of the base's weights live in this process (1, or something is wrong).

        Counts the distinct storages of all living parameters that have the shape and dtype of one
        of the base's own matrices.
        """
        gc.collect()
        found: dict[tuple, set[int]] = {}
        for thing in gc.get_objects():
            # By type first: isinstance alone would ask odd objects for attributes that warn.
            if issubclass(type(thing), torch.Tensor) and isinstance(thing, nn.Parameter):
                if _key(thing) not in self._base_shapes:
                    continue
                found.setdefault(_key(thing), set()).add(thing.untyped_storage().data_ptr())
        matrices = [key for key in self._base_shapes if len(key[0]) > 1]  # a norm is like a head
        large = [key for key in matrices if torch.Size(key[0]).numel() >= 1 << 16]
        keys = large or matrices  # tiny test models have no matrix that large
        return max(-(-len(found.get(key, ())) // self._base_shapes[key]) for key in keys)


ADAPTER_POLICY = roles.ADAPTERS["policy"]


def _key(weight: torch.Tensor) -> tuple:
    return tuple(weight.shape), weight.dtype
