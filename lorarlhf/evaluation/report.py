"""The report: a run folder as one HTML page without scripts or requests, with plots as SVG.

Small pure functions turn the contents of `summary.json`, `metrics.jsonl`, `samples.jsonl` and
`run.json` into HTML. A section whose file is missing is left out and named under "Notes". Model
output is untrusted, so every text passes through `report_format.text`, which escapes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.heat_map import WORDS
from lorarlhf.evaluation.over_optimisation import describe, kept, measurements, parting
from lorarlhf.evaluation.report_format import (
    duration,
    interval,
    number,
    of_stage,
    part,
    share,
    show,
    table,
    text,
)
from lorarlhf.evaluation.report_headline import headline, stage_label, title
from lorarlhf.evaluation.report_plots import OVER_OPTIMISATION, figure, plots
from lorarlhf.evaluation.report_template import PAGE
from lorarlhf.evaluation.report_words import STYLE, words_section
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_bytes

Row = Mapping[str, Any]
MAX_PROMPTS = 24


def _results(summary: Row) -> str:
    won, rule = part(summary, "win_rate"), part(summary, "rule_score")
    ppo, reward = of_stage(summary, "ppo"), of_stage(summary, "reward_model")
    rows = []
    if (rate := number(won.get("rate"))) is not None:
        span = interval(won.get("ci95"))
        after = share(rate) + (f" ({span})" if span else "")
        rows.append(("Comparisons won, ties as half (95% interval)", share(1 - rate), after))
        rows.append(("Wins", show(won.get("losses")), show(won.get("wins"))))
        rows.append(("Ties", show(won.get("ties")), show(won.get("ties"))))
    alike = part(summary, "win_rate_at_like_length")
    if (rate := number(alike.get("rate"))) is not None:
        label = f"Won among the {show(alike.get('n'))} pairs of similar length"
        rows.append((label, share(1 - rate), share(rate)))
    best = part(summary, "best_of_n")
    if (rate := number(part(best, "win_rate").get("rate"))) is not None:
        span = interval(part(best, "win_rate").get("ci95"))
        after = share(rate) + (f" ({span})" if span else "")
        label = f"Best of {show(best.get('n'))} answers without tuning"
        rows.append((f"{label}: comparisons won", share(1 - rate), after))
        rows.append((f"{label}: KL, at most (nats)", "0", show(best.get("kl_bound"))))
    if rule:
        rows.append(("Rater's rule, mean", show(rule.get("before")), show(rule.get("after"))))
    if "mean_length_after" in ppo:
        before, after = ppo.get("mean_length_before"), ppo["mean_length_after"]
        rows.append(("Mean length (tokens)", show(before, digits=1), show(after, digits=1)))
    if ended := part(summary, "ended"):
        before, after = share(ended.get("before")), share(ended.get("after"))
        rows.append(("Answers that ended before the token limit", before, after))
    if "kl_per_sequence" in ppo:
        rows.append(("KL from the reference (nats)", "0", show(ppo["kl_per_sequence"])))
    if "heldout_accuracy" in reward:
        n = f" of {show(reward['n'])}" if "n" in reward else ""
        right = share(reward["heldout_accuracy"]) + n
        rows.append(("Pairs the reward role orders right (guessing: 50%)", "–", right))
    return table(
        "Before and after tuning, on held-out prompts", ("Measure", "Before", "After"), rows
    )


def _over_optimisation(metrics: Sequence[Row], summary: Row) -> str:
    """Score and judge over the KL, and where they part; empty without two verdicts of a judge."""
    measured = measurements(metrics)
    if len(measured) < 2:
        return ""
    step = of_stage(summary, "ppo").get("kept_step")
    policy, point = kept(measured, step), parting(measured)
    rows = [
        (
            f"{one.step}{' (kept)' * (one is policy)}{' (they part)' * (one is point)}",
            show(one.kl),
            show(one.score),
            show(one.judge) + (f" ± {show(one.judge_error)}" if one.judge_error else ""),
            show(one.gap),
        )
        for one in measured
    ]
    head = ("Update", "KL (nats)", "Score", "Judge (± standard error)", "Gap (deviations)")
    drawn = [{"gap": one.gap, **vars(one)} for one in measured if one.gap is not None]
    plan = replace(OVER_OPTIMISATION, mark=point.kl if point else None)
    plot = figure("over_optimisation", plan, plan.title, drawn)
    shown = plot and f'<div class="grid plots">\n{plot}\n</div>'
    figures = table("On held-out prompts, by KL from the reference", head, rows)
    return f"<p>{text(describe(measured, step))}</p>\n{shown}\n{figures}"


def _health(metrics: Sequence[Row], summary: Row) -> str:
    """The alarms of the run's health checks; empty if there were no checks."""
    alarms = [row for row in metrics if "alarm" in row]
    if not alarms:
        watched = "alarms" in of_stage(summary, "ppo")
        return "<p>The health checks of this run raised no alarm.</p>" if watched else ""
    rows = [(show(row.get("step"), digits=0), row["alarm"], row.get("words")) for row in alarms]
    unit = "Step" if alarms[0].get("stage") in ("dpo", "orpo", "kto") else "Update"
    head = (unit, "Alarm", "What to do")
    return table(f"Alarms, at the {unit.lower()} that raised them", head, rows)


