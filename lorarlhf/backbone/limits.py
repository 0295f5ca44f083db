"""Sizes that running code keeps to so that memory stays within what `memory.py` estimates."""

CHUNK = 256  # rows of logits that PPO holds at once
PROBABILITIES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Entries of logits that are turned into probabilities at once: on a CPU so few that they stay in
its cache, elsewhere so many that the device has enough to do."""
GENERATED_AT_ONCE = 8
"""Micro-batches that PPO answers together: the keys and values of so many take less memory than the
activations of one."""
DEQUANTISED_BYTES = 256_000_000
"""Room for weights that PPO keeps dequantised on a CPU: of the layers that train, for forward and
backward, and while it samples of others besides."""
KEPT = 256_000_000
"""Bytes of kept states that stay on the device. Where a rollout has more, all are brought back from
the host's memory for each forward, in far less time than it takes."""


def rows_at_once(vocabulary: int, device: str) -> int:
    """How many rows of logits are turned into probabilities together (see `PROBABILITIES`)."""
    return max(1, PROBABILITIES.get(device, PROBABILITIES["cuda"]) // vocabulary)


def kept_on_device(tokens: int, hidden: int, float_bytes: int) -> bool:
    """Whether the states that PPO keeps of so many tokens stay on the device (see `KEPT`)."""
    return 3 * tokens * hidden * float_bytes <= KEPT  # the trunk, the policy's and the value's


def count_adapter_layers(wanted: int | str, layers: int) -> int:
    """`upper-half`, `all` or a number -> how many layers carry adapters, counted from the top.

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
    """How many of the layers with adapters PPO trains of a role, counted from the top.

    Args:
        wanted: as set; None: two thirds of them for the policy and one for the value.
    """
    thirds = {"policy": 2, "value": 1}[role]
    return min(-(-adapted * thirds // 3) if wanted is None else wanted, adapted)
