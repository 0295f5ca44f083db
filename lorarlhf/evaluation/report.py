"""One run folder as one HTML page: no script, no request to anywhere, plots inside as SVG.

The page is made of small pure functions that take what was read from `summary.json`,
`metrics.jsonl`, `samples.jsonl` and `run.json` and give HTML. Whatever is missing is left out and
named under "Notes". Texts of a model are hostile until escaped: all of them pass `_text`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from lorarlhf.evaluation.report_format import duration, interval, number, share, show, table, text
from lorarlhf.evaluation.report_plots import plots
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_bytes

Row = Mapping[str, Any]
MAX_PROMPTS = 24

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --page: #fbfaf8; --card: #fff; --text: #1f2328; --soft: #57606a; --line: #d8dce0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1d2125; --text: #e3e6e9; --soft: #a5adb6; --line: #3a4047; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.lead { font-size: 1.15rem; max-width: 44rem; margin: 0; }
.soft, caption, figcaption, thead th { color: var(--soft); font-size: .875rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; margin: 0 0 1.5rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .75rem .4rem 0; text-align: left;
  vertical-align: top; font-weight: 400; }
.grid { display: grid; gap: 1.25rem; }
figure, article { margin: 0; min-width: 0; padding: .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
.plot { background: #fff; border-radius: .25rem; }
.plot svg { display: block; width: 100%; height: auto; }
.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: system-ui, sans-serif !important; }
figcaption { margin-top: .6rem; }
.answers { display: grid; gap: .9rem; margin-top: .75rem; }
.said { white-space: pre-wrap; margin: 0; }
.verdict { margin: .75rem 0 0; }
h4 { font-size: .875rem; margin: 0 0 .25rem; }
.answers > div { border-top: 1px solid var(--line); padding-top: .6rem; min-width: 0; }
@media (min-width: 44rem) { .plots { grid-template-columns: 1fr 1fr; }
  .answers { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$sections
</main>
</body>
</html>
""")


def _part(summary: Row, name: str) -> Row:
    part = summary.get(name)
    return part if isinstance(part, Mapping) else {}


def _of_stage(summary: Row, name: str) -> Row:
    """The figures of one stage: a part of the demo's summary, on top in that of a single run."""
    return _part(summary, name) or summary


# Result.


def _title(summary: Row, run: Row) -> str:
    base = str(summary.get("base") or run.get("base") or "").rstrip("/\\")
    base = re.split(r"[/\\]", base)[-1]
    stage = str(run.get("stage") or "demo").replace("_", " ")
    stage = str(summary.get("algorithm") or stage)
    stage = stage.upper() if stage in ("sft", "ppo", "dpo", "orpo", "kto", "rloo") else stage
    what = "The whole loop" if stage == "demo" else f"A run of {stage}"
    return f"{what} on {base}" if base else what


def headline(summary: Row, run: Row) -> str:
    """The result in one sentence of plain words, not escaped."""
    ppo, reward = _of_stage(summary, "ppo"), _of_stage(summary, "reward_model")
    algorithm = str(ppo.get("algorithm") or "ppo").upper()
    updates = f"After {show(ppo['updates'])} updates of {algorithm}, " if "updates" in ppo else ""
    if number(_part(summary, "win_rate").get("rate")) is not None:
        sentence = updates + _won(_part(summary, "win_rate"))
    elif number(ppo.get("kl_per_sequence")) is not None:
        moved = show(ppo["kl_per_sequence"])
        sentence = f"{updates}the policy stands {moved} nats per answer from its reference."
    elif number(reward.get("heldout_accuracy")) is not None:
        of = f"{show(reward['n'])} " if "n" in reward else ""
        right = share(reward["heldout_accuracy"])
        sentence = f"The reward role orders {right} of {of}held-out pairs as the rater does."
    else:
        took = duration(run.get("seconds"))
        sentence = f"This run's status is “{run.get('status', 'unknown')}”"
        sentence += "." if took == "–" else f" after {took}."
    return sentence[0].upper() + sentence[1:]


def _won(win_rate: Row) -> str:
    sentence = f"held-out answers won {share(win_rate['rate'])} of comparisons against the base"
    span = interval(win_rate.get("ci95"))
    if not span:
        return sentence + "."
    low, high = win_rate["ci95"]
    meaning = "better than chance" if low > 0.5 else "worse than chance"
    if low <= 0.5 <= high:
        meaning = "which may still be chance"
    return f"{sentence} (95% interval {span}), {meaning}."


def _results(summary: Row) -> str:
    won, rule = _part(summary, "win_rate"), _part(summary, "rule_score")
    ppo, reward = _of_stage(summary, "ppo"), _of_stage(summary, "reward_model")
    rows = []
    if (rate := number(won.get("rate"))) is not None:
        span = interval(won.get("ci95"))
        after = share(rate) + (f" ({span})" if span else "")
        rows.append(("Comparisons won, ties as half (95% interval)", share(1 - rate), after))
        rows.append(("Wins", show(won.get("losses")), show(won.get("wins"))))
        rows.append(("Ties", show(won.get("ties")), show(won.get("ties"))))
    alike = _part(summary, "win_rate_at_like_length")
    if (rate := number(alike.get("rate"))) is not None:
        label = f"Won among the {show(alike.get('n'))} pairs of like length"
        rows.append((label, share(1 - rate), share(rate)))
    if rule:
        rows.append(("Rater's rule, mean", show(rule.get("before")), show(rule.get("after"))))
    if "mean_length_after" in ppo:
        before, after = ppo.get("mean_length_before"), ppo["mean_length_after"]
        rows.append(("Mean length (tokens)", show(before, digits=1), show(after, digits=1)))
    if ended := _part(summary, "ended"):
        before, after = share(ended.get("before")), share(ended.get("after"))
        rows.append(("Answers that ended by themselves", before, after))
    if "kl_per_sequence" in ppo:
        rows.append(("KL from the reference (nats)", "0", show(ppo["kl_per_sequence"])))
    if "heldout_accuracy" in reward:
        n = f" of {show(reward['n'])}" if "n" in reward else ""
        right = share(reward["heldout_accuracy"]) + n
        rows.append(("Pairs the reward role gets right (guessing: 50%)", "–", right))
    return table(
        "Before and after tuning, on held-out prompts", ("Measure", "Before", "After"), rows
    )


