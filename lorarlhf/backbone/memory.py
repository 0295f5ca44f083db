"""Estimate the peak memory of a stage before it starts: from a base's sizes to bytes by part.

Nothing is loaded and torch is not imported. The counts follow the code: which tensors the backward
keeps, which adapters exist, which optimizer state. What can't be counted, holes in the heap and the
libraries' own buffers, are factors measured by `benchmarks/stage_memory.py` on the CPU; those for
cards are guesses as long as `measured` is false. All sizes are in bytes.
"""

from dataclasses import dataclass, replace
from typing import Literal

from lorarlhf.backbone.limits import (
    DEQUANTISED_WEIGHTS,
    LOGIT_ROWS,
    SOFTMAX_ENTRIES,
    count_adapter_layers,
    count_trained_layers,
    kept_on_device,
    sampled_at_once,
)
from lorarlhf.backbone.shape import Shape

FLOAT32 = 4
ADAM = 2 * FLOAT32  # two running means for each weight
TRL_HEAD = 36  # for each labelled token and vocabulary entry: TRL's fused LM head without Triton
FULL_LOGITS = 17  # for each token and vocabulary entry: TRL's full logits (ORPO)


# ---- what a stage needs


@dataclass(frozen=True)
class StageMemory:
    """How the memory of a stage is counted.

    Attributes:
        adapters: the roles that have one.
        optional: those of them that the plan can leave out.
        trained: the roles whose adapters train.
        frozen_heads, trained_heads: number of scalar heads.
        sequences: in each row of a micro-batch; 2 for pairs.
        logits: `none` for a scalar head; `chunked` for PPO, which holds `LOGIT_ROWS` rows at once;
            `fused` for TRL's fused LM head; `full` where all logits are held.
        rollouts: whether it is PPO's own loop: it samples, keeps the states below the layers that
            train, and trains only some of the layers with adapters. The others are TRL's trainers,
            which checkpoint activations on a card by default.
    """

    adapters: tuple[str, ...]
    optional: tuple[str, ...] = ()
    trained: tuple[str, ...] = ("policy",)
    frozen_heads: int = 0
    trained_heads: int = 0
    sequences: int = 1
    logits: Literal["none", "chunked", "fused", "full"] = "fused"
    rollouts: bool = False


STAGE_MEMORY = {
    "sft": StageMemory(adapters=("policy",)),
    "reward": StageMemory(
        adapters=("policy", "reward"),
        trained=("reward",),
        trained_heads=1,
        sequences=2,
        logits="none",
    ),
    "dpo": StageMemory(adapters=("policy", "reference"), sequences=2),
    # One sequence in the forward that trains. The KL completions of the default loss go through
    # forwards of their own, without gradients, which keep nothing (TRL 1.16).
    "kto": StageMemory(adapters=("policy", "reference")),
    "orpo": StageMemory(adapters=("policy",), sequences=2, logits="full"),
    "ppo": StageMemory(
        adapters=("policy", "reference", "reward", "value"),
        optional=("reference", "value"),
        trained=("policy", "value"),
        frozen_heads=1,
        trained_heads=1,
        logits="chunked",
        rollouts=True,
    ),
}
STAGES = tuple(STAGE_MEMORY)


@dataclass(frozen=True)
class Machine:
    """What a device adds to the counts.

    Attributes:
        runtime: bytes of the process with its libraries, or of the card's context.
        heap: the memory that activations take, holes included, divided by their own size.
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
class Plan:
    """What is to be run.

    Attributes:
        stage: a key of `STAGE_MEMORY`.
        adapter_layers: number of layers with adapters; None means the upper half.
        micro_batch_size: rows in one forward.
        prompt_tokens, answer_tokens: of the longest row.
        float_bytes: of the compute dtype.
        gradient_checkpointing: None means the stage's default, which is on for TRL's on a card.
        reference, value_adapter: whether PPO has an adapter for these roles.
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
    def needs(self) -> StageMemory:
        """How the stage's memory is counted."""
        return STAGE_MEMORY[self.stage]

    @property
    def tokens(self) -> int:
        """Tokens in one forward, at most."""
        rows = self.micro_batch_size * self.needs.sequences
        return rows * (self.prompt_tokens + self.answer_tokens)

    @property
    def answered(self) -> int:
        """Answer tokens in one forward."""
        return self.tokens * self.answer_tokens // (self.prompt_tokens + self.answer_tokens)

    @property
    def checkpointed(self) -> bool:
        """Whether activations are recomputed."""
        if self.gradient_checkpointing is None:
            return not self.needs.rollouts and self.device == "cuda"
        return self.gradient_checkpointing

    def has(self, role: str) -> bool:
        """Whether a role has an adapter of its own."""
        left_out = {"reference": not self.reference, "value": not self.value_adapter}
        if role in self.needs.optional and left_out[role]:
            return False
        return role in self.needs.adapters


