"""Estimate the peak memory of a stage before it starts: from a base's sizes to bytes by part.

Nothing is loaded and torch is not imported. The counts follow the code: which tensors the backward
keeps, which adapters exist, which optimizer state. What can't be counted, holes in the heap and the
libraries' own buffers, are factors measured by `benchmarks/stage_memory.py` on the CPU; those for
cards are guesses as long as `measured` is false. All sizes are in bytes.
"""

from dataclasses import replace

from lorarlhf.backbone.limits import (
    DEQUANTISED_WEIGHTS,
    LOGIT_ROWS,
    SAMPLED_MICRO_BATCHES,
    SOFTMAX_ENTRIES,
    bucket_for,
    count_adapter_layers,
    count_trained_layers,
    kept_on_device,
)
from lorarlhf.backbone.memory_plan import MACHINES, Plan
from lorarlhf.backbone.shape import Shape

FLOAT32 = 4
ADAM = 2 * FLOAT32  # two running means for each weight
TRL_HEAD = 34  # for each number of a tile of TRL's fused LM head, without Triton
TRL_TILE = (4096, 32768)  # most labelled tokens and vocabulary entries of a tile
FULL_LOGITS = 17  # for each token and vocabulary entry: TRL's full logits (ORPO)


# ---- the estimate


def estimate(shape: Shape, plan: Plan) -> dict[str, int]:
    """Bytes by part, and the `total` that is in use at the same time at the peak.

    `kv_cache` exists while answers are sampled; `activations`, `logits` and `kept_trunk` exist
    while weights are trained. On a card the larger of the two counts; on a CPU both do, because
    the heap keeps holes.
    """
    learning = _learning(shape, plan)
    parts = {
        "base": base_bytes(shape, plan.bits, plan.float_bytes),
        "adapters": sum(map(plan.has, plan.needs.adapters)) * adapter_bytes(shape, plan),
        "heads": _heads(shape, plan),
        "optimizer": _optimizer(shape, plan),
        **learning,
        "kv_cache": _kv_cache(shape, plan),
        "scratch": _scratch(shape, plan),
        "runtime": MACHINES[plan.device].runtime,
    }
    never_together = min(sum(learning.values()), parts["kv_cache"]) if plan.device == "cuda" else 0
    return parts | {"total": sum(parts.values()) - never_together}


def _learning(shape: Shape, plan: Plan) -> dict[str, int]:
    """What exists while weights are trained."""
    return {
        "kept_trunk": _kept_trunk(shape, plan),
        "activations": _activations(shape, plan),
        "logits": _logits(shape, plan),
    }


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
    """Weights of one layer dequantised for forward and backward, and those that are kept ready."""
    each = 2 * max(a * b for a, b in shape.adapted) * plan.float_bytes if plan.bits < 16 else 0
    keeps = plan.device == "cpu" and plan.bits != 8
    return each + (_kept_weights(shape, plan) if keeps else 0)


def _kept_weights(shape: Shape, plan: Plan) -> int:
    """Dequantised or packed weights on a CPU: twice for layers with a backward, once for others."""
    layer = sum(a * b for a, b in shape.adapted) * plan.float_bytes
    room = DEQUANTISED_WEIGHTS * plan.float_bytes
    trained = max(_trained(shape, plan))
    kept = min(trained, room // (2 * layer)) * 2 * layer  # packed for forward and backward
    if not plan.needs.rollouts:
        return kept + min(shape.layers - trained, room // layer) * layer
    # Sampling keeps its own of all layers, those with adapters merged. They are freed before
    # learning, which reuses their place; at least half stays as holes.
    others, learning = min(shape.layers, room // layer) * layer, _learning(shape, plan)
    with_holes = round(MACHINES[plan.device].heap * others)
    kept += max(others // 2, with_holes - sum(learning.values()))
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
    trained, tokens, heap = max(_trained(shape, plan)), plan.tokens, MACHINES[plan.device].heap
    layer = tokens * (heap * token_bytes(shape, plan) + score_bytes(shape, plan))
    if not plan.checkpointed:
        return round(trained * layer)
    return round(heap * trained * tokens * shape.hidden * plan.float_bytes + layer)


def token_bytes(shape: Shape, plan: Plan) -> int:
    """Kept for each token and layer: the inputs of norms and of every product."""
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    # Torch's fused attention keeps its output, and keys and values once for each query head.
    fused = plan.device == "cuda" and not shape.capped
    products = 4 * shape.hidden + 2 * queries + 2 * keys + (3 * queries if fused else 0)
    low_rank = len(shape.adapted) * plan.lora_rank
    return (products + low_rank + 4 * shape.intermediate) * plan.float_bytes


def score_bytes(shape: Shape, plan: Plan) -> int:
    """Kept for each token and layer: the attention's weights, and where scores have a cap, these.

    Torch's fused attention keeps none, but it is not used on a CPU and can't cap the scores. They
    are large pieces, which leave no holes in the heap.
    """
    if plan.device == "cuda" and not shape.capped:
        return 0
    each = shape.heads * (plan.prompt_tokens + plan.answer_tokens) * plan.float_bytes
    return 2 * each if shape.capped else each


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
    tile = min(TRL_TILE[0], plan.answered) * min(TRL_TILE[1], shape.vocabulary)
    return tile * (TRL_HEAD if plan.device == "cpu" else 2 * plan.float_bytes)


# ---- sampling


def sampled_rows(shape: Shape, plan: Plan) -> int:
    """How many answers PPO samples together.

    On a CPU they are those of eight micro-batches. On a card they are as many as fit into the
    memory that learning takes, which is free while nothing learns: with more rows a card samples
    more tokens in the same time. They are no fewer than those of one micro-batch.
    """
    if plan.device != "cuda":
        return min(plan.rollout_batch_size, SAMPLED_MICRO_BATCHES * plan.micro_batch_size)
    rows, room = plan.micro_batch_size, sum(_learning(shape, plan).values())
    while rows < plan.rollout_batch_size and _cache_of(shape, plan, bucket_for(rows + 1)) <= room:
        rows = bucket_for(rows + 1)
    return min(plan.rollout_batch_size, rows)


def _kv_cache(shape: Shape, plan: Plan) -> int:
    if not plan.needs.samples:
        return 0
    if plan.needs.generates:
        return _cache_of(shape, plan, plan.rollout_batch_size)
    rows = sampled_rows(shape, plan)
    return _cache_of(shape, plan, bucket_for(rows) if plan.device == "cuda" else rows)


def _cache_of(shape: Shape, plan: Plan, rows: int) -> int:
    """Keys and values of so many answers, the forward over their prompts, the logits of a step."""
    tokens = rows * (plan.prompt_tokens + plan.answer_tokens)
    keys = 2 * shape.key_heads * shape.head_dim * plan.float_bytes
    logits = rows * shape.vocabulary
    # Probabilities in float32, summed in float64; transformers makes those of all rows at once.
    at_once = logits if plan.needs.generates else min(logits, SOFTMAX_ENTRIES[plan.device])
    softmax = at_once * (8 + 3 * FLOAT32)
    cache = round(MACHINES[plan.device].heap * tokens * shape.layers * keys)
    layer = rows * plan.prompt_tokens * (4 * shape.hidden + 3 * shape.intermediate)  # one at a time
    return cache + (layer + logits) * plan.float_bytes + softmax
