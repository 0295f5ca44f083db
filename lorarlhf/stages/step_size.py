"""The learning rate of DPO, ORPO and KTO where none is set."""

from collections.abc import Mapping, Sequence
from typing import Any

MEASURED_RATE, MEASURED_WIDTH, MEASURED_PAIRS = 5e-4, 576, 450
"""Found by a sweep on SmolLM2-135M (`benchmarks/dpo_defaults.py`): the rate, the base's hidden
size, and the pairs that were read: three passes over 150 votes, at the default batch size."""


def rate_for(width: int, pairs: float) -> float:
    """The default step size of a LoRA adapter.

    In bases that are wider than the measured one it is in inverse proportion to the width, as
    Adam's is for hidden weights (Tensor Programs V, arXiv 2203.03466, table 3). Where more pairs
    are read it falls with the square root of their number. Then the noise of the steps moves the
    weights as far as in the sweep, as in a random walk.

    Args:
        width: the base's hidden size.
        pairs: how many pairs are read in all passes together.
    """
    longer = min(1.0, MEASURED_PAIRS / max(1.0, pairs)) ** 0.5
    return MEASURED_RATE * min(1.0, MEASURED_WIDTH / width) * longer


def given_rate(settings: Any) -> dict[str, float]:
    """TRL's `learning_rate` from a stage's settings, where they have one."""
    return {} if settings.learning_rate is None else {"learning_rate": settings.learning_rate}


def fill_in_rate(args: Any, settings: Any, width: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set the default in TRL's configuration, unless the settings name a rate.

    Args:
        width: the base's hidden size.
        rows: what is learned from: pairs, or single answers, of which two count as a pair.
    """
    if settings.learning_rate is None and "learning_rate" not in settings.trl:
        pairs = sum(1.0 if "chosen" in row else 0.5 for row in rows)
        passes = args.num_train_epochs
        if args.max_steps > 0:  # counts more in TRL
            passes = args.max_steps * settings.batch_size / len(rows)
        args.learning_rate = rate_for(width, pairs * passes)
