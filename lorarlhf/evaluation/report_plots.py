"""The report's plots as inline SVG: what each one shows, how to read it, and the drawing."""

import io
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.evaluation.report_format import number, text
from lorarlhf.evaluation.report_headline import stage_label

Row = Mapping[str, Any]
MAX_POINTS = 500  # of a line in a plot; longer series are averaged over neighbouring points
_COLORS = ("#1d5fa6", "#b3480a")  # of the lines, on a white card
_WIDTH, _LEFT = 4.1, 0.78  # inches: of a figure, and of the margin with the label and the numbers
PLOT_LOCK = threading.Lock()  # matplotlib's settings are global to the process


@dataclass(frozen=True)
class Panel:
    """A pair of axes: `lines` are (key in metrics.jsonl, name), `band` is the key of a spread."""

    ylabel: str
    lines: tuple[tuple[str, str], ...]
    band: str = ""
    percent: bool = False
    floor: float | None = None  # values below it are off the plot
    guide: float | None = None  # a dotted line to compare with


@dataclass(frozen=True)
class Plot:
    """A figure over the rows of one stage; the stage `""` stands for all other stages.

    Attributes:
        x: the key of the horizontal axis.
        mark: a place on it with a dotted line.
    """

    stage: str
    title: str
    xlabel: str
    caption: str
    panels: tuple[Panel, ...]
    x: str = "step"
    mark: float | None = None


def _percent(ylabel: str, train: str, held_out: str) -> Panel:
    return Panel(ylabel, ((train, "train"), (held_out, "held out")), percent=True, guide=0.5)


_LOSS = Panel("loss", (("loss", "train"), ("eval_loss", "held out")))
_ENDED = Panel("ended", (("ended_fraction", "ended by itself"),), percent=True)
_VARIANCE = Panel("expl. variance", (("explained_variance", ""),), floor=-1.0, guide=0.0)

PLOTS = {
    "score": Plot(
        "ppo",
        "Score",
        "update",
        "Mean score of the answers of an update, with a band of one standard deviation: healthy is "
        "a rise that levels off; a sudden jump together with KL or length means that the policy "
        "exploits the reward, so read the samples.",
        (Panel("mean score", (("score", "score"), ("eval_score", "held out")), band="score_std"),),
    ),
    "kl": Plot(
        "ppo",
        "Distance from the reference (KL)",
        "update",
        "How far the policy has moved from its frozen reference: healthy is a slow rise from 0; "
        "a steep one means that kl_coef is too small or the learning rate too large.",
        (Panel("nats per answer", (("kl", "KL"), ("eval_kl", "held out"))),),
    ),
    "length": Plot(
        "ppo",
        "Length",
        "update",
        "Mean length of an answer, and the share that ended before the token limit: healthy is "
        "little change; a steady drift means that the score rewards length.",
        (Panel("tokens", (("completion_length", "length"),)), _ENDED),
    ),
    "judge": Plot(
        "ppo",
        "Judge on held-out prompts",
        "update",
        "Scores by a judge other than the reward, for answers to prompts that no update sees: "
        "healthy is a rise; a fall while the score rises means that the policy has learned what "
        "the reward overrates.",
        (Panel("judge", (("eval_judge", "judge"),)),),
    ),
    "value": Plot(
        "ppo",
        "Value role",
        "update",
        "How well the value role predicts the return: healthy is a falling loss and an explained "
        "variance that rises from 0 (no better than a constant) towards 1; values under -1 are "
        "off the plot.",
        (Panel("value loss", (("value_loss", ""),)), _VARIANCE),
    ),
    "votes": Plot(
        "reward_curve",
        "Reward accuracy by votes",
        "votes",
        "Held-out pairs that the reward role orders as the rater does (the dotted line is "
        "guessing): healthy is a rise, and if it still rises at the right edge, more votes help.",
        (Panel("pairs right", (("heldout_accuracy", "held out"),), percent=True, guide=0.5),),
    ),
    "reward": Plot(
        "reward",
        "Reward training",
        "step",
        "Pairs that the reward role orders right: healthy is both lines rising together; if train "
        "is near 100% while held out stays flat, it overfits.",
        (_percent("pairs right", "accuracy", "eval_accuracy"), _LOSS),
    ),
    "loss": Plot(
        "",
        "Training",
        "step",
        "The loss of this stage: healthy is a fast fall, then a slow one; if held out rises while "
        "train falls, stop earlier or use more data.",
        (  # apart, since DPO measures held-out pairs with a loss of its own
            Panel("train loss", (("loss", ""),)),
            Panel("held-out loss", (("eval_loss", ""),)),
            _percent("pairs right", "rewards/accuracies", "eval_rewards/accuracies"),
        ),
    ),
    "likelihood": Plot(
        "",
        "Chosen and rejected answers",
        "step",
        "How likely a token of fixed answers is to the policy, and the margins of the training "
        "pairs: healthy is rejected falling below chosen, which stays about level, and margins of "
        "a few; both falling steeply means that the policy moves to answers that nobody voted on.",
        (
            Panel("nats a token", (("chosen_logp", "chosen"), ("rejected_logp", "rejected"))),
            Panel("margin", (("rewards/margins", "margin"), ("log_odds_chosen", "log odds"))),
        ),
    ),
    "sampled": Plot(
        "",
        "Sampled answers",
        "step",
        "The policy's answers to a few fixed prompts: runs of four tokens that repeat, the length, "
        "and the share that ended before the limit: healthy is little change; a rise of the first "
        "means that answers fall apart.",
        (
            Panel("repeated", (("repetition", "repeated"),), percent=True),
            Panel("tokens", (("completion_length", "length"),)),
            _ENDED,
        ),
    ),
}