# ---- the estimate


def estimate(shape: Shape, plan: Plan) -> dict[str, int]:
    """Bytes by part, and the `total` that is in use at the same time at the peak.

    `kv_cache` exists while PPO samples; `activations`, `logits` and `kept_trunk` exist while it
    learns. On a card the larger of the two counts; on a CPU both do, because the heap keeps holes.
    """
    machine = MACHINES[plan.device]
    learning = {
        "kept_trunk": _kept_trunk(shape, plan),
        "activations": round(machine.heap * _activations(shape, plan)),
        "logits": _logits(shape, plan),
    }
    parts = {
        "base": base_bytes(shape, plan.bits, plan.float_bytes),
        "adapters": sum(map(plan.has, plan.needs.adapters)) * adapter_bytes(shape, plan),
        "heads": _heads(shape, plan),
        "optimizer": _optimizer(shape, plan),
        **learning,
        "kv_cache": _kv_cache(shape, plan),
        "scratch": _scratch(shape, plan),
        "runtime": machine.runtime,
    }
    never_together = min(sum(learning.values()), parts["kv_cache"]) if plan.device == "cuda" else 0
    return parts | {"total": sum(parts.values()) - never_together}


def largest(shape: Shape, plan: Plan, available: int) -> dict[str, int]:
    """The largest sizes that fit into `available` bytes, 0 if none does.

    Returns:
        `micro_batch_size` at the plan's lengths, and `answer_tokens` at the plan's micro-batch.
    """

    def fits(changed: Plan) -> bool:
        return estimate(shape, changed)["total"] <= available

    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if fits(replace(plan, micro_batch_size=n))]
    lengths = [n for n in range(32, 16385, 32) if fits(replace(plan, answer_tokens=n))]
    return {"micro_batch_size": max(sizes, default=0), "answer_tokens": max(lengths, default=0)}


# ---- weights


def base_bytes(shape: Shape, bits: int, float_bytes: int = 2) -> int:
    """The frozen weights; embeddings and LM head stay in the compute dtype."""
    # NF4 with double quantisation: an 8-bit scale for 64 weights, a float for 256 scales.
    each = {4: 0.5 + 1 / 64 + FLOAT32 / (64 * 256), 8: 1.0, 16: float_bytes}[bits]
    plain = shape.plain_weights if bits == 4 or (bits == 8 and shape.experts > 1) else 0
    linear = shape.layers * sum(a * b for a, b in shape.matrices) - plain
    words = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    norms = (2 * shape.layers + 1) * shape.hidden
    return round(linear * each) + float_bytes * (plain + words + norms)


def adapter_bytes(shape: Shape, plan: Plan) -> int:
    """The LoRA weights of one role, in float32."""
    return _upper(shape, plan) * plan.lora_rank * sum(map(sum, shape.adapted)) * FLOAT32


def _upper(shape: Shape, plan: Plan) -> int:
    """Layers with adapters."""
    if plan.adapter_layers is None:
        return count_adapter_layers("upper-half", shape.layers)
    return min(plan.adapter_layers, shape.layers)


def _heads(shape: Shape, plan: Plan) -> int:
    """Scalar heads in float32, on the final state and the trunk, with Adam for those that train."""
    parts = 2 if _upper(shape, plan) < shape.layers else 1
    each_trained = 2 * FLOAT32 + ADAM
    held = plan.needs.frozen_heads * FLOAT32 + plan.needs.trained_heads * each_trained
    return (parts * shape.hidden + 1) * held


def _optimizer(shape: Shape, plan: Plan) -> int:
    """Adam's state, and the gradients of one role at a time."""
    layer, trained = adapter_bytes(shape, plan) / _upper(shape, plan), _trained(shape, plan)
    return round(layer * (sum(trained) * ADAM + max(trained) * FLOAT32) / FLOAT32)


def _trained(shape: Shape, plan: Plan) -> list[int]:
    """Number of layers that train, for each role that does."""
    upper = _upper(shape, plan)
    roles = [role for role in plan.needs.trained if plan.has(role)]
    if not plan.needs.rollouts:
        return [upper for _ in roles]
    wanted = {"policy": plan.policy_layers, "value": plan.value_layers}
    return [count_trained_layers(role, wanted[role], upper) for role in roles]


