"""The logged figures of several runs over each other, read from their `metrics.jsonl`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorarlhf.evaluation.report_format import number
from lorarlhf.evaluation.report_plots import thin
from lorarlhf.runtime.files import readable_rows

MOST_RUNS = 8
"""How many can be told apart by a colour and a kind of line."""
BY_VOTES = "by votes: "
"""Begins the name of a figure that is logged by the number of votes, not by the step."""
WORDS = {
    "score": "score of the answers",
    "eval_score": "score on held-out prompts",
    "eval_judge": "judge on held-out prompts",
    "kl": "KL from the reference, nats per answer",
    "eval_kl": "KL on held-out prompts",
    "eval_accuracy": "pairs right, held out",
    "accuracy": "pairs right, train",
    "rewards/accuracies": "pairs right, train",
    "eval_rewards/accuracies": "pairs right, held out",
    "rewards/margins": "margin of the implied rewards",
    "loss": "loss, train",
    "eval_loss": "loss, held out",
    f"{BY_VOTES}heldout_accuracy": "held-out pairs right, by number of votes",
    "completion_length": "length of the answers, tokens",
    "ended_fraction": "share of answers that ended by themselves",
    "entropy": "entropy of the policy",
    "explained_variance": "variance of the returns that the value role explains",
    "seconds": "seconds an update",
}
"""The figures that people look at, in the order in which they are offered; others follow."""
_NO_FIGURES = ("step", "epoch", "num_tokens", "episodes")

Series = dict[float, float]
"""The value at each step, the first step first."""


@dataclass(frozen=True)
class Curves:
    """One figure of several runs.

    Attributes:
        metric: the figure; "" if the runs have none.
        metrics: all figures that a run has, with what a person calls them.
        series: the values of each run, in the order of the runs; empty if it does not have them.
        along: what the horizontal axis counts.
    """

    metric: str
    metrics: dict[str, str]
    series: tuple[Series, ...]
    along: str


def read_curves(runs: Sequence[Path], metric: str = "") -> Curves:
    """The values of a figure in the logs of runs.

    Args:
        runs: their folders.
        metric: one that no run has, or "", stands for the first one that most runs have.
    """
    logs = [read_series(run / "metrics.jsonl") for run in runs]
    order = {name: place for place, name in enumerate(WORDS)}
    names = {name for log in logs for name in log}
    known = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    if metric not in names:
        metric = max(known, key=lambda name: sum(name in log for log in logs), default="")
    metrics = {name: WORDS.get(name, name) for name in known}
    along = "votes" if metric.startswith(BY_VOTES) else "step"
    series = tuple(_thinned(log.get(metric, {})) for log in logs)
    return Curves(metric, metrics, series, along)


def read_series(log: Path) -> dict[str, Series]:
    """The values of all figures in a log; of two rows of a step the later one counts."""
    found: dict[str, Series] = {}
    if not log.is_file():
        return found
    for row in readable_rows(log):
        step = number(row.get("step"))
        start = BY_VOTES if row.get("stage") == "reward_curve" else ""
        for name, value in row.items() if step is not None else ():
            figure = number(value)
            if figure is not None and step is not None and name not in _NO_FIGURES:
                found.setdefault(f"{start}{name}", {})[step] = figure
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def _thinned(series: Series) -> Series:
    """Means of neighbouring points, if there are more than a picture can show."""
    return dict(zip(thin(series), thin(series.values()), strict=True))
