"""What the demo's taste test found: the figures, the notes on them, and the text at the end."""

from collections.abc import Iterable, Sequence
from typing import Any

from lorarlhf.evaluation.report import headline
from lorarlhf.evaluation.win_rate import (
    judge_pairs,
    length_matched_win_rate,
    length_only_rate,
    length_ratio,
    win_rate,
)
from lorarlhf.rewards.raters import Answer, Rater

Row = dict[str, Any]
ALIKE = 0.3
"""Share of a length by which two answers, or two means, may differ and still count as alike."""


def judge(
    rater: Rater,
    prompts: Sequence[str],
    before: Sequence[Answer],
    after: Sequence[Answer],
    seed: int,
) -> tuple[Row, list[Row]]:
    """Compare answers of base and tuned policy by the rater's rule without noise.

    Args:
        prompts, before, after: n each; a prompt may come several times.
        seed: of the sides' order and the interval.

    Returns:
        The part of the summary that this gives, and n rows with both answers and who won.
    """
    outcomes = judge_pairs(rater, after, before, seed=seed)
    lengths_before = [float(answer.tokens or 0) for answer in before]
    lengths_after = [float(answer.tokens or 0) for answer in after]
    alike = length_matched_win_rate(outcomes, lengths_after, lengths_before, ALIKE, prompts, seed)
    found = {
        "win_rate": win_rate(outcomes, prompts, seed=seed).to_dict(),
        "win_rate_at_like_length": alike.to_dict() if alike else None,
        "longer_wins": length_only_rate(lengths_after, lengths_before),
        "tie_width": rater.rule.tie_width,
        "rule_score": {
            "before": _mean(map(rater.score, before)),
            "after": _mean(map(rater.score, after)),
        },
        "ended": {"before": _ended(before), "after": _ended(after)},
        "mean_length_before": _mean(lengths_before),
        "mean_length_after": _mean(lengths_after),
        "notes": _notes(length_ratio(lengths_after, lengths_before), alike is not None),
    }
    rows = [
        {
            "prompt": prompt,
            "base": base.text,
            "tuned": tuned.text,
            "base_score": rater.score(base),
            "tuned_score": rater.score(tuned),
            "verdict": {1: "tuned", 0: "tie", -1: "base"}[outcome],
        }
        for prompt, base, tuned, outcome in zip(prompts, before, after, outcomes, strict=True)
    ]
    return found, rows


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _ended(answers: Sequence[Answer]) -> float:
    return _mean(float(answer.ended) for answer in answers)


def _notes(ratio: float, has_alike: bool) -> list[str]:
    if abs(ratio - 1) <= ALIKE:
        return []
    note = (
        f"Answers changed their mean length by {ratio - 1:+.0%}: part of the win rate may be "
        "length alone."
    )
    return [note + (" Look at the win rate at like length." if has_alike else "")]


def as_text(summary: Row, samples: Sequence[Row], report: str) -> str:
    """The before/after table, six pairs of answers and the notes, for the terminal."""
    won, rule, ppo = summary["win_rate"], summary["rule_score"], summary["ppo"]
    ended, alike = summary["ended"], summary["win_rate_at_like_length"]
    low, high = won["ci95"]
    lines = [
        "",
        headline(summary, {}),
        "",
        f"{'held-out answers':32}{'base':>10}{'tuned':>10}",
        f"{'the rule`s mean score':32}{rule['before']:>10.2f}{rule['after']:>10.2f}",
        f"{'mean length, tokens':32}{ppo['mean_length_before']:>10.1f}"
        f"{ppo['mean_length_after']:>10.1f}",
        f"{'ended by themselves':32}{ended['before']:>10.0%}{ended['after']:>10.0%}",
        f"{'wins, ties as half':32}{1 - won['rate']:>10.0%}{won['rate']:>10.0%}"
        f"   ({won['wins']} wins, {won['ties']} ties, {won['losses']} losses; "
        f"95% interval {low:.0%} to {high:.0%})",
    ]
    if alike:
        lines += [
            f"{'wins among pairs of like length':32}{1 - alike['rate']:>10.0%}"
            f"{alike['rate']:>10.0%}   ({alike['n']} pairs)"
        ]
    lines += [""]
    for sample in samples[:6]:
        lines += [f"> {sample['prompt']}"]
        lines += [f"  {side:6} {' '.join(sample[side].split())}" for side in ("base", "tuned")]
    return "\n".join([*lines, "", *summary["notes"], f"Report: {report}"])