def _scratch(shape: Shape, plan: Plan) -> int:
    """Weights of one layer dequantised for forward and backward, and those that are kept so."""
    if plan.bits == 16:
        return 0
    each = 2 * max(a * b for a, b in shape.adapted) * plan.float_bytes
    return each + (_kept_weights(shape, plan) if plan.device == "cpu" and plan.bits == 4 else 0)


def _kept_weights(shape: Shape, plan: Plan) -> int:
    """Dequantised weights that a CPU keeps: twice for layers with a backward, once for others."""
    layer = sum(a * b for a, b in shape.adapted) * plan.float_bytes
    room = DEQUANTISED_WEIGHTS * plan.float_bytes
    trained = max(_trained(shape, plan))
    kept = min(trained, room // (2 * layer)) * 2 * layer  # packed for forward and backward
    others = min(shape.layers - trained, room // layer) * layer
    if not plan.needs.rollouts:
        return kept + others
    # What sampling keeps of other layers is freed before there are activations, except holes.
    kept += max(others // 2, others - round(MACHINES["cpu"].heap * _activations(shape, plan)))
    if plan.float_bytes == FLOAT32:  # the LM head is packed for both as well
        kept += 2 * FLOAT32 * shape.vocabulary * shape.hidden
    return kept


# ---- states


def _kept_trunk(shape: Shape, plan: Plan) -> int:
    """States below the adapters, and for each role those below the layers that train."""
    if not plan.needs.rollouts:
        return 0
    upper = _upper(shape, plan)
    kept = (upper < shape.layers) + sum(layers < upper for layers in _trained(shape, plan))
    tokens = plan.rollout_batch_size * (plan.prompt_tokens + plan.answer_tokens)
    if plan.device == "cuda" and not kept_on_device(tokens, shape.hidden, plan.float_bytes):
        tokens = plan.tokens  # of one micro-batch; the others wait in the host's memory
    return kept * tokens * shape.hidden * plan.float_bytes


def _activations(shape: Shape, plan: Plan) -> int:
    """What the layers that train keep for the backward, or each layer's input and one layer."""
    trained, tokens = max(_trained(shape, plan)), plan.tokens
    layer = tokens * token_bytes(shape, plan)
    if not plan.checkpointed:
        return trained * layer
    return trained * tokens * shape.hidden * plan.float_bytes + layer


def token_bytes(shape: Shape, plan: Plan) -> int:
    """Kept for each token and layer: the inputs of norms and of every product."""
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    length = plan.prompt_tokens + plan.answer_tokens
    # The CPU's attention keeps the weights of queries against keys. Torch's fused attention keeps
    # its output instead, and keys and values once for each query head.
    attended = shape.heads * length if plan.device == "cpu" else 3 * queries
    products = 4 * shape.hidden + 2 * queries + 2 * keys + attended
    low_rank = len(shape.adapted) * plan.lora_rank
    kept = products + low_rank + 4 * shape.intermediate
    return kept * plan.float_bytes


def _logits(shape: Shape, plan: Plan) -> int:
    kind = plan.needs.logits
    if kind == "none":
        return 0
    if kind == "chunked":
        logits = min(LOGIT_ROWS, plan.answered) * shape.vocabulary
        held = 2 * plan.float_bytes * logits
        held += 2 * FLOAT32 * min(logits, SOFTMAX_ENTRIES[plan.device])
        return held + 2 * plan.answered * shape.hidden * FLOAT32  # hidden states and gradients
    if kind == "full":
        return plan.tokens * shape.vocabulary * FULL_LOGITS
    if plan.device == "cpu":
        return plan.answered * shape.vocabulary * TRL_HEAD
    return min(4096, plan.answered) * min(32768, shape.vocabulary) * 2 * plan.float_bytes


def _kv_cache(shape: Shape, plan: Plan) -> int:
    if not plan.needs.rollouts:
        return 0
    at_once = sampled_at_once(plan.rollout_batch_size, plan.micro_batch_size, plan.device)
    tokens = at_once * (plan.prompt_tokens + plan.answer_tokens)
    keys = 2 * shape.key_heads * shape.head_dim * plan.float_bytes
    logits = at_once * shape.vocabulary
    # Probabilities in float32, summed in float64.
    softmax = min(logits, SOFTMAX_ENTRIES[plan.device]) * (8 + 3 * FLOAT32)
    cache = round(MACHINES[plan.device].heap * tokens * shape.layers * keys)
    return cache + logits * plan.float_bytes + softmax