# Samples, time, settings, notes.


def _verdict(sample: Row) -> str:
    """A verdict as a sentence; 1, 0 and -1 are a win, a tie and a loss of the tuned answer."""
    winner = str(sample.get("verdict", ""))
    names = {"1": "tuned", "win": "tuned", "0": "tie", "-1": "base", "loss": "base"}
    sentences = {"tuned": "The answer after tuning wins.", "base": "The answer before tuning wins."}
    sentences["tie"] = "A tie."
    return sentences.get(names.get(winner, winner), winner)


def _sample(position: int, prompt: Any, answers: Sequence[Sequence[Any]], verdict: str) -> str:
    """A prompt with its answers, each (title, text, score)."""
    shown = []
    for heading, answer, score in answers:
        mark = "" if number(score) is None else f' <span class="soft">score {show(score)}</span>'
        body = f'<p class="said" dir="auto">{text(answer)}</p>'
        shown.append(f"<div>\n<h4>{text(heading)}{mark}</h4>\n{body}\n</div>\n")
    end = f'<p class="soft verdict">{text(verdict)}</p>\n' if verdict else ""
    return (
        f'<article>\n<h3>Prompt {position}</h3>\n<p class="said" dir="auto">{text(prompt)}</p>\n'
        f'<div class="answers">\n{"".join(shown)}</div>\n{end}</article>'
    )


