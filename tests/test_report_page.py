"""The report as a page: safe with hostile texts, accessible, and with plots that stand alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_page import HOSTILE, Page, write_demo

from lorarlhf.evaluation.report import build_html, write_report
from lorarlhf.evaluation.report_plots import PLOTS, series_of, thin


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def html(demo: Path) -> str:
    return (demo / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_has_no_script_and_no_request(html: str, page: Page) -> None:
    assert not re.search(r"https?://|<script|@import", html)
    assert {"script", "img", "iframe", "link"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.values("src") == []
    assert all(target.startswith("#") for target in page.values("href"))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", html))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")


def test_hostile_text_is_shown_as_text(html: str, page: Page) -> None:
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


def test_text_that_utf8_cannot_encode_is_replaced(tmp_path: Path) -> None:
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


def test_series_keeps_the_later_of_two_rows_and_joins_eval_rows() -> None:
    rows = [{"step": 2, "a": 1}, {"step": 1, "a": 5}, {"step": 2, "b": 9}, {"step": 2, "a": 3}]
    assert series_of(rows, "a") == {1.0: 5.0, 2.0: 3.0}
    assert series_of(rows, "b") == {2.0: 9.0}


def test_thin_takes_means_of_neighbours() -> None:
    assert thin([1.0, 2.0, 6.0]) == [1.0, 2.0, 6.0]
    thinned = thin(float(value) for value in range(1001))
    assert thinned[:2] == [1.0, 4.0]  # means of 0, 1, 2 and of 3, 4, 5
    assert thinned[-1] == 999.5  # the two that are left over, 999 and 1000
    assert len(thinned) == 334


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
