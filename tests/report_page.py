"""A finished demo's files, and a parser of the report page, for the tests of the report."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.report import write_report

SUMMARY: dict[str, Any] = {
    "base": "smollm2-135m",
    "bits": 4,
    "adapter_layers": "upper-half",
    "rater": "cheerful",
    "noise": 0.1,
    "seed": 7,
    "pairs": 150,
    "reward_model": {"heldout_accuracy": 0.766, "n": 208},
    "ppo": {
        "updates": 26,
        "episodes": 832,
        "kl_per_sequence": 5.514,
        "mean_length_before": 30.42,
        "mean_length_after": 33.18,
        "seconds_per_update": 12.74,
    },
    "win_rate": {
        "n": 120,
        "wins": 92,
        "ties": 3,
        "losses": 25,
        "rate": 0.779,
        "ci95": [0.706, 0.842],
    },
    "win_rate_at_like_length": {"n": 80, "rate": 0.75},
    "ended": {"before": 0.1, "after": 0.125},
    "rule_score": {"before": 0.264, "after": 0.551},
    "backbone": {"copies": 1, "bytes": 98_304_000},
    "peak_rss_mb": 1812.4,
    "seconds": {"sample_pairs": 71.2, "reward_model": 39.5, "ppo": 330.9, "total": 490.3},
    "notes": ["Mean length changed by 9%, which is within 30%."],
    "settings": {"ppo": {"learning_rate": 1e-4, "whiten": True}, "device": "cpu"},
}
RUN = {
    "stage": "dpo",
    "config": {"beta": 0.1, "trl": {"warmup_steps": 3}},
    "seed": 1,
    "versions": {"trl": "1.16.0"},
    "base": "models/smollm2-135m",
    "status": "finished",
    "seconds": 312.4,
    "peak_rss_mb": 1500,
}
HOSTILE = "</p><script>alert('x')</script><img src=\"//evil.example/x\" onerror='go()'>&amp;"
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source", "embed"}


class Page(HTMLParser):
    """Collects what the tests ask about and fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]

    def row(self, first: str) -> list[str]:
        (found,) = [cells[1:] for cells in self.cells if cells[0] == first]
        return found


def metric_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"stage": "reward_curve", "step": votes, "heldout_accuracy": accuracy}
        for votes, accuracy in ((25, 0.63), (50, 0.69), (150, 0.74))
    ]
    for step in range(1, 7):
        rows.append({"stage": "reward", "step": step, "loss": 1 / step, "accuracy": 0.6})
        if step % 3 == 0:
            rows.append({"stage": "reward", "step": step, "eval_loss": 0.6, "eval_accuracy": 0.7})
        rows.append(
            {
                "stage": "ppo",
                "step": step,
                "score": step / 4,
                "score_std": 0.8,
                "kl": step * 0.9,
                "completion_length": 30 + step,
                "ended_fraction": 0.4,
                "value_loss": 1 / step,
                "explained_variance": 0.7 - 3 / step,
            }
        )
    return rows


def sample_rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"What about number {index}?",
            "base": "Not much.",
            "tuned": HOSTILE if index == 2 else "A lot,\nand gladly!",
            "base_score": -0.314,
            "tuned_score": 0.842,
            "verdict": ("tuned", "tie", "base")[index % 3],
        }
        for index in range(6)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_demo(folder: Path) -> None:
    """A finished demo's folder with its report; the metrics end in a line torn by a kill."""
    (folder / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", metric_rows())
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "ppo", "st')
    write_rows(folder / "samples.jsonl", sample_rows())
    write_report(folder)
