"""How the benchmark of edits and votes makes its rows, by hand."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import edits_vs_votes
from _pools import Pool

from lorarlhf.rewards.raters import Answer, Rater

RATER = Rater.named("brief", noise=0)
ANSWERS = [
    [Answer("One. Two three."), Answer("Four five six seven."), Answer("x"), Answer("y")],
    [Answer(""), Answer("Yes. It is."), Answer("z"), Answer("w")],
]
POOL = Pool(["p", "q"], ANSWERS, np.zeros((2, 4, 1)), np.zeros((2, 4, 1)))


def test_votes_are_pairs_with_the_better_answer_first() -> None:
    rows = edits_vs_votes.vote_rows(POOL, RATER, [0], 1)
    texts = {"chosen": "One. Two three.", "rejected": "Four five six seven."}
    assert rows == [{"prompt": "p", **texts}]
    # The blank answer wins by the rule, and nothing can be trained on it.
    assert edits_vs_votes.vote_rows(POOL, RATER, [1], 1) == []


def test_an_edit_is_made_of_the_better_answer_and_beats_all_that_was_seen() -> None:
    seen = [row[:2] for row in ANSWERS]
    rows = edits_vs_votes.edit_rows(POOL.prompts, seen, RATER)
    assert rows == [
        {
            "prompt": "p",
            "completion": "One.",
            "of": "One. Two three.",
            "worse": ["One. Two three.", "Four five six seven."],
        }
    ]  # the best answer to q is blank, and so is its edit
    pairs = edits_vs_votes.edited_pairs(rows)
    assert pairs == [{"prompt": "p", "chosen": "One.", "rejected": "One. Two three."}]
    assert edits_vs_votes.edited_pairs([rows[0] | {"of": "One."}, rows[0] | {"of": " "}]) == []


def test_the_same_minutes_buy_six_votes_or_one_edit() -> None:
    assert edits_vs_votes.EDIT_SECONDS / edits_vs_votes.VOTE_SECONDS == 6
