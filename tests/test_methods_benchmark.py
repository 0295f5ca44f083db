"""How the benchmarks of methods and rounds put the results of several comparisons together."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import methods
import rounds

from lorarlhf.backbone.generation import Completion
from lorarlhf.rewards.raters import Rater
from lorarlhf.runtime.files import write_json

Row = dict[str, Any]
SETTINGS = {"base": "smollm2-135m", "votes": 150, "minutes": 5.0, "tokens": 48}
SETTINGS |= {"methods": None, "config": None}


def a_method(name: str, rate: float, **others: Any) -> Row:
    """A row of comparison.json with a rater's judgement."""
    won = {"rate": rate, "ci95": [rate - 0.1, rate + 0.1], "length_controlled": {"rate": rate / 2}}
    answers = {"kl": 2.0, "kl_bound": None, "length": 40.0}
    return {
        "method": name,
        "judges": {"rater brief": won, "reward": won | {"rate": 0.0}},
        "answers": answers,
        "skills": {"change": -0.02},
        "minutes": 5.0,
        "peak_mb": 2000.0,
        **others,
    }


def some_results() -> list[Row]:
    """Two comparisons; in the second, best of n has no training and a bound in place of the KL."""
    best = {"answers": {"kl": None, "kl_bound": 0.5, "length": 30.0}, "peak_mb": None}
    first = [a_method("dpo", 0.6), a_method("best-of-4", 0.8, **best)]
    second = [a_method("dpo", 0.7, skills=None, minutes=3.0)]
    return [{"methods": [methods.figures(row) for row in rows]} for rows in (first, second)]


def test_the_means_are_over_the_comparisons_that_know_a_figure() -> None:
    dpo, best = methods.means(some_results())
    assert dpo["rates"] == [0.6, 0.7] and dpo["rate"] == pytest.approx(0.65)
    assert dpo["ci95"] == pytest.approx([0.55, 0.75]) and dpo["equal"] == pytest.approx(0.325)
    assert (dpo["tasks"], dpo["minutes"], dpo["kl_is_bound"]) == (-0.02, 4.0, False)
    assert (best["rates"], best["kl"], best["kl_is_bound"]) == ([0.8], 0.5, True)
    assert methods.table([dpo, best]).splitlines()[2:] == [
        "| dpo | 65% | 60%, 70% | 32% | 2.00 | 40.0 | -2 | 4.0 | 2.0 |",
        "| best-of-4 | 80% | 80% | 40% | at most 0.50 | 30.0 | -2 | 5.0 | - |",
    ]


def test_comparisons_whose_results_are_there_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, one in enumerate(some_results()):
        write_json(tmp_path / f"plain-{seed}.json", one | {"settings": SETTINGS})
    picture = tmp_path / "picture.svg"
    words = ["methods.py", "--rater", "plain", "--seeds", "2", "--out", str(tmp_path / "out")]
    words += ["--results", str(tmp_path), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", words)
    methods.main()
    said = capsys.readouterr().out
    assert "Means of 2 comparisons" in said and "| dpo | 65% | 60%, 70% |" in said
    drawn = picture.read_text(encoding="utf-8")
    assert "best-of-4" in drawn and "</svg>" in drawn and not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "3"])
    with pytest.raises(SystemExit, match="other settings"):
        methods.main()


def test_rounds_whose_result_is_there_are_not_run_again(tmp_path: Path) -> None:
    sizes: Row = {"base": "b", "method": "dpo", "votes": 9, "updates": 3, "epochs": 3, "tokens": 12}
    known = {"rate": 0.6, "ci95": [0.5, 0.7], "kl": 3.14, "each": [0.52, 0.6], "settings": sizes}
    write_json(tmp_path / "brief-0-3-dpo.json", known)
    args = Namespace(out=tmp_path / "out", results=tmp_path, **sizes)
    found = rounds.measure("brief", 0, 3, args)
    assert found == known and not (tmp_path / "out").exists()
    line = rounds.row("brief", "0", 3, found)
    assert line == "| brief | 0 | 3 | 60% (50% to 70%) | 3.1 | 52%, 60% |"


def test_prompts_are_asked_again_until_so_many_votes_name_a_better_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[Any], int]] = []

    def generate(_: Any, prompts: list[Any], *, seed: int, **__: Any) -> list[Completion]:
        asked.append((prompts, seed))
        words = "yes no" if len(asked) % 4 == 1 else "yes"  # the first of each second pair
        return [Completion(words, [1], ended=True) for _ in prompts]

    monkeypatch.setattr(methods, "generate", generate)
    rater = Rater.named("brief", 0.0, 3)
    votes = methods.cast(cast(Any, None), "base", rater, ["Why?", "How?"], 3, 5)
    # The first pass names two better answers, the second none, the third the last one.
    assert len(votes) == 5 and sum(map(methods.is_decided, votes)) == 3
    assert [one.prompt for one in votes] == ["Why?", "How?", "Why?", "How?", "Why?"]
    assert len({seed for _, seed in asked}) == 6  # no answers twice
    monkeypatch.setattr(methods, "PASSES", 1)
    assert len(methods.cast(cast(Any, None), "base", rater, ["Why?"], 3, 5)) == 1
