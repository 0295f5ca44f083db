"""The results of `eval` as one self-contained HTML page; every text is escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.eval_plot import win_rate_over_kl
from lorarlhf.evaluation.eval_results import better_and_worse, judge_note, kl_text, rate_text
from lorarlhf.evaluation.report_format import share, show, table, text
from lorarlhf.evaluation.report_template import PAGE
from lorarlhf.evaluation.skills import ALL
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_bytes, write_json, write_jsonl

Row = Mapping[str, Any]
MAX_PROMPTS = 60
OUTCOMES = {1: "better than the base's", 0: "a tie with the base's", -1: "worse than the base's"}


def eval_page(data: Row, answers: Sequence[Row]) -> str:
    """The page of `eval_results.results` with the skills, and of `eval_results.answer_rows`."""
    judges = data.get("judges", [])
    sections = (
        ("Wins against the base", _wins(judges)),
        ("Wins and distance from the base", _plots(data)),
        ("The answers in figures", _figures(data.get("candidates", []))),
        ("What was forgotten", _skills(data.get("skills", []))),
        ("Answers side by side", _answers(answers)),
        ("Notes", _notes([*data.get("notes", []), *map(judge_note, judges)])),
    )
    return PAGE.substitute(
        style="",
        title="Did it get better?",
        lead=text(" ".join(better_and_worse(judges)) if judges else ""),
        sections="\n".join(f"<h2>{heading}</h2>\n{body}" for heading, body in sections if body),
    )


def write_eval(folder: Path, data: Row, answers: Sequence[Row]) -> Path:
    """Write `report.html`, `eval.json` and `answers.jsonl`; returns the page's path.

    Raises:
        UserError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "answers.jsonl", [dict(row) for row in answers])
        write_json(folder / "eval.json", dict(data))
        return write_bytes(folder / "report.html", eval_page(data, answers).encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"The results can't be written to {folder} ({error.strerror}). Name another folder "
            "with --out."
        ) from error


# ---- sections


def _wins(judges: Sequence[Row]) -> str:
    """A table for each judge."""
    head = ("Model", "Win rate", "Won, tied, lost", "At equal length", "Of similar length")
    tables = []
    for judge in judges:
        rows = []
        for one in judge["results"]:
            similar = one["similar_length"]
            alike = f"{share(similar['rate'])} of {similar['n']}" if similar else "–"
            counts = ", ".join(show(one[key]) for key in ("wins", "ties", "losses"))
            controlled = rate_text(one["length_controlled"]) if one["length_controlled"] else "–"
            rows.append((one["candidate"], rate_text(one), counts, controlled, alike))
        doubt = "" if judge["independent"] else ", not independent"
        tables.append(table(f"{judge['judge']}{doubt}", head, rows))
    explained = f'<p class="soft">{text(INTERVALS)}</p>\n' if any(tables) else ""
    return explained + "\n".join(filter(None, tables))


INTERVALS = (
    "Ties count as half. The 95% intervals are over prompts. “At equal length” is what a logistic "
    "regression on the difference of lengths gives for no difference; it is unknown (–) if one "
    "side is always much longer."
)


def _figures(candidates: Sequence[Row]) -> str:
    rows = [
        (
            one["name"],
            kl_text(one).replace("-", "–"),
            show(float(one["length"]), digits=1),
            share(one["ended"]),
            show(one["distinct_1"]),
            show(one["distinct_2"]),
        )
        for one in candidates
    ]
    caption = (
        "KL from the base in nats per answer, length in tokens, the share of answers that ended "
        "before the limit, and different tokens and pairs of tokens per token"
    )
    head = ("Model", "KL", "Length", "Ended", "Distinct-1", "Distinct-2")
    return table(caption, head, rows)


def _skills(skills: Sequence[Row]) -> str:
    rows = [
        (
            "all tasks" if one["kind"] == ALL else one["kind"],
            one["candidate"],
            show(one["tasks"]),
            show(one["before"]),
            show(one["after"]),
            f"{100 * one['change']:+.0f} ({100 * one['low']:+.0f} to {100 * one['high']:+.0f})",
        )
        for one in skills
    ]
    caption = "Short tasks whose answers a rule can check: how many were done, and the change"
    head = ("Tasks", "Model", "Number", "Base", "Tuned", "Change in points (95%)")
    return table(caption, head, rows)


def _plots(data: Row) -> str:
    figures = []
    for place, judge in enumerate(data.get("judges", [])):
        if svg := win_rate_over_kl(f"kl{place}", judge, data["candidates"]):
            figures.append(
                f'<figure>\n<h3>{text(judge["judge"])}</h3>\n<div class="plot">\n{svg}\n</div>\n'
                f"<figcaption>{text(CAPTION)}</figcaption>\n</figure>"
            )
    return '<div class="grid plots">\n' + "\n".join(figures) + "\n</div>" if figures else ""


CAPTION = (
    "Win rate against the base with its 95% interval, by distance from the base: better is high "
    "and to the left. On the dotted line a candidate is as good as the base. Hollow points are at "
    "the largest distance that they can have."
)


def _answers(answers: Sequence[Row]) -> str:
    cards = [_card(place, row) for place, row in enumerate(answers[:MAX_PROMPTS], start=1)]
    if len(answers) > MAX_PROMPTS:
        more = len(answers) - MAX_PROMPTS
        cards.append(f'<p class="soft">{more} more are in answers.jsonl.</p>')
    return '<div class="grid">\n' + "\n".join(cards) + "\n</div>" if cards else ""


def _card(place: int, row: Row) -> str:
    """A prompt, the answers beside each other, and the verdicts on each."""
    shown = []
    for name, answer in row["answers"].items():
        said = [
            f"{judge}: {OUTCOMES[found[name]]}"
            for judge, found in row["verdicts"].items()
            if found.get(name) in OUTCOMES
        ]
        below = f'\n<p class="soft verdict">{text("; ".join(said))}</p>' if said else ""
        body = f'<p class="said" dir="auto">{text(answer)}</p>{below}'
        shown.append(f"<div>\n<h4>{text(name)}</h4>\n{body}\n</div>\n")
    return (
        f'<article>\n<h3>Prompt {place}</h3>\n<p class="said" dir="auto">'
        f"{text(row['prompt'])}</p>\n"
        f'<div class="answers">\n{"".join(shown)}</div>\n</article>'
    )


def _notes(notes: Sequence[str]) -> str:
    items = [f"<li>{text(note)}</li>" for note in notes if note]
    return "<ul>\n" + "\n".join(items) + "\n</ul>" if items else ""