OVER_OPTIMISATION = Plot(
    "",
    "Score and judge by KL",
    "KL on held-out prompts, nats per answer",
    "How far the score and the judge have risen, in standard deviations of the first policy's "
    "answers, and the gap between them: healthy is both rising; the score rising alone means that "
    "the policy probably learns what the reward overrates (from the vertical line on, if any).",
    (
        Panel("rise", (("score_rise", "score"), ("judge_rise", "judge")), guide=0.0),
        Panel("gap", (("gap", "score less judge"),), guide=0.0),
    ),
    x="kl",
)
"""Over rows of `over_optimisation.Measurement`."""


def series_of(rows: Iterable[Row], key: str, x: str = "step") -> dict[float, float]:
    """Step -> value. Of two rows of a step the later counts, since a resumed run repeats some."""
    found: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get(x)), number(row.get(key))
        if step is not None and value is not None:
            found[step] = value
    return dict(sorted(found.items()))


def thin(values: Iterable[float], most: int = MAX_POINTS) -> list[float]:
    """At most so many means of neighbouring values."""
    values = list(values)
    size = -(-len(values) // most) or 1
    parts = (values[start : start + size] for start in range(0, len(values), size))
    return [math.fsum(part) / len(part) for part in parts]


def _draw(axes: Any, panel: Panel, rows: Sequence[Row], along: str) -> str:
    """Draw a panel on matplotlib axes and return a description of it."""
    parts: list[str] = []
    for (key, name), color, dash in zip(panel.lines, _COLORS, ("-", "--"), strict=False):
        if not (series := series_of(rows, key, along)):
            continue
        x, y = thin(series), thin(series.values())
        mark = "o" if len(x) <= 40 else ""
        axes.plot(x, y, color=color, linestyle=dash, marker=mark, markersize=2.5, label=name)
        if not parts and (spread := series_of(rows, panel.band, along)):  # the first line's
            width = thin(spread.get(step, 0.0) for step in series)
            low = [value - wide for value, wide in zip(y, width, strict=True)]
            high = [value + wide for value, wide in zip(y, width, strict=True)]
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        parts.append(f"{name or panel.ylabel} from {y[0]:.3g} to {y[-1]:.3g}")
    axes.set_ylabel(panel.ylabel)
    axes.yaxis.set_label_coords((0.12 - _LEFT) / (_WIDTH - _LEFT - 0.1), 0.5)
    axes.xaxis.get_major_locator().set_params(integer=along == "step")
    if panel.guide is not None:
        axes.axhline(panel.guide, color="#6b7280", linestyle=":", linewidth=1)
    if panel.percent:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    elif panel.floor is not None:
        axes.set_ylim(bottom=max(panel.floor, axes.get_ylim()[0]))
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=8.5)
    return ", ".join(parts)


