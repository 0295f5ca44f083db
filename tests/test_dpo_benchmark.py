"""How the benchmark of DPO's defaults makes votes, settings and lines of its table, by hand."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import dpo_defaults
from _pools import Pool

from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.stages.dpo_orpo import ORPOSettings
from lorarlhf.stages.kto import KTOSettings


def test_votes_become_pairs_and_ties_are_left_out() -> None:
    marks = [[0, 2, 1, 1], [3, 1, 0, 0]]
    answers = [[Answer(f"Go {n}" + "!" * m) for n, m in enumerate(row)] for row in marks]
    pool = Pool(["p", "q"], answers, np.zeros(0), np.zeros(0))
    rows = dpo_defaults.voted_rows(pool, Rater.named("plain", noise=0.0), [0, 1], 3)
    assert rows == [  # fewer exclamation marks win; the second pair of each prompt is a tie
        {"prompt": "p", "chosen": "Go 0", "rejected": "Go 1!!"},
        {"prompt": "q", "chosen": "Go 1!", "rejected": "Go 0!!!"},
        {"prompt": "p", "chosen": "Go 0", "rejected": "Go 2!"},
    ]


def test_every_combination_has_its_settings_and_its_line() -> None:
    words = ["--rates", "1e-4", "2e-4", "--epochs", "1", "--sft", "0", "1", "--holdout", "0.2"]
    made = dpo_defaults.combinations(dpo_defaults.options().parse_args(words))
    assert [(one.learning_rate, getattr(one, "sft_weight", None)) for one in made] == [
        (1e-4, 0.0),
        (1e-4, 1.0),
        (2e-4, 0.0),
        (2e-4, 1.0),
    ]
    won = {"rate": 0.6, "ci95": [0.5, 0.7]}
    found = {"win_rate": won, "repetition": 0.012, "ended_fraction": 0.5, "completion_length": 40.0}
    found |= {"chosen": -0.2, "rejected": -1.0, "margin": 2.5, "kept": 19, "alarms": ["repetition"]}
    line = dpo_defaults.table_row(made[1], found)
    assert line == (
        "| 0.0001 | 1 | 0.1 | 1 | 0 | 0.2 | 60% (50% to 70%) | 1.2% | 50% | 40.0 | -0.20 | -1.00 "
        "| 2.5 | 19 | repetition |"
    )
    cells = dpo_defaults.HEAD.splitlines()[0].count("|")
    assert line.count("|") == dpo_defaults.table_row(None, found).count("|") == cells


def test_the_other_methods_have_settings_without_dpo_s_own() -> None:
    for method, kind in (("orpo", ORPOSettings), ("kto", KTOSettings)):
        words = ["--method", method, "--rates", "1e-3", "--epochs", "1", "3", "--beta", "2"]
        made = dpo_defaults.combinations(dpo_defaults.options().parse_args(words))
        assert [type(one) for one in made] == [kind, kind]
        assert [(one.epochs, one.learning_rate) for one in made] == [(1.0, 1e-3), (3.0, 1e-3)]
        assert [one.beta for one in made] == [2.0, 2.0]
        (own,) = dpo_defaults.combinations(dpo_defaults.options().parse_args(words[:6]))
        assert own.beta == kind().beta
