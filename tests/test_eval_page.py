"""The page of `eval`: safe with hostile texts, complete, and with a picture that stands alone."""

import re
from pathlib import Path
from typing import Any

import pytest
from report_page import HOSTILE, Page

from lorarlhf.evaluation.eval_page import eval_page, write_eval
from lorarlhf.evaluation.eval_plot import label_offsets, points, win_rate_over_kl, x_limits
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json


def result(name: str, rate: float, low: float, high: float) -> dict[str, Any]:
    figures = {"rate": rate, "ci95": [low, high]}
    more = {"n": 40, "wins": 20, "ties": 10, "losses": 10, "longer_wins": 0.5}
    controlled = figures | {"weight": 0.3}
    return (
        {"candidate": name}
        | figures
        | more
        | {
            "length_controlled": controlled,
            "similar_length": {"n": 12, "rate": 0.5},
        }
    )


def candidate(name: str, kl: float | None, bound: float | None = None) -> dict[str, Any]:
    figures = {"length": 31.25, "ended": 0.5, "distinct_1": 0.2, "distinct_2": 0.625}
    return {"name": name, "run": "", "kl": kl, "kl_se": 0.1, "kl_bound": bound} | figures


BEST, PPO = "best of 4", "0003-ppo"
JUDGE = {
    "judge": "rater cheerful",
    "independent": True,
    "note": "",
    "scores": {},
    "between": [],
    "results": [result(BEST, 0.6, 0.45, 0.74), result(PPO, 0.7, 0.56, 0.82)],
}
DATA: dict[str, Any] = {
    "candidates": [candidate("base", 0.0), candidate(BEST, None, 0.636), candidate(PPO, 5.5)],
    "judges": [JUDGE, JUDGE | {"judge": "reward", "independent": False, "note": "so"}],
    "skills": [
        {"candidate": PPO, "kind": "all", "tasks": 100, "before": 40, "after": 30}
        | {"change": -0.1, "low": -0.18, "high": -0.02, "p": 0.01}
    ],
}
ANSWERS = [
    {
        "prompt": f"Question {n}",
        "answers": {"base": "Yes.", BEST: HOSTILE, PPO: "No."},
        "verdicts": {"rater cheerful": {BEST: 1, PPO: None}, "reward": {BEST: 0, PPO: -1}},
    }
    for n in range(3)
]


def test_the_page_has_every_part() -> None:
    page = Page(eval_page(DATA, ANSWERS))
    assert "Better than the base, beyond chance: 0003-ppo (rater cheerful)." in page.words
    doubt = "By a judge that is not independent: better than the base: 0003-ppo (reward)."
    assert doubt in page.words
    row = ["60% (45 to 74%)", "20, 10, 10", "60% (45 to 74%)", "50% of 12"]
    assert [cells[1:] for cells in page.cells if cells[0] == BEST].count(row) == 2  # two judges
    assert "rater cheerful" in page.words and "reward, not independent" in page.words
    assert page.row("base")[:2] == ["0.00", "31.2"]
    assert [cells for cells in page.cells if cells[:2] == ["best of 4", "at most 0.64"]]
    assert page.row("all tasks") == ["0003-ppo", "100", "40", "30", "-10 (-18 to -2)"]
    assert "reward: not independent: so" in page.words
    assert "rater cheerful: better than the base's; reward: a tie with the base's" in page.words
    assert HOSTILE in page.words


def test_an_unknown_rate_at_equal_length_is_a_dash() -> None:
    judge = JUDGE | {"results": [JUDGE["results"][0] | {"length_controlled": None}]}  # type: ignore[index]
    page = Page(eval_page(DATA | {"judges": [judge]}, []))
    assert ["60% (45 to 74%)", "20, 10, 10", "–", "50% of 12"] in [c[1:] for c in page.cells]


def test_the_page_is_safe_and_alone() -> None:
    hostile = [row | {"prompt": HOSTILE} for row in ANSWERS]
    judge = JUDGE | {"judge": HOSTILE, "note": HOSTILE}
    judge["results"] = [result(HOSTILE, 0.6, 0.5, 0.7)]
    data = DATA | {"judges": [judge], "candidates": [candidate(HOSTILE, 1.0)]}
    html = eval_page(data, hostile)
    page = Page(html)
    assert not re.search(r"https?://(?!evil)|<script|@import", html)
    assert {"script", "img", "iframe", "link"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(target.startswith("#") for target in page.values("href"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_the_picture_says_what_it_shows() -> None:
    shown = points(JUDGE, DATA["candidates"])
    assert [(one.name, one.kl, one.bound) for one in shown] == [
        (BEST, 0.636, True),
        (PPO, 5.5, False),
    ]
    svg = win_rate_over_kl("kl", JUDGE, DATA["candidates"])
    assert svg == win_rate_over_kl("kl", JUDGE, DATA["candidates"])
    label = re.findall(r'aria-label="([^"]*)"', svg)[0]
    assert label == (
        "Win rate over KL by rater cheerful: best of 4 60% (45% to 74%), at most 0.64 nats from "
        "the base; 0003-ppo 70% (56% to 82%), 5.5 nats from the base"
    )
    unknown = [candidate(BEST, None), candidate(PPO, None)]
    assert win_rate_over_kl("kl", JUDGE, unknown) == ""


def test_labels_cover_neither_each_other_nor_a_point() -> None:
    ends = [(90.0, 110.0)] * 4
    # Alone, a label stands to the right of its point and above it.
    assert label_offsets(["one"], [(50, 100)], ends[:1]) == [(6, 5)]
    # A second point is where the label would be: it goes to the left, and the second one's right.
    assert label_offsets(["one", "two"], [(50, 100), (60, 100)], ends[:2]) == [(-6, 5), (6, 5)]
    # A third one between them has points on both sides, and stands above their intervals.
    names, at = ["one", "two", "three"], [(50.0, 100.0), (70.0, 100.0), (60.0, 100.0)]
    assert label_offsets(names, at, ends[:3]) == [(-6, 5), (6, 5), (6, 17)]
    # Where nothing is free there is a label all the same.
    crowd = [(50.0 + 4 * n, 100.0) for n in range(9)]
    assert label_offsets(["x" * 40] * 9, crowd, [(0.0, 200.0)] * 9)[4] == (6, 5)


@pytest.mark.parametrize("kls", [(-0.02, -0.3), (0.0, 0.0), (0.5, 6.0), (-0.1, 2.0)])
def test_the_base_is_on_the_axis(kls: tuple[float, float]) -> None:
    shown = points(JUDGE, [candidate(BEST, kls[0]), candidate(PPO, kls[1])])
    low, high = x_limits(shown)
    assert low < min(0.0, *kls) and high > max(0.0, *kls) + 0.05


def test_only_skills_and_many_prompts() -> None:
    assert "Answers side by side" not in eval_page({"skills": DATA["skills"]}, [])
    page = Page(eval_page(DATA, ANSWERS * 30))
    assert "30 more are in answers.jsonl." in page.words


def test_files(tmp_path: Path) -> None:
    page = write_eval(tmp_path / "a/b", DATA, ANSWERS)
    assert page.name == "report.html" and read_json(tmp_path / "a/b/eval.json") == DATA
    assert len((tmp_path / "a/b/answers.jsonl").read_text().splitlines()) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_eval(tmp_path / "file" / "x", DATA, ANSWERS)
