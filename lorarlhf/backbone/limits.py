"""Sizes that running code keeps to, so that memory stays within what `memory.py` estimates."""

LOGIT_ROWS = 256
"""Rows of logits (one for each token) that PPO holds at once."""
SOFTMAX_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Entries of logits that are turned into probabilities at once: on a CPU few enough to stay in its
cache, elsewhere enough to keep the device busy."""
SAMPLED_MICRO_BATCHES = 8
"""Micro-batches that PPO samples together on a CPU: their keys and values take less memory than the
activations of one. For cards see `memory.sampled_rows`."""
SAMPLED_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Rows of a batch that a card samples; above the last one, multiples of it. Each needs a CUDA graph
of its own."""
DEQUANTISED_WEIGHTS = 128_000_000
"""Weights that are kept dequantised on a CPU while many answers are sampled, 256 MB in 16 bit and
512 MB in float32; the same amount again for the layers that PPO trains."""
KEPT_STATE_BYTES = 256_000_000
"""Bytes of kept states that stay on the device. If a rollout has more, all are copied back from the
host's memory for each forward, which takes far less time than the forward."""


def bucket_for(rows: int) -> int:
    """The smallest batch with at least as many rows (see `SAMPLED_BUCKETS`)."""
    largest = SAMPLED_BUCKETS[-1]
    found = next((bucket for bucket in SAMPLED_BUCKETS if bucket >= rows), None)
    return found if found is not None else -(-rows // largest) * largest


def softmax_rows(vocabulary: int, device: str) -> int:
    """How many rows of logits are turned into probabilities at once (see `SOFTMAX_ENTRIES`)."""
    return max(1, SOFTMAX_ENTRIES.get(device, SOFTMAX_ENTRIES["cuda"]) // vocabulary)


def kept_on_device(tokens: int, hidden: int, float_bytes: int) -> bool:
    """Whether the states that PPO keeps for `tokens` tokens stay on the device.

    Three states of size `hidden` are kept for each token: the trunk's, the policy's and the
    value's. See `KEPT_STATE_BYTES`.
    """
    return 3 * tokens * hidden * float_bytes <= KEPT_STATE_BYTES


def count_adapter_layers(wanted: int | str, layers: int) -> int:
    """How many layers get adapters, counted from the top: `upper-half`, `all` or a number.

    Raises:
        ValueError: another word, or a number below 1 or above the number of layers.
    """
    if wanted == "all":
        return layers
    if wanted == "upper-half":
        return layers - layers // 2
    try:
        number = int(wanted)
    except ValueError:
        number = 0
    if not 1 <= number <= layers:
        raise ValueError(
            f"adapter_layers is 'upper-half', 'all' or a number from 1 to {layers}, not {wanted!r}"
        )
    return number


def count_trained_layers(role: str, wanted: int | None, adapted: int) -> int:
    """How many of the `adapted` layers PPO trains for a role, counted from the top.

    Args:
        wanted: the setting; None means two thirds for the policy and one third for the value.
    """
    thirds = {"policy": 2, "value": 1}[role]
    return min(-(-adapted * thirds // 3) if wanted is None else wanted, adapted)
