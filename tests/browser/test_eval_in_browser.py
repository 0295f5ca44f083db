"""The page of `eval` in a browser: a file without scripts or requests, wide and narrow."""

from pathlib import Path
from typing import Any

import pytest

from lorarlhf.evaluation.eval_page import write_eval
from tests.report_page import HOSTILE

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
NAMES = ("best of 4", "0003-ppo")
KLS = (("base", 0.0, None), (NAMES[0], None, 0.64), (NAMES[1], 6.0, None))


def result(name: str) -> dict[str, Any]:
    rate = {"rate": 0.7, "ci95": [0.56, 0.82]}
    counts = {"n": 60, "wins": 40, "ties": 4, "losses": 16, "longer_wins": 0.6}
    controlled = {"length_controlled": rate | {"weight": 0.4}}
    similar = {"similar_length": {"n": 21, "rate": 0.6}}
    return {"candidate": name} | rate | counts | controlled | similar


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    figures = {"run": "", "length": 40.0, "ended": 0.8, "distinct_1": 0.2, "distinct_2": 0.6}
    data = {
        "candidates": [
            {"name": name, "kl": kl, "kl_se": None, "kl_bound": bound} | figures
            for name, kl, bound in KLS
        ],
        "judges": [
            {
                "judge": "rater cheerful",
                "independent": True,
                "note": "",
                "scores": {},
                "between": [],
            }
            | {"results": [result(name) for name in NAMES]}
        ],
        "skills": [],
    }
    answers = [
        {
            "prompt": f"Question {number}?",
            "answers": {"base": "Yes. " * 60, NAMES[0]: HOSTILE, NAMES[1]: "x" * 300},
            "verdicts": {"rater cheerful": {NAMES[0]: 1, NAMES[1]: 0}},
        }
        for number in range(4)
    ]
    return write_eval(tmp_path / "eval", data, answers)


def answer_boxes(page: Any) -> list[Any]:
    answers = page.locator("article").first.locator(".answers > div")
    return [one.bounding_box() for one in answers.all()]


def test_answers_stand_side_by_side(open_page: Any, page_file: Path) -> None:
    page = open_page(page_file.as_uri())
    assert page.title() == "Did it get better?"
    boxes = answer_boxes(page)
    assert len(boxes) == 3
    assert len({round(box["y"]) for box in boxes}) == 1  # in one row
    assert page.get_by_text(HOSTILE, exact=True).count() == 4
    assert page.locator("script, img").count() == 0
    assert page.evaluate(OVERFLOW) <= 0
    picture = page.locator("figure svg").bounding_box()
    assert picture["width"] > 200 and picture["height"] > 100
    shown = page.locator("figure svg text").all_text_contents()
    assert {"base", *NAMES} <= {text.strip() for text in shown}


def test_the_page_fits_a_phone(open_page: Any, page_file: Path) -> None:
    page = open_page(page_file.as_uri(), width=390, height=844, dark=True)
    assert page.evaluate(OVERFLOW) <= 0
    boxes = answer_boxes(page)
    assert len({round(box["x"]) for box in boxes}) == 1  # one below the other
