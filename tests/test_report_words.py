"""The report's heat maps of held-out pairs: what a reward run writes, and how it is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import last_message
from lorarlhf.evaluation.report import build_html, write_report
from lorarlhf.evaluation.report_words import words_section
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.run import Run
from lorarlhf.stages.reward_examples import clearest_pairs
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from tests.report_page import Page

ROW: dict[str, Any] = {
    "prompt": "Name a fish.",
    "right": True,
    "chosen": {"score": 0.5, "words": [["A", 0.75], [" cod.", -0.25]]},
    "rejected": {"score": -0.25, "words": [["No", -0.25]]},
}


def test_the_clearest_pairs_are_right_ones_then_wrong_ones() -> None:
    margins = [0.1, -2.0, 3.0, 0.0, 0.2, -0.5, 0.3]
    scores = np.array([score for margin in margins for score in (margin + 1, 1.0)])
    assert clearest_pairs(scores) == [2, 6, 4, 1, 5]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_reward_run_writes_what_each_word_adds(
    tiny: Backbone, tmp_path: Path, pooling: str
) -> None:
    rows = [
        {"prompt": f"Name a {name}.", "chosen": f"A {name} is here.", "rejected": "No, I will not."}
        for name in ("fish", "bird", "tree", "colour", "river", "town")
    ]
    run = Run(tmp_path, "reward", {})
    settings = RewardSettings(epochs=0.0, pooling=pooling)
    train_reward_model(tiny, rows[:4], run, settings, eval_rows=rows[4:])
    if pooling == "last":  # its shares take many forwards
        assert not (tmp_path / "words.jsonl").exists()
        return
    written = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert written
    for row in written:
        (answers,) = [one for one in rows[4:] if [one["prompt"]] == [last_message(row["prompt"])]]
        for side in ("chosen", "rejected"):
            found = row[side]
            assert "".join(word for word, _ in found["words"]) == answers[side]
            assert sum(share for _, share in found["words"]) == pytest.approx(found["score"])
            (score,) = score_answers(tiny, [row["prompt"]], [answers[side]])
            assert found["score"] == pytest.approx(score, abs=1e-5)
        assert row["right"] == (row["chosen"]["score"] > row["rejected"]["score"])
    assert "What the reward role sees" in write_report(tmp_path).read_text(encoding="utf-8")


def test_both_answers_are_heat_maps_of_the_same_colours() -> None:
    html = build_html(None, None, None, {"stage": "reward"}, words=[ROW])
    assert '<span class="more5" title="+0.750">A</span>' in html
    assert html.count('class="less2" title="\u22120.250"') == 2  # a third of the strongest, twice
    assert "The reward role agrees." in html
    Page(html)


def test_broken_rows_are_left_out_and_hostile_words_are_text() -> None:
    broken: list[Any] = [
        {},
        {**ROW, "chosen": None},
        {**ROW, "chosen": {"score": None, "words": []}},
        {**ROW, "rejected": {"score": 1, "words": [["a"], 3]}},
        {**ROW, "rejected": {"score": 1, "words": [["a", "much"]]}},
    ]
    assert words_section(broken) == ""
    hostile = {"score": 1.0, "words": [["<script>\ud800\x00", 1.0]]}
    html = build_html(None, None, None, {"stage": "reward"}, words=[{**ROW, "chosen": hostile}])
    assert "&lt;script&gt;\ufffd\ufffd" in html and "<script" not in html
    html.encode("utf-8")
