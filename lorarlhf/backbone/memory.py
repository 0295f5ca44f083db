"""Peak memory of a plan before it starts: from a model's `config.json` to bytes by part.

Nothing is loaded and torch is not imported. The counts follow the code: which tensors are kept for
the backward, which adapters are there, which optimizer state. What no count gives, the holes in the
heap and the libraries' own buffers, are factors measured by `benchmarks/stage_memory.py` on the
CPU; those for cards are guesses until `measured` says otherwise. All sizes are in bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorarlhf.backbone.fetch import PACKAGED, find_base
from lorarlhf.backbone.limits import (
    CHUNK,
    DEQUANTISED_BYTES,
    GENERATED_AT_ONCE,
    PROBABILITIES,
    count_adapter_layers,
    count_trained_layers,
    kept_on_device,
)
from lorarlhf.runtime.errors import UserError

STAGES = ("sft", "reward", "dpo", "orpo", "ppo")
PAIRED = ("reward", "dpo", "orpo")  # a row is two sequences
FLOAT32 = 4
ADAM = 2 * FLOAT32  # its two running means
TRL_TILE = 36  # bytes a labelled token and entry of the vocabulary: TRL's LM head without Triton
FULL_LOGITS = 17  # bytes a token and entry of the vocabulary where TRL holds them all (ORPO)


@dataclass(frozen=True)
class Machine:
    """What a device adds to the counts.

    Attributes:
        runtime: the process with its libraries, or the card's context.
        heap: what activations take, holes included, over what they are.
        measured: whether these come from measurements.
    """

    runtime: int
    heap: float
    measured: bool


MACHINES = {
    "cpu": Machine(runtime=590_000_000, heap=1.65, measured=True),
    "cuda": Machine(runtime=600_000_000, heap=1.15, measured=False),
}


@dataclass(frozen=True)
class Shape:
    """What a model's `config.json` says: sizes of its layers, and V the vocabulary."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    experts: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Read a configuration of a decoder.

        Raises:
            KeyError: a size is not there under the name that such configurations use.
        """
        whole, config = config, config.get("text_config") or config
        # Left out where it is the family's own default.
        usual = str(config.get("model_type", "")).startswith(("gemma", "cohere"))
        tied = config.get("tie_word_embeddings", whole.get("tie_word_embeddings", usual))
        heads = config["num_attention_heads"]
        experts = ("num_local_experts", "num_experts", "n_routed_experts")
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config.get("moe_intermediate_size") or config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=tied,
            experts=max((config.get(name) or 1 for name in experts), default=1),
        )

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear layers."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        attention = [(self.hidden, queries), *[(self.hidden, keys)] * 2, (queries, self.hidden)]
        mlp = [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return attention + mlp * self.experts


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        adapter_layers: how many layers carry adapters; None: the upper half.
        micro_batch_size: sequences in one forward, or pairs.
        prompt_tokens, answer_tokens: of the longest row.
        float_bytes: of the compute dtype.
        gradient_checkpointing: None is the stages' own default, which is on for TRL's on a card.
        reference: whether the reference is an adapter of its own.
        policy_layers, value_layers: as in `PPOConfig`.
    """

    stage: str
    bits: int = 4
    adapter_layers: int | None = None
    lora_rank: int = 16
    micro_batch_size: int = 4
    rollout_batch_size: int = 16
    prompt_tokens: int = 256
    answer_tokens: int = 256
    float_bytes: int = 2
    device: str = "cuda"
    gradient_checkpointing: bool | None = None
    reference: bool = True
    value_adapter: bool = True
    policy_layers: int | None = None
    value_layers: int | None = None

    @property
    def tokens(self) -> int:
        """In one forward, at the longest."""
        rows = self.micro_batch_size * (2 if self.stage in PAIRED else 1)
        return rows * (self.prompt_tokens + self.answer_tokens)

    @property
    def checkpointed(self) -> bool:
        """Whether activations are recomputed."""
        if self.gradient_checkpointing is None:
            return self.stage != "ppo" and self.device == "cuda"
        return self.gradient_checkpointing

    @property
    def answered(self) -> int:
        """Tokens of answers in one forward."""
        return self.tokens * self.answer_tokens // (self.prompt_tokens + self.answer_tokens)


