"""The report page: parsed as a browser would, with hostile texts, torn files and missing files."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.evaluation.report import _flat, build_html, headline, write_report
from lorarlhf.evaluation.report_plots import PLOTS, _series, _thin
from lorarlhf.runtime.errors import UserError

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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo's folder; the metrics end in a line torn by a kill."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", metric_rows())
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "ppo", "st')
    write_rows(folder / "samples.jsonl", sample_rows())
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(demo: Path) -> str:
    return (demo / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_numbers_are_the_ones_of_the_summary(page: Page) -> None:
    assert page.row("Comparisons won, ties as half (95% interval)") == ["22%", "78% (71–84%)"]
    assert page.row("Won among the 80 pairs of like length") == ["25%", "75%"]
    assert page.row("Answers that ended by themselves") == ["10%", "12%"]
    assert page.row("Wins") == ["25", "92"]
    assert page.row("Ties") == ["3", "3"]
    assert page.row("Rater's rule, mean") == ["0.26", "0.55"]
    assert page.row("Mean length (tokens)") == ["30.4", "33.2"]
    assert page.row("KL from the reference (nats)") == ["0", "5.51"]
    assert page.row("Pairs the reward role gets right (guessing: 50%)") == ["–", "77% of 208"]
    assert page.row("sample pairs") == ["1 min 11 s"]
    assert page.row("Total") == ["8 min 10 s"]
    assert page.row("One update of PPO") == ["12.7 s"]
    assert page.row("Peak memory") == ["1,812 MB"]
    assert page.row("Copies of the base in memory") == ["1"]
    assert page.row("Size of the base in memory") == ["98 MB"]
    assert page.row("ppo.learning_rate") == ["0.0001"]
    assert page.row("ppo.whiten") == ["true"]
    assert page.row("seed") == ["7"]
    assert "Mean length changed by 9%, which is within 30%." in page.words


def test_headline_says_what_the_interval_means() -> None:
    assert headline(SUMMARY, {}) == (
        "After 26 updates of PPO, held-out answers won 78% of comparisons against the base "
        "(95% interval 71–84%), better than chance."
    )
    close = {"win_rate": {"rate": 0.55, "ci95": [0.46, 0.64]}}
    assert headline(close, {}) == (
        "Held-out answers won 55% of comparisons against the base "
        "(95% interval 46–64%), which may still be chance."
    )
    worse = {"win_rate": {"rate": 0.3, "ci95": [0.2, 0.4]}}
    assert headline(worse, {}).endswith("(95% interval 20–40%), worse than chance.")


def test_headline_of_single_stages() -> None:
    assert headline({"updates": 3, "kl_per_sequence": 1.234}, {"stage": "ppo"}) == (
        "After 3 updates of PPO, the policy stands 1.23 nats per answer from its reference."
    )
    assert headline({"heldout_accuracy": 0.74, "n": 60}, {"stage": "reward"}) == (
        "The reward role orders 74% of 60 held-out pairs as the rater does."
    )
    assert headline({}, RUN) == "This run's status is “finished” after 5 min 12 s."


def test_nothing_is_fetched_and_nothing_runs(html: str, page: Page) -> None:
    assert not re.search(r"https?://|<script|@import", html)
    assert {"script", "img", "iframe", "link"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.values("src") == []
    assert all(target.startswith("#") for target in page.values("href"))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", html))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")


def test_hostile_text_is_shown_and_stays_text(html: str, page: Page) -> None:
    assert HOSTILE in page.words  # as the reader sees it
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html


def test_every_place_for_text_escapes_it() -> None:
    summary = {"base": HOSTILE, "notes": [HOSTILE], "settings": {HOSTILE: HOSTILE}}
    summary["seconds"] = {HOSTILE: 1.0}
    samples = [{"prompt": HOSTILE, "base": HOSTILE, "tuned": [HOSTILE], "verdict": HOSTILE}]
    metrics = [{"stage": HOSTILE, "step": step, "loss": 1.0} for step in (1, 2)]
    built = build_html(summary, metrics, samples, {"status": HOSTILE, "stage": HOSTILE})
    page = Page(built)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_text_that_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    line = '{"prompt": "a\\ud800b", "base": "nul\\u0000", "tuned": "\\u001b[31m", "verdict": "tie"}'
    (tmp_path / "samples.jsonl").write_text(line)
    words = Page(write_report(tmp_path).read_text(encoding="utf-8")).words
    assert "a\ufffdb" in words
    assert "nul\ufffd" in words
    assert "\ufffd[31m" in words


def test_plots_have_labels_captions_and_ids_of_their_own(html: str, page: Page) -> None:
    plots = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(plots) == 6
    assert all(attrs["role"] == "img" and attrs["viewbox"] for attrs in plots)
    assert plots[0]["aria-label"] == "Plot by update: score from 0.25 to 1.5"
    assert plots[2]["aria-label"] == (
        "Plot by update: length from 31 to 36; ended by itself from 0.4 to 0.4"
    )
    assert html.count("<figcaption>") == 6
    for name in ("score", "kl", "length", "value", "votes", "reward"):
        assert PLOTS[name].title in page.words
        assert "healthy" in PLOTS[name].caption
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 0
    linked = re.findall(r'(?:url\(|href=")#([^")]+)', html)
    assert set(linked) <= set(ids)
    assert not re.search(r"<\?xml|<!DOCTYPE svg|<metadata|xmlns", html)


def test_headings_go_down_one_level_at_a_time_and_tables_have_headers(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    count = [tag for tag, _ in page.tags]
    assert count.count("caption") == count.count("table") == 3
    assert [attrs for tag, attrs in page.tags if tag == "html"] == [{"lang": "en"}]


def test_colours_of_texts_have_contrast_aa(html: str) -> None:
    def brightness(colour: str) -> float:
        short = colour.lstrip("#")
        full = "".join(2 * c for c in short) if len(short) == 3 else short
        parts = [int(full[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    schemes = re.findall(r":root \{(.*?)\}", html)
    assert len(schemes) == 2
    assert "prefers-color-scheme: dark" in html
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for text in ("text", "soft"):
            for ground in ("page", "card"):
                pair = sorted(brightness(colours[name]) for name in (text, ground))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_samples_stand_side_by_side_with_score_and_verdict(page: Page) -> None:
    for number in range(6):
        assert f"What about number {number}?" in page.words
    assert page.words.count("score -0.31") == 6
    assert page.words.count("score 0.84") == 6
    assert page.words.count("The answer after tuning wins.") == 2
    assert page.words.count("The answer before tuning wins.") == 2
    assert page.words.count("A tie.") == 2
    assert "A lot,\nand gladly!" in page.words


def test_a_torn_line_is_a_note_and_no_crash(page: Page, demo: Path) -> None:
    lines = (demo / "metrics.jsonl").read_text().count("\n") + 1
    assert f"metrics.jsonl: line {lines} could not be read and was ignored." in page.words
    assert "left out" not in page.words


def test_missing_files_are_named_in_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "“How training went” is left out: metrics.jsonl is missing" in page.words
    assert "“Answers” is left out: samples.jsonl is missing" in page.words
    assert page.words.count("is left out") == 2
    assert page.row("Wins") == ["25", "92"]
    assert "svg" not in [tag for tag, _ in page.tags]


def test_a_broken_summary_is_a_note_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"base": "smol')
    (tmp_path / "run.json").write_text("[1]")
    write_rows(tmp_path / "samples.jsonl", sample_rows())
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "summary.json could not be read" in page.words
    assert "run.json does not hold a JSON object" in page.words
    assert "What about number 5?" in page.words


def test_a_run_of_one_stage(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    rows = [{"step": step, "loss": 1 / step, "rewards/accuracies": 0.5} for step in range(1, 2001)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    steps = [{"step": s, "prompt": "Hello?", "completion": f"hi {s}", "score": s} for s in range(5)]
    write_rows(tmp_path / "samples.jsonl", steps)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "A run of DPO on smollm2-135m" in page.words
    assert "Training: dpo" in page.words
    assert page.row("beta") == ["0.1"]
    assert page.row("trl.warmup_steps") == ["3"]
    assert page.row("versions.trl") == ["1.16.0"]
    assert page.row("Total") == ["5 min 12 s"]
    assert "“Before and after” is left out" in page.words
    assert page.words.count("Prompt 1") == 1
    assert re.findall(r"hi \d", page.words) == ["hi 0", "hi 2", "hi 4"]


def test_numbers_that_are_none_or_not_finite_leave_gaps() -> None:
    summary = {"win_rate": {"rate": 10**400}, "rule_score": {"before": float("nan"), "after": 0.5}}
    rows = [{"stage": "ppo", "step": 1, "score": float("inf"), "kl": None, "value_loss": "much"}]
    page = Page(build_html(summary, rows, None, None))
    assert page.row("Rater's rule, mean") == ["–", "0.50"]
    assert "“How training went” is left out" in page.words


def test_conversational_prompts_are_read_as_turns() -> None:
    prompt = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    samples = [{"prompt": prompt, "base": "a", "tuned": "b", "verdict": 1}]
    words = Page(build_html(None, None, samples, None)).words
    assert "user: Hi!\nassistant: Hello." in words
    assert "The answer after tuning wins." in words


def test_same_folder_gives_the_same_bytes(demo: Path) -> None:
    before = (demo / "report.html").read_bytes()
    assert write_report(demo) == demo / "report.html"
    assert (demo / "report.html").read_bytes() == before
    assert sorted(path.name for path in demo.iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "samples.jsonl",
        "summary.json",
    ]


def test_a_failed_write_keeps_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "report.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        write_report(tmp_path / "nowhere")


def test_series_keeps_the_later_of_two_rows_and_joins_eval_rows() -> None:
    rows = [{"step": 2, "a": 1}, {"step": 1, "a": 5}, {"step": 2, "b": 9}, {"step": 2, "a": 3}]
    assert _series(rows, "a") == {1.0: 5.0, 2.0: 3.0}
    assert _series(rows, "b") == {2.0: 9.0}


def test_thin_takes_means_of_neighbours() -> None:
    assert _thin([1.0, 2.0, 6.0]) == [1.0, 2.0, 6.0]
    thinned = _thin(float(value) for value in range(1001))
    assert thinned[:2] == [1.0, 4.0]  # means of 0, 1, 2 and of 3, 4, 5
    assert thinned[-1] == 999.5  # the two that are left over, 999 and 1000
    assert len(thinned) == 334


def test_settings_are_flattened() -> None:
    assert _flat({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_needs_no_torch_and_no_pyplot() -> None:
    code = (
        "import sys; import lorarlhf.evaluation.report as r;"
        "assert 'matplotlib' not in sys.modules;"
        "r.build_html({}, [{'stage': 'ppo', 'step': 1, 'kl': 0.1}], None, None);"
        "assert 'matplotlib' in sys.modules;"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
