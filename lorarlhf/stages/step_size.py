"""The learning rate of DPO, ORPO and KTO where none is set."""

from typing import Any

MEASURED_RATE, MEASURED_WIDTH = 5e-4, 576
"""Found by a sweep on SmolLM2-135M (`benchmarks/dpo_defaults.py`), with its hidden size."""


def rate_for(width: int) -> float:
    """The default step size of a LoRA adapter for a base of this hidden size.

    In bases that are wider than the measured one it is in inverse proportion to the width, as
    Adam's is for hidden weights (Tensor Programs V, arXiv 2203.03466, table 3).
    """
    return MEASURED_RATE * min(1.0, MEASURED_WIDTH / width)


def given_rate(settings: Any) -> dict[str, float]:
    """TRL's `learning_rate` from a stage's settings, where they have one."""
    return {} if settings.learning_rate is None else {"learning_rate": settings.learning_rate}


def fill_in_rate(args: Any, settings: Any, width: int) -> None:
    """Set the default in TRL's configuration, unless the settings name a rate."""
    if settings.learning_rate is None and "learning_rate" not in settings.trl:
        args.learning_rate = rate_for(width)