def estimate(shape: Shape, plan: Plan) -> dict[str, int]:
    """Bytes by part, and their `total`: what is there at the same time at the peak.

    `kv_cache` is there while PPO samples and `activations`, `logits` and `kept_trunk` while it
    learns. On a card the larger of the two counts; a CPU's heap keeps the holes of both.
    """
    machine = MACHINES[plan.device]
    learning = {
        "kept_trunk": _kept_trunk(shape, plan),
        "activations": round(machine.heap * _activations(shape, plan)),
        "logits": _logits(shape, plan),
    }
    parts = {
        "base": base_bytes(shape, plan.bits, plan.float_bytes),
        "adapters": _adapters(plan) * adapter_bytes(shape, plan),
        "heads": _heads(shape, plan),
        "optimizer": _optimizer(shape, plan),
        **learning,
        "kv_cache": _kv_cache(shape, plan),
        "scratch": _scratch(shape, plan),
        "runtime": machine.runtime,
    }
    apart = min(sum(learning.values()), parts["kv_cache"]) if plan.device == "cuda" else 0
    return parts | {"total": sum(parts.values()) - apart}


def base_bytes(shape: Shape, bits: int, float_bytes: int = 2) -> int:
    """The frozen weights; embeddings and LM head stay in the compute dtype."""
    # NF4 with double quantisation: an 8-bit scale for 64 weights, a float for 256 of those.
    each = {4: 0.5 + 1 / 64 + FLOAT32 / (64 * 256), 8: 1.0, 16: float_bytes}[bits]
    linear = shape.layers * sum(a * b for a, b in shape.matrices)
    words = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    norms = (2 * shape.layers + 1) * shape.hidden
    return round(linear * each) + float_bytes * (words + norms)


def adapter_bytes(shape: Shape, plan: Plan) -> int:
    """The LoRA weights of one role, in float32."""
    return _upper(shape, plan) * plan.lora_rank * sum(map(sum, shape.matrices)) * FLOAT32


def _upper(shape: Shape, plan: Plan) -> int:
    if plan.adapter_layers is None:
        return count_adapter_layers("upper-half", shape.layers)
    return min(plan.adapter_layers, shape.layers)


def _adapters(plan: Plan) -> int:
    """How many roles have one."""
    of_ppo = 2 + plan.reference + plan.value_adapter  # policy and reward besides
    return {"sft": 1, "reward": 2, "dpo": 2, "orpo": 1, "ppo": of_ppo}[plan.stage]


def _heads(shape: Shape, plan: Plan) -> int:
    """Scalar heads in float32, on the final state and the trunk; of one that trains Adam's too."""
    read = 2 if _upper(shape, plan) < shape.layers else 1
    still, trained = {"reward": (0, 1), "ppo": (1, 1)}.get(plan.stage, (0, 0))
    return (read * shape.hidden + 1) * (still * FLOAT32 + trained * (2 * FLOAT32 + ADAM))


def _optimizer(shape: Shape, plan: Plan) -> int:
    """Adam's state, and the gradients of the role that learns."""
    layer, trained = adapter_bytes(shape, plan) / _upper(shape, plan), _trained(shape, plan)
    return round(layer * (sum(trained) * ADAM + max(trained) * FLOAT32) / FLOAT32)


def _trained(shape: Shape, plan: Plan) -> list[int]:
    """Layers that train, by role."""
    upper = _upper(shape, plan)
    if plan.stage != "ppo":
        return [upper]
    wanted = {"policy": plan.policy_layers}
    if plan.value_adapter:
        wanted["value"] = plan.value_layers
    return [count_trained_layers(role, layers, upper) for role, layers in wanted.items()]


def _kept_trunk(shape: Shape, plan: Plan) -> int:
    """States below the adapters, and of each role below the layers that train."""
    if plan.stage != "ppo":
        return 0
    upper = _upper(shape, plan)
    kept = (upper < shape.layers) + sum(layers < upper for layers in _trained(shape, plan))
    tokens = plan.rollout_batch_size * (plan.prompt_tokens + plan.answer_tokens)
    if plan.device == "cuda" and not kept_on_device(tokens, shape.hidden, plan.float_bytes):
        tokens = plan.tokens  # of one micro-batch; the others wait in the host's memory
    return kept * tokens * shape.hidden * plan.float_bytes


def _activations(shape: Shape, plan: Plan) -> int:
    """What the layers that train keep for the backward, or every layer's input and one layer."""
    trained, tokens = max(_trained(shape, plan)), plan.tokens
    layer = tokens * token_bytes(shape, plan)
    if not plan.checkpointed:
        return trained * layer
    through = trained if plan.stage == "ppo" else shape.layers  # TRL's begin at the embeddings
    return through * tokens * shape.hidden * plan.float_bytes + layer


