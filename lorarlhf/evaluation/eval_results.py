"""The results of `eval` as plain values, and as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.candidates import Candidate
from lorarlhf.evaluation.judges import PEOPLE, Verdicts, verdict_rows
from lorarlhf.evaluation.skills import ALL, SkillChange

Row = dict[str, Any]
SURE = 0.05
"""The chance of a change that is none below which it is called one."""


def results(
    base: Candidate, candidates: Sequence[Candidate], verdicts: Sequence[Verdicts], seed: int
) -> Row:
    """`candidates` (the base first) with the figures of each, and `judges` with theirs."""
    return {
        "candidates": [one.figures() for one in (base, *candidates)],
        "judges": verdict_rows(verdicts, seed),
    }


def answer_rows(
    prompts: Sequence[Any],
    base: Candidate,
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdicts],
) -> list[Row]:
    """For each question the prompt, the answer of each candidate, and each judge's verdicts."""
    asked = [one for one in verdicts if one.judge != PEOPLE]  # they saw other answers
    return [
        {
            "prompt": prompt,
            "answers": {one.name: one.answers[i].text for one in (base, *candidates)},
            "verdicts": {
                one.judge: {name: found.outcomes[i] for name, found in one.comparisons.items()}
                for one in asked
            },
        }
        for i, prompt in enumerate(prompts)
    ]


# ---- in the terminal


def as_text(data: Row) -> str:
    """The tables of `results`, with notes below them."""
    lines = [*_figures(data["candidates"]), *data.get("notes", []), ""]
    if not any(judge["results"] for judge in data["judges"]):
        return "\n".join([*lines, NO_JUDGE])
    lines += ["Wins against the base, ties as half (95% interval)"]
    head = ["judge", "candidate", "wins", "ties", "losses", "win rate"]
    rows = [[*head, "at equal length", "among similar lengths"]]
    for judge in data["judges"]:
        rows += [[judge["judge"], *_result(result)] for result in judge["results"]]
    lines += aligned(rows)
    notes = [note for judge in data["judges"] if (note := judge_note(judge))]
    return "\n".join([*lines, "", *notes, *better_and_worse(data["judges"])])


NO_JUDGE = (
    "Nobody has judged these answers. Name a judge: --rater NAME, --reward RUN, --judge-function "
    "FILE.py:NAME or --judge-model BASE."
)


def judge_note(judge: Mapping[str, Any]) -> str:
    """What to know about a judge, in a line; "" if there is nothing."""
    doubt = "" if judge["independent"] else "not independent: "
    return f"{judge['judge']}: {doubt}{judge['note']}" if judge["note"] else ""


def _figures(candidates: Sequence[Row]) -> list[str]:
    rows = [["candidate", "KL (nats)", "tokens", "ended", "distinct-1", "distinct-2"]]
    for one in candidates:
        rows.append(
            [
                one["name"],
                kl_text(one),
                f"{one['length']:.1f}",
                f"{one['ended']:.0%}",
                *("-" if x is None else f"{x:.2f}" for x in (one["distinct_1"], one["distinct_2"])),
            ]
        )
    return aligned(rows)


def kl_text(one: Mapping[str, Any]) -> str:
    """The KL from the base in nats per answer, or its bound with "at most"."""
    if one["kl"] is not None:
        return f"{one['kl']:.2f}"
    return "-" if one["kl_bound"] is None else f"at most {one['kl_bound']:.2f}"


def _result(result: Row) -> list[str]:
    controlled, similar = result["length_controlled"], result["similar_length"]
    return [
        result["candidate"],
        *(str(result[name]) for name in ("wins", "ties", "losses")),
        rate_text(result),
        "-" if controlled is None else rate_text(controlled),
        "-" if similar is None else f"{similar['rate']:.0%} of {similar['n']}",
    ]


def rate_text(found: Mapping[str, Any]) -> str:
    """A rate with its interval: `62% (50 to 74%)`."""
    low, high = found["ci95"]
    return f"{found['rate']:.0%} ({100 * low:.0f} to {high:.0%})"


def better_and_worse(judges: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what is beyond chance: against the base, and between candidates.

    What judges say that are not independent stands in a line of its own.
    """
    asked = [judge for judge in judges if judge["results"]]
    independent = [judge for judge in asked if judge["independent"]]
    better, worse = _beyond_chance(independent)
    lines = [
        f"{word} than the base, beyond chance: {', '.join(names)}."
        for word, names in (("Better", better), ("Worse", worse))
        if names
    ]
    if not independent:
        lines = ["No independent judge has compared these answers with the base's."]
    elif not lines:
        lines = ["No difference to the base that is larger than chance."]
    lines += [f"{gap}." for gap in _gaps(independent)]
    others = [judge for judge in asked if not judge["independent"]]
    better, worse = _beyond_chance(others)
    doubtful = [
        f"{word} than the base: {', '.join(names)}"
        for word, names in (("better", better), ("worse", worse))
        if names
    ]
    doubtful += _gaps(others)
    if doubtful:
        lines.append(f"By a judge that is not independent: {'; '.join(doubtful)}.")
    return lines


def _beyond_chance(judges: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The candidates that win, and those that lose, more often than by chance."""
    better, worse = [], []
    for judge in judges:
        for result in judge["results"]:
            low, high = result["ci95"]
            name = f"{result['candidate']} ({judge['judge']})"
            better += [name] * (low > 0.5)
            worse += [name] * (high < 0.5)
    return better, worse


def _gaps(judges: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_gap(judge["judge"], gap) for judge in judges for gap in sure_gaps(judge)]


def sure_gaps(judge: Mapping[str, Any]) -> list[Row]:
    """The differences between candidates whose interval does not contain 0."""
    return [gap for gap in judge["between"] if gap["ci95"][0] > 0 or gap["ci95"][1] < 0]


def _gap(judge: str, gap: Mapping[str, Any]) -> str:
    sign = 1 if gap["difference"] > 0 else -1
    names = (gap["candidate"], gap["other"])[::sign]
    low, high = sorted(100 * sign * end for end in gap["ci95"])
    points = f"{100 * abs(gap['difference']):.0f} points ({low:.0f} to {high:.0f})"
    return f"{names[0]} wins {points} more often than {names[1]} ({judge})"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns of equal width; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# ---- skills


def skills_as_text(changes: Sequence[SkillChange], name: str = "policy") -> str:
    """A table of the tasks done by the base and by a candidate, and what that means."""
    rows = [["tasks", "of", "base", name, "change"]]
    for change in changes:
        interval = f"({100 * change.low:+.0f} to {100 * change.high:+.0f})"
        rows.append(
            [
                "all" if change.kind == ALL else change.kind,
                *(str(x) for x in (change.tasks, change.before, change.after)),
                f"{100 * change.change:+.0f} points {interval}",
            ]
        )
    whole, lines = changes[-1], aligned(rows)
    if whole.p >= SURE:
        lines.append("No change that is larger than chance.")
    elif whole.change < 0:
        lines.append(f"{name} has forgotten something: it fails more tasks than by chance.")
    else:
        lines.append(f"{name} does more of these tasks than the base.")
    return "\n".join(lines)
