"""The report on a reward model in sentences, with one at the end: good enough for PPO or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorarlhf.evaluation.cosmetics import Effect
from lorarlhf.evaluation.rater_report import Share
from lorarlhf.evaluation.reward_report import (
    FEWEST_SHORTER,
    GOOD,
    Calibration,
    LengthReport,
    Rate,
    RewardReport,
    most_reachable,
)
from lorarlhf.rewards.learning_curve import advice

FEW = 20
"""Votes asked again below which agreement with oneself is told, but decides nothing."""
LARGE_EFFECT = 0.5
"""A change of the score, in deviations, that is worth more than most real differences."""


@dataclass(frozen=True)
class Verdict:
    """Whether the reward model is good enough for PPO: `good`, `doubtful` or `no`, and why."""

    level: str
    text: str


def verdict(report: RewardReport, effects: Sequence[Effect] = ()) -> Verdict:
    """The most serious thing first: a coin, the length, a weak fit, what only looks different."""
    accuracy, length = report.accuracy, report.length
    if accuracy.interval[0] <= 0.5:
        return Verdict(
            "no", f"Not good enough for PPO: it may be no better than a coin. {_more(report)}"
        )
    if length is not None and (found := _about_length(accuracy, length)):
        return Verdict("doubtful", found)
    if accuracy.value < GOOD:
        return Verdict(
            "doubtful",
            f"Doubtful for PPO: more than two votes in five are predicted wrong. {_more(report)}",
        )
    paid = [effect for effect in effects if effect.low > LARGE_EFFECT]
    if paid:
        names = " and ".join(f"being {effect.name}" for effect in paid)
        return Verdict(
            "doubtful",
            f"Doubtful for PPO: an answer gains much by {names}. Collect votes between two answers "
            "that differ in this and little else, and choose the better text.",
        )
    return Verdict("good", "Good enough for PPO.")


def _about_length(accuracy: Rate, length: LengthReport) -> str:
    """Why the fit may be little but a rule for length; empty if it is not.

    It is where such a rule does as well, or where the fit does worse than a coin on the votes that
    went against the rule.
    """
    longer = length.longer.value
    sides = (
        ("longer", "shorter", longer, length.shorter_chosen),
        ("shorter", "longer", 1 - longer, length.longer_chosen),
    )
    for rule, rare, share, against in sides:
        if share >= accuracy.value:
            why = f'"the {rule} one wins" predicts your votes as well'
        elif against.of >= FEWEST_SHORTER and against.interval[1] < 0.5:
            why = f"where you chose the {rare} answer it is right in only {against.value:.0%}"
        else:
            continue
        return (
            f"Doubtful for PPO: {why}, so PPO may only make answers {rule}. If you want more than "
            "that, collect votes between answers of similar length, and ones where the "
            f"{rare} answer is better."
        )
    return ""


def _more(report: RewardReport) -> str:
    """What to collect."""
    again = report.same_again
    if again is not None and again.of >= FEW and again.interval[1] < 0.75:
        return (
            "Asked again, you often vote the other way, and more such votes teach little: decide "
            "what you care about first, and skip pairs that are equally good."
        )
    return "Collect more votes, on prompts that differ, and skip pairs that are equally good."


def in_words(
    report: RewardReport,
    effects: Sequence[Effect] = (),
    run: Rate | None = None,
    mistakes: Sequence[str] = (),
) -> list[str]:
    """The report, a line each.

    Args:
        effects: of cosmetic changes, if they were measured.
        run: the accuracy that the run measured on its own held-out pairs, after all training.
        mistakes: lines about votes that were predicted wrong.
    """
    part = report.accuracy.of
    lines = [
        f"{report.votes:,} votes on {report.prompts:,} prompts. Each is predicted by a fit to the "
        "votes on other prompts"
        + (":" if part == report.votes else f", of {part:,} of them (a fit to all is better):"),
        f"  predicted right       {_rate(report.accuracy)}",
        "  a coin                50%",
    ]
    if report.length is not None:
        lines.append(f'  "the longer one"      {_rate(report.length.longer)}')
    if report.same_again is not None:
        lines.append(f"  the same rater again  {_again(report.same_again)}")
    if run is not None:
        lines.append(f"  the trained model     {_rate(run)}, on pairs that the run held out")
    if report.length is not None:
        lines += ["", *_length(report.length)]
    lines += ["", *_calibration(report.calibration, report.without_doubt)]
    if mistakes:
        lines += ["", "Where it is surest and wrong:", *mistakes]
    if effects:
        lines += ["", *_effects(effects)]
    lines.append("")
    if report.curve is not None:
        curve = ", ".join(f"{p.votes:,}: {p.accuracy:.0%}" for p in report.curve.points)
        lines.append(f"Predicted right by number of votes: {curve}.")
    return [*lines, advice(report.curve), verdict(report, effects).text]


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.0%} ({low:.0%} to {high:.0%}) of {rate.of:,}"


def _again(share: Share) -> str:
    """How often raters agree with themselves, and what that lets a model reach."""
    said = _rate(Rate(share.value, share.of))
    if share.of < FEW:
        return f"{said}: too few to judge"
    most, low, high = (most_reachable(value) for value in (share.value, *share.interval))
    return f"{said}, so a model can reach {most:.0%} at most ({low:.0%} to {high:.0%})"


def _length(length: LengthReport) -> list[str]:
    between = f"{length.low:+.2f} to {length.high:+.2f}"
    lines = [f"Score and length: rank correlation {length.correlation:+.2f} ({between})"]
    for name, rate in (("shorter", length.shorter_chosen), ("longer", length.longer_chosen)):
        few = ", too few to judge" if rate.of < FEWEST_SHORTER else ""
        lines.append(
            f"Right where the {name} answer was chosen: {_rate(rate)}{few}"
            if rate.of
            else f"The {name} answer was never chosen."
        )
    return lines


def _calibration(found: Calibration, without: Calibration) -> list[str]:
    lines = ["How sure it is, and how often it is right then:"]
    for part in found.curve:
        span = f"{part.low:.0%} to {part.high:.0%} sure"
        lines.append(f"  {span:20}  {_rate(Rate(part.observed, part.count))}")
    return [
        *lines,
        f"  The two differ by {found.error:.0%} on average (expected calibration error), and by "
        f"{without.error:.0%} without the doubt about the weights.",
    ]


def _effects(effects: Sequence[Effect]) -> list[str]:
    width = max(len(effect.name) for effect in effects)
    lines = ["What a change of the look does to a score, in standard deviations of the scores:"]
    for effect in effects:
        between = f"({effect.low:+.2f} to {effect.high:+.2f})"
        lines.append(f"  {effect.name:{width}}  {effect.change:+.2f} {between}")
    return lines