def token_bytes(shape: Shape, plan: Plan) -> int:
    """Kept a token and layer: the inputs of norms and of every product."""
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    length = plan.prompt_tokens + plan.answer_tokens
    # Torch's fused attention keeps no weights of query against key; the CPU's does. It keeps what
    # came out, and keys and values once for each head of the queries.
    attended = shape.heads * length if plan.device == "cpu" else 3 * queries
    products = 4 * shape.hidden + 2 * queries + 2 * keys + attended
    low_rank = len(shape.matrices) * plan.lora_rank
    kept = products + low_rank + 4 * shape.intermediate
    return kept * plan.float_bytes


def _logits(shape: Shape, plan: Plan) -> int:
    if plan.stage == "reward":
        return 0
    if plan.stage == "ppo":
        logits = min(CHUNK, plan.answered) * shape.vocabulary
        held = 2 * plan.float_bytes * logits
        held += 2 * FLOAT32 * min(logits, PROBABILITIES[plan.device])
        return held + 2 * plan.answered * shape.hidden * FLOAT32  # and their slopes
    if plan.stage == "orpo":
        return plan.tokens * shape.vocabulary * FULL_LOGITS
    if plan.device == "cpu":
        return plan.answered * shape.vocabulary * TRL_TILE
    return min(4096, plan.answered) * min(32768, shape.vocabulary) * 2 * plan.float_bytes


def _kv_cache(shape: Shape, plan: Plan) -> int:
    if plan.stage != "ppo":
        return 0
    at_once = min(plan.rollout_batch_size, GENERATED_AT_ONCE * plan.micro_batch_size)
    tokens = at_once * (plan.prompt_tokens + plan.answer_tokens)
    keys = 2 * shape.key_heads * shape.head_dim * plan.float_bytes
    logits = at_once * shape.vocabulary
    # Probabilities, added up in float64.
    chosen = logits * plan.float_bytes + min(logits, PROBABILITIES[plan.device]) * (8 + 3 * FLOAT32)
    return round(MACHINES[plan.device].heap * tokens * shape.layers * keys) + chosen


def _scratch(shape: Shape, plan: Plan) -> int:
    """Weights of one layer while they are dequantised, forward and backward, and those kept so."""
    largest = max(a * b for a, b in shape.matrices)
    kept = 0
    if plan.stage == "ppo" and plan.device == "cpu" and plan.bits == 4:
        layer = sum(a * b for a, b in shape.matrices) * plan.float_bytes
        both = layer * (2 if plan.float_bytes == 2 else 1)  # packed for forward and backward
        trained = max(_trained(shape, plan))
        kept = min(trained, DEQUANTISED_BYTES // both) * both
        # What sampling keeps of other layers is gone before there are activations, but for holes.
        others = min(shape.layers - trained, DEQUANTISED_BYTES // layer) * layer
        holes = others // 2
        kept += max(holes, others - round(MACHINES["cpu"].heap * _activations(shape, plan)))
    return kept + 2 * largest * plan.float_bytes if plan.bits < 16 else 0


def largest(shape: Shape, plan: Plan, room: int) -> dict[str, int]:
    """The largest `micro_batch_size` at the plan's lengths, and the largest `answer_tokens` at its
    micro-batch, that fit into `room` bytes; 0 where nothing does."""

    def fits(changed: Plan) -> bool:
        return estimate(shape, changed)["total"] <= room

    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if fits(replace(plan, micro_batch_size=n))]
    lengths = [n for n in range(32, 16385, 32) if fits(replace(plan, answer_tokens=n))]
    return {"micro_batch_size": max(sizes, default=0), "answer_tokens": max(lengths, default=0)}


def read_shape(base: str) -> Shape:
    """The sizes of a base: a `config.json`, a folder with one, a packaged name or a hub id.

    Raises:
        UserError: it is not found, or its sizes are not where a decoder has them.
    """
    path = config_file(base)
    try:
        return Shape.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not have the sizes of a decoder ({error} is missing), so its memory "
            "can't be counted."
        ) from error


def config_file(base: str) -> Path:
    """Where a base's `config.json` is; of a hub id only that file is fetched."""
    if base.endswith(".json"):
        return Path(base).expanduser()
    found = find_base(base)
    if base in PACKAGED or Path(found).is_dir():
        return Path(found) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(found, "config.json"))
    except Exception as error:  # of many kinds: offline, gated, no such repository
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The config.json of {base} is neither in the local Hugging Face cache nor reachable "
            f"({reason}). Name a folder, or a config.json."
        ) from error