def _health(metrics: Sequence[Row], summary: Row) -> str:
    """What the run said about its own health; empty where it was not watched."""
    alarms = [row for row in metrics if "alarm" in row]
    if not alarms:
        watched = "alarms" in _of_stage(summary, "ppo")
        return "<p>The run was watched, and no alarm went off.</p>" if watched else ""
    rows = [(show(row.get("step"), digits=0), row["alarm"], row.get("words")) for row in alarms]
    return table("Alarms, each when it went on", ("Update", "Alarm", "What to do"), rows)


# Samples, time, settings, notes.


def _verdict(sample: Row) -> str:
    """A verdict in words; 1, 0 and -1 are seen from the tuned answer."""
    winner = str(sample.get("verdict", ""))
    names = {"1": "tuned", "win": "tuned", "0": "tie", "-1": "base", "loss": "base"}
    words = {"tuned": "The answer after tuning wins.", "base": "The answer before tuning wins."}
    words["tie"] = "A tie."
    return words.get(names.get(winner, winner), winner)


def _sample(position: int, prompt: Any, answers: Sequence[Sequence[Any]], verdict: str) -> str:
    """One prompt with its answers, each (title, text, score)."""
    shown = []
    for title, said, score in answers:
        mark = "" if number(score) is None else f' <span class="soft">score {show(score)}</span>'
        words = f'<p class="said" dir="auto">{text(said)}</p>'
        shown.append(f"<div>\n<h4>{text(title)}{mark}</h4>\n{words}\n</div>\n")
    end = f'<p class="soft verdict">{text(verdict)}</p>\n' if verdict else ""
    return (
        f'<article>\n<h3>Prompt {position}</h3>\n<p class="said" dir="auto">{text(prompt)}</p>\n'
        f'<div class="answers">\n{"".join(shown)}</div>\n{end}</article>'
    )


def _samples(samples: Sequence[Row]) -> str:
    """Base and tuned side by side; of a training run each prompt's first, middle and last."""
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
        title = f"Step {show(sample.get('step'))}"
        seen[text(prompt)].append((title, sample.get("completion", ""), sample.get("score")))
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
    machine = {
        "Total": "" if total is None else duration(total),
        "One update of PPO": duration(_of_stage(summary, "ppo").get("seconds_per_update")),
        "Peak memory": show(summary.get("peak_rss_mb", run.get("peak_rss_mb")), "MB", 0),
        "Copies of the base in memory": show(_part(summary, "backbone").get("copies")),
        "Size of the base in memory": show(_megabytes(_part(summary, "backbone")), "MB", 0),
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
    settings |= {**_part(run, "config"), **_part(summary, "settings")}
    return table("Everything this run was set to", ("Setting", "Value"), _flat(settings).items())


# The page, and its files.


def build_html(
    summary: Row | None,
    metrics: Sequence[Row] | None,
    samples: Sequence[Row] | None,
    run: Row | None,
    reading_notes: Sequence[str] = (),
) -> str:
    """The whole page from what the four files hold; None stands for a missing file.

    Equal input gives equal text. `reading_notes` are sentences on trouble with the files.
    """
    summary, run = summary or {}, run or {}
    sections = (
        ("Before and after", _results(summary), "summary.json"),
        ("How training went", plots(metrics or [], run), "metrics.jsonl"),
        ("Health", _health(metrics or [], summary), ""),  # only runs of PPO and RLOO are watched
        ("Answers", _samples(samples or []), "samples.jsonl"),
        ("Time and memory", _time(summary, run), "summary.json or run.json"),
        ("Settings", _settings(summary, run), "summary.json or run.json"),
    )
    said = summary.get("notes")
    notes = [*(said if isinstance(said, list) else []), *reading_notes]
    notes += [
        f"“{title}” is left out: {source} is missing or holds nothing for it."
        for title, body, source in sections
        if source and not body
    ]
    items = "\n".join(f"<li>{text(note)}</li>" for note in notes)
    parts = [(title, body) for title, body, _ in sections]
    parts.append(("Notes", items and f"<ul>\n{items}\n</ul>"))
    return _PAGE.substitute(
        title=text(_title(summary, run)),
        lead=text(headline(summary, run)),
        sections="\n".join(f"<h2>{title}</h2>\n{body}" for title, body in parts if body),
    )


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder from the files there, all at once or not at all.

    Raises:
        UserError: The folder has none of the four files, or cannot be read or written.
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
        html = build_html(summary, metrics, samples, run, notes)
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