def _svg(name: str, plot: Plot, panels: Sequence[Panel], rows: Sequence[Row]) -> str:
    """The panels of a plot below each other, as `draw_svg` gives them."""
    height = 2.1 + 0.8 * (len(panels) - 1)

    def draw(figure: Any) -> str:
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        # Matplotlib's own layouts draw everything once more: half of the time.
        figure.subplots_adjust(
            *(_LEFT / _WIDTH, 0.46 / height, 1 - 0.1 / _WIDTH, 1 - 0.1 / height), hspace=0.2
        )
        pairs = zip(all_axes, panels, strict=True)
        parts = [_draw(axes, panel, rows, plot.x) for axes, panel in pairs]
        for axes in all_axes if plot.mark is not None else ():
            axes.axvline(plot.mark, color="#6b7280", linestyle=":", linewidth=1)
        all_axes[-1].set_xlabel(plot.xlabel)
        return f"Plot by {plot.xlabel}: {'; '.join(parts)}"

    return draw_svg(name, (_WIDTH, height), draw)


def draw_svg(name: str, size: tuple[float, float], draw: Callable[[Any], str]) -> str:
    """A figure as inline SVG with ids that start with `name`; equal input gives equal bytes.

    Args:
        size: its width and height in inches.
        draw: draws on matplotlib's figure, and returns what it shows in words.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9.5, "axes.grid": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e5e7eb"}
    stream = io.StringIO()
    with PLOT_LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's matplotlibrc must not change the page
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=size)
        label = draw(figure)
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return inline_svg(stream.getvalue(), name, label)


def inline_svg(svg: str, name: str, label: str) -> str:
    """A stand-alone SVG file as part of a page: without prolog, metadata, sizes or clashing ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    view_box = re.findall(r'viewBox="[^"]*"', svg)[0]
    svg = f'<svg role="img" aria-label="{text(label)}" {view_box}>' + svg[svg.index(">") + 1 :]
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda id_: id_[0] if id_[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#| id=")', rf"\g<1>{name}-", svg)


def figure(name: str, plot: Plot, title: str, rows: Sequence[Row]) -> str:
    """A plot with its heading and caption; empty if no row has any of its figures.

    Args:
        name: of the figure in the page, from which its ids are made.
    """
    panels = [p for p in plot.panels if any(series_of(rows, key, plot.x) for key, _ in p.lines)]
    if not panels:
        return ""
    return (
        f'<figure>\n<h3>{text(title)}</h3>\n<div class="plot">\n'
        f"{_svg(name, plot, panels, rows)}\n</div>\n"
        f"<figcaption>{text(plot.caption)}</figcaption>\n</figure>"
    )


def plots(metrics: Iterable[Row], run: Row) -> str:
    """The figures of all logged metrics as HTML; rows without a stage belong to `run["stage"]`."""
    stages: dict[str, list[Row]] = {}
    for row in metrics:
        stages.setdefault(str(row.get("stage") or run.get("stage") or ""), []).append(row)
    own = {plot.stage for plot in PLOTS.values()}
    figures = []
    for name, plot in PLOTS.items():
        if plot.stage:
            figures.append(figure(name, plot, plot.title, stages.get(plot.stage, [])))
            continue
        for index, stage in enumerate(sorted(stages.keys() - own)):
            title = f"{plot.title}: {stage_label(stage)}".rstrip(": ")
            figures.append(figure(f"{name}{index}", plot, title, stages[stage]))
    shown = "\n".join(filter(None, figures))
    return shown and f'<div class="grid plots">\n{shown}\n</div>'
