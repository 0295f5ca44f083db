"""The learning rates of SFT, DPO, ORPO, KTO and DITTO where none is set.

Adam's step size for hidden weights is in inverse proportion to a base's width (Tensor Programs V,
arXiv 2203.03466, table 3). So a rate that was measured on a narrow base falls with the width, and
it is never above the measured one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MEASURED_WIDTH = 576
"""The hidden size of SmolLM2-135M, on which the rates were measured."""
MEASURED_RATE, MEASURED_PAIRS = 5e-4, 450
"""Found by a sweep (`benchmarks/dpo_defaults.py`): the rate, and the pairs that were read: three
passes over 150 votes, at the default batch size."""
DEMONSTRATION_RATE = 1e-3
"""Of supervised tuning (`benchmarks/sft_rates.py`, `benchmarks/edits_vs_votes.py`)."""


def rate_for(width: int, pairs: float) -> float:
    """The default step size of a LoRA adapter that learns from preference pairs.

    Where more pairs are read it falls with the square root of their number. Then the noise of the
    steps moves the weights as far as in the sweep, as in a random walk.

    Args:
        width: the base's hidden size.
        pairs: how many pairs are read in all passes together.
    """
    longer = min(1.0, MEASURED_PAIRS / max(1.0, pairs)) ** 0.5
    return _rounded(MEASURED_RATE * _by_width(width) * longer)


def demonstration_rate(width: int) -> float:
    """The default step size of a LoRA adapter that learns from demonstrations."""
    return _rounded(DEMONSTRATION_RATE * _by_width(width))


def _by_width(width: int) -> float:
    return min(1.0, MEASURED_WIDTH / width)


def _rounded(rate: float) -> float:
    """Three digits: records and forms show it."""
    return float(f"{rate:.3g}")


def given_rate(settings: Any) -> dict[str, float]:
    """TRL's `learning_rate` from a stage's settings, where they have one."""
    return {} if settings.learning_rate is None else {"learning_rate": settings.learning_rate}


# ---- Each of these sets TRL's `learning_rate` unless the settings or their `trl` name one, and
# ---- returns the settings that were open, with the values that are used.


def fill_in_pair_rate(
    args: Any, settings: Any, width: int, rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """For DPO, ORPO and KTO.

    Args:
        args: TRL's configuration.
        width: the base's hidden size.
        rows: what is learned from: pairs, or single answers, of which two count as a pair.
    """
    pairs = sum(1.0 if "chosen" in row else 0.5 for row in rows)
    passes = args.num_train_epochs
    if args.max_steps > 0:  # counts more in TRL
        passes = args.max_steps * settings.batch_size / len(rows)
    return _fill_in(args, settings, rate_for(width, pairs * passes))


def fill_in_sft_rate(
    args: Any, settings: Any, width: int, rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """For supervised tuning."""
    return _fill_in(args, settings, demonstration_rate(width))


def fill_in_ditto_rates(
    args: Any, settings: Any, width: int, rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """For DITTO's rounds, with the pairs of all rounds, and for its supervised part."""
    pairs = settings.rounds * settings.steps * settings.batch_size
    found = _fill_in(args, settings, rate_for(width, pairs))
    if settings.sft_learning_rate is None:
        found["sft_learning_rate"] = demonstration_rate(width)
    return found


def _fill_in(args: Any, settings: Any, rate: float) -> dict[str, float]:
    if settings.learning_rate is not None:
        return {}
    if "learning_rate" not in settings.trl:
        args.learning_rate = rate
    return {"learning_rate": args.learning_rate}