def _samples(samples: Sequence[Row]) -> str:
    """Base and tuned answers side by side; for a training run the first, middle and last answer."""
    cards: list[tuple[Any, list[Sequence[Any]], str]] = []
    seen: dict[str, list[Sequence[Any]]] = {}
    for sample in samples:
        prompt = sample.get("prompt", "")
        if "tuned" in sample:
            before = ("Before", sample.get("base", ""), sample.get("base_score"))
            after = ("After", sample["tuned"], sample.get("tuned_score"))
            cards.append((prompt, [before, after], _verdict(sample)))
            continue
        if text(prompt) not in seen:
            cards.append((prompt, seen.setdefault(text(prompt), []), ""))
        heading = f"Step {show(sample.get('step'))}"
        seen[text(prompt)].append((heading, sample.get("completion", ""), sample.get("score")))
    shown = []
    for position, (prompt, answers, verdict) in enumerate(cards[:MAX_PROMPTS], 1):
        if len(answers) > 3:
            answers = [answers[0], answers[len(answers) // 2], answers[-1]]
        shown.append(_sample(position, prompt, answers, verdict))
    if len(cards) > MAX_PROMPTS:
        more = len(cards) - MAX_PROMPTS
        shown.append(f'<p class="soft">{more} more prompts are in samples.jsonl.</p>')
    return '<div class="grid">\n' + "\n".join(shown) + "\n</div>" if shown else ""


def _time(summary: Row, run: Row) -> str:
    seconds = summary.get("seconds", run.get("seconds"))
    stages = dict(seconds) if isinstance(seconds, Mapping) else {"total": seconds}
    total = number(stages.pop("total", None))
    rows = [(stage.replace("_", " "), duration(used)) for stage, used in stages.items()]
    algorithm = of_stage(summary, "ppo").get("algorithm") or "ppo"
    machine = {
        "Total": "" if total is None else duration(total),
        f"One update of {stage_label(algorithm)}": duration(
            of_stage(summary, "ppo").get("seconds_per_update")
        ),
        "Peak memory": show(summary.get("peak_rss_mb", run.get("peak_rss_mb")), "MB", 0),
        "Copies of the base in memory": show(part(summary, "backbone").get("copies")),
        "Size of the base in memory": show(_megabytes(part(summary, "backbone")), "MB", 0),
    }
    rows += [(what, figure) for what, figure in machine.items() if figure.strip("–")]
    return table("Time by stage, and memory", ("What", "Figure"), rows)


def _megabytes(backbone: Row) -> float | None:
    size = number(backbone.get("bytes"))
    return None if size is None else size / 1e6


def _flat(settings: Row, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: `{"ppo": {"gamma": 1}}` becomes `{"ppo.gamma": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _settings(summary: Row, run: Row) -> str:
    facts = ("stage", "base", "bits", "adapter_layers", "rater", "noise", "pairs", "seed")
    both = {**run, **summary}
    settings = {key: both[key] for key in (*facts, "status", "versions") if key in both}
    settings |= {**part(run, "config"), **part(summary, "settings")}
    return table("All settings of this run", ("Setting", "Value"), _flat(settings).items())


# The page and its files.


def build_html(
    summary: Row | None,
    metrics: Sequence[Row] | None,
    samples: Sequence[Row] | None,
    run: Row | None,
    reading_notes: Sequence[str] = (),
    words: Sequence[Row] | None = None,
) -> str:
    """The page from the contents of the files; None stands for a missing file.

    Equal input gives equal text. `reading_notes` are sentences about problems with the files;
    `words` are the rows of `words.jsonl`, which only a reward stage writes.
    """
    summary, run = summary or {}, run or {}
    sections = (
        ("Before and after", _results(summary), "summary.json"),
        ("How training went", plots(metrics or [], run), "metrics.jsonl"),
        ("Over-optimisation", _over_optimisation(metrics or [], summary), ""),
        ("Health", _health(metrics or [], summary), ""),  # sft and reward have no health checks
        ("What the reward role sees in answers", words_section(words or []), ""),
        ("Answers", _samples(samples or []), "samples.jsonl"),
        ("Time and memory", _time(summary, run), "summary.json or run.json"),
        ("Settings", _settings(summary, run), "summary.json or run.json"),
    )
    own_notes = summary.get("notes")
    notes = [*(own_notes if isinstance(own_notes, list) else []), *reading_notes]
    notes += [
        f"“{heading}” is left out: {source} is missing or has no data for it."
        for heading, body, source in sections
        if source and not body
    ]
    items = "\n".join(f"<li>{text(note)}</li>" for note in notes)
    parts = [(heading, body) for heading, body, _ in sections]
    parts.append(("Notes", items and f"<ul>\n{items}\n</ul>"))
    return PAGE.substitute(
        style=STYLE,
        title=text(title(summary, run)),
        lead=text(headline(summary, run)),
        sections="\n".join(f"<h2>{heading}</h2>\n{body}" for heading, body in parts if body),
    )


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder from its files. A failed write keeps the old report.

    Raises:
        UserError: the folder has none of the four files, or cannot be read or written.
    """
    folder = Path(folder)
    notes: list[str] = []
    try:
        summary, run = (_read_object(folder / f"{name}.json", notes) for name in ("summary", "run"))
        metrics, samples = (
            _read_rows(folder / f"{name}.jsonl", notes) for name in ("metrics", "samples")
        )
        if summary is run is metrics is samples is None:
            raise UserError(
                f"There is nothing to report on in {folder}: it has no summary.json, run.json, "
                "metrics.jsonl or samples.jsonl. Name the folder that a run wrote to (its --out)."
            )
        words = _read_rows(folder / WORDS, notes)
        html = build_html(summary, metrics, samples, run, notes, words)
        return write_bytes(folder / "report.html", html.encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"The report of {folder} could not be written: {error}. Check that the folder can be "
            "read and written and that the disk has space, then try again."
        ) from error


def _read_object(path: Path, notes: list[str]) -> Row | None:
    """The object in a JSON file; None, with a note, where the file is broken."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except ValueError as error:
        notes.append(f"{path.name} could not be read ({error}) and is left out.")
        return None
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} does not hold a JSON object and is left out.")
    return None


def _read_rows(path: Path, notes: list[str]) -> list[Row] | None:
    """The objects in a JSONL file; a broken line, as a killed run leaves it, becomes a note."""
    if not path.exists():
        return None
    rows: list[Row] = []
    broken = []
    for count, line in enumerate(path.read_bytes().decode("utf-8", "replace").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = None
        if not isinstance(row, dict):
            broken.append(count)
        elif row:
            rows.append(row)
    if broken:
        where = f"line {broken[0]}" + (f" and {len(broken) - 1} more" if broken[1:] else "")
        notes.append(f"{path.name}: {where} could not be read and was ignored.")
    return rows
