"""The blind comparison of tuned and base answers by a simulated rater: its figures and its text."""

from collections.abc import Iterable, Sequence
from typing import Any

from lorarlhf.evaluation.report_headline import headline
from lorarlhf.evaluation.win_rate import (
    SIMILAR,
    judge_pairs,
    length_matched_win_rate,
    length_only_rate,
    length_ratio,
    win_rate,
)
from lorarlhf.rewards.raters import Answer, Rater

Row = dict[str, Any]
VERDICTS = {1: "tuned", 0: "tie", -1: "base"}
SHOWN = 6
"""Pairs of answers printed in the terminal."""


def judge(
    rater: Rater,
    prompts: Sequence[str],
    before: Sequence[Answer],
    after: Sequence[Answer],
    seed: int,
) -> tuple[Row, list[Row]]:
    """Compare base and tuned answers by the rater's rule, without noise.

    Args:
        prompts, before, after: n each; a prompt may occur several times.
        seed: for the order of the sides and for the interval.

    Returns:
        The figures for the summary, and n rows with both answers, their scores and the verdict.
    """
    outcomes = judge_pairs(rater, after, before, seed=seed)
    lengths_before = [float(answer.tokens or 0) for answer in before]
    lengths_after = [float(answer.tokens or 0) for answer in after]
    similar = length_matched_win_rate(
        outcomes, lengths_after, lengths_before, SIMILAR, prompts, seed
    )
    figures = {
        "win_rate": win_rate(outcomes, prompts, seed=seed).to_dict(),
        "win_rate_at_like_length": similar.to_dict() if similar else None,
        "longer_wins": length_only_rate(lengths_after, lengths_before),
        "tie_width": rater.rule.tie_width,
        "rule_score": {
            "before": _mean(map(rater.score, before)),
            "after": _mean(map(rater.score, after)),
        },
        "ended": {"before": _share_ended(before), "after": _share_ended(after)},
        "mean_length_before": _mean(lengths_before),
        "mean_length_after": _mean(lengths_after),
        "notes": _notes(length_ratio(lengths_after, lengths_before), similar is not None),
    }
    rows = [
        {
            "prompt": prompt,
            "base": base.text,
            "tuned": tuned.text,
            "base_score": rater.score(base),
            "tuned_score": rater.score(tuned),
            "verdict": VERDICTS[outcome],
        }
        for prompt, base, tuned, outcome in zip(prompts, before, after, outcomes, strict=True)
    ]
    return figures, rows


def judge_best_of(
    rater: Rater,
    prompts: Sequence[str],
    before: Sequence[Answer],
    picked: Sequence[Answer],
    seed: int,
) -> Row:
    """Compare the base's answers with the best of n of other answers of the base, as `judge` does.

    Args:
        prompts, before, picked: one of each for a comparison; an answer may occur several times.

    Returns:
        `win_rate`, and of the picked answers the mean `rule_score` and `mean_length` in tokens.
    """
    outcomes = judge_pairs(rater, picked, before, seed=seed)
    return {
        "win_rate": win_rate(outcomes, prompts, seed=seed).to_dict(),
        "rule_score": _mean(map(rater.score, picked)),
        "mean_length": _mean(float(answer.tokens or 0) for answer in picked),
    }


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _share_ended(answers: Sequence[Answer]) -> float:
    return _mean(float(answer.ended) for answer in answers)


def _notes(ratio: float, has_similar: bool) -> list[str]:
    if abs(ratio - 1) <= SIMILAR:
        return []
    note = (
        f"The mean length of answers changed by {ratio - 1:+.0%}, so part of the win rate may be "
        "due to length alone."
    )
    return [note + (" See the win rate at similar length." if has_similar else "")]


def as_text(summary: Row, samples: Sequence[Row], report: str) -> str:
    """The table of figures before and after, some pairs of answers and the notes, as plain text."""
    lines = ["", headline(summary, {}), "", *_table(summary), "", samples_as_text(samples)]
    return "\n".join([*lines, "", *summary["notes"], f"Report: {report}"])


def samples_as_text(samples: Sequence[Row]) -> str:
    """The first few pairs of answers of `judge`, each below its prompt, as plain text."""
    lines = []
    for sample in samples[:SHOWN]:
        lines += [f"> {sample['prompt']}"]
        lines += [f"  {side:6} {' '.join(sample[side].split())}" for side in ("base", "tuned")]
    return "\n".join(lines)


def _table(summary: Row) -> list[str]:
    won, rule, ppo = summary["win_rate"], summary["rule_score"], summary["ppo"]
    ended, similar = summary["ended"], summary["win_rate_at_like_length"]
    low, high = won["ci95"]
    lines = [
        f"{'held-out answers':32}{'base':>10}{'tuned':>10}",
        f"{'mean score by the rule':32}{rule['before']:>10.2f}{rule['after']:>10.2f}",
        f"{'mean length, tokens':32}{ppo['mean_length_before']:>10.1f}"
        f"{ppo['mean_length_after']:>10.1f}",
        f"{'ended before the token limit':32}{ended['before']:>10.0%}{ended['after']:>10.0%}",
        f"{'wins, ties as half':32}{1 - won['rate']:>10.0%}{won['rate']:>10.0%}"
        f"   ({won['wins']} wins, {won['ties']} ties, {won['losses']} losses; "
        f"95% interval {low:.0%} to {high:.0%})",
    ]
    if best := summary.get("best_of_n"):
        lines.append(_best_of_line(best))
    if similar:
        lines += [
            f"{'wins at similar length':32}{1 - similar['rate']:>10.0%}"
            f"{similar['rate']:>10.0%}   ({similar['n']} pairs)"
        ]
    return lines


def _best_of_line(best: Row) -> str:
    rate, (low, high) = best["win_rate"]["rate"], best["win_rate"]["ci95"]
    label = f"best of {best['n']} of the base, untuned"
    return (
        f"{label:32}{1 - rate:>10.0%}{rate:>10.0%}"
        f"   (picked by the reward role; KL at most {best['kl_bound']:.2f} nats; "
        f"95% interval {low:.0%} to {high:.0%})"
    )
