"""The recipes: all in order at their quick size, and what they leave.

They run on a tiny base whose answers are words, so that the rater has something to prefer;
test_demo.py runs the loop on the real small base.
"""

import ast
import contextlib
import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorarlhf.data.readers import read_preferences, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"
ORDER = [
    *("1_supervised", "2_reward_model", "3_ppo", "3_rloo", "3_dpo", "3_orpo", "3_ditto"),
    *("3_grpo", "3_iterated_dpo", "3_best_of_n", "3_kto", "4_chat", "5_evaluate", "6_rounds"),
    "7_export_votes",
]
OTHERS = {"3_grpo": ("3_rloo", "--algorithm", "grpo")}
"""Recipes that have an option for it, and the option."""
MOVED = ("3_ppo", "3_rloo", "3_grpo", "3_dpo", "3_orpo", "3_ditto", "3_kto")
TUNED = (*MOVED, "3_iterated_dpo")  # which keeps the policy of the best round, maybe the start's


def run_recipe(name: str, out: Path, *words: str) -> str:
    """Run a recipe as `python recipes/NAME.py --quick --out OUT` does; what it printed."""
    printed = io.StringIO()
    before = sys.argv
    sys.argv = [f"{name}.py", "--quick", "--out", str(out), *words]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the recipes write to."""
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> str:
    """A tiny base whose tokens are mostly words."""
    return str(make_base(vocabulary=2000))


@pytest.fixture(scope="module")
def printed(out: Path, base: str) -> dict[str, str]:
    """What each recipe printed, after all have run."""
    found = {}
    for name in ORDER:
        recipe, *words = OTHERS.get(name, (name,))
        found[name] = run_recipe(recipe, out, "--base", base, *words)
    return found


def test_every_run_is_whole(printed: dict[str, str], out: Path, base: str) -> None:
    roles = {"1_supervised": ["policy", "reference"], "2_reward_model": ["reward"]}
    roles |= {"3_ppo": ["policy", "value"], "3_dpo": ["policy"], "3_orpo": ["policy"]}
    roles |= {"3_kto": ["policy"], "3_rloo": ["policy"], "3_ditto": ["policy", "reference"]}
    roles |= {"3_grpo": ["policy"], "3_iterated_dpo": ["policy"]}
    others = ("3_best_of_n", "5_evaluate", "6_rounds", "7_export_votes")  # that train no run here
    assert sorted(path.name for path in out.iterdir()) == sorted([*roles, *others])
    for name, saved in roles.items():
        folder = out / name
        assert sorted(path.name for path in (folder / "adapters").iterdir()) == saved
        for role in saved:
            assert (folder / "adapters" / role / "adapter_model.safetensors").is_file()
        assert all("step" in row for _, row in read_rows(folder / "metrics.jsonl"))
        about = json.loads((folder / "run.json").read_text())
        assert (about["status"], about["base"]) == ("done", base)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["seconds_total"] > 0 and str(folder) in printed[name]


def test_every_step_goes_on_from_the_one_before(printed: dict[str, str], out: Path) -> None:
    weights = {
        name: (out / name / "adapters/policy/adapter_model.safetensors").read_bytes()
        for name in ("1_supervised", *MOVED, "6_rounds/round_1", "6_rounds/round_2")
    }
    assert len(set(weights.values())) == 10  # each moved the policy in its own way
    reference = (out / "1_supervised/adapters/reference/adapter_model.safetensors").read_bytes()
    assert reference == weights["1_supervised"]
    assert "untuned base" not in printed["2_reward_model"]


def test_what_each_recipe_measures(printed: dict[str, str], out: Path) -> None:
    votes = read_preferences(out / "2_reward_model/preferences.jsonl")
    assert f"{len(votes)} votes" in printed["2_reward_model"]
    reward = json.loads((out / "2_reward_model/summary.json").read_text())
    assert 0 <= reward["heldout_accuracy"] <= 1
    assert reward["pairs"] + reward["n"] == len(votes)
    ppo = json.loads((out / "3_ppo/summary.json").read_text())
    assert (ppo["updates"], ppo["episodes"]) == (2, 8)
    for name in (*TUNED, "3_best_of_n"):
        won = json.loads((out / name / "summary.json").read_text())["win_rate"]
        # The training of most writes samples of its own.
        alone = name in ("3_ppo", "3_ditto", "3_best_of_n")
        file = "samples.jsonl" if alone else "comparison.jsonl"
        samples = [row for _, row in read_rows(out / name / file)]
        assert won["n"] == len(samples) == 6
        assert won["wins"] == sum(sample["verdict"] == "tuned" for sample in samples)
        assert all(sample["prompt"] in printed[name] for sample in samples)
    for name, more in (("3_dpo", set()), ("3_grpo", {"score"})):
        during = [row for _, row in read_rows(out / name / "samples.jsonl")]
        assert {"step", "prompt", "completion"} | more == set(during[0])
        assert during[0]["step"] == 0
    rounds = json.loads((out / "3_iterated_dpo/summary.json").read_text())
    assert rounds["rounds"] == 1 and rounds["votes"] + rounds["votes_left_out"] == 4
    assert rounds["score_best"] >= rounds["score_first"]
    report = (out / "3_ppo/report.html").read_text(encoding="utf-8")
    assert "Distance from the reference" in report and "<svg" in report


def test_what_the_steps_after_training_leave(printed: dict[str, str], out: Path) -> None:
    picked = json.loads((out / "3_best_of_n/summary.json").read_text())
    assert picked["best_of"] == 4 and 0.63 < picked["kl_at_most"] < 0.64  # log 4 - 3 / 4
    found = json.loads((out / "5_evaluate/summary.json").read_text())
    assert sorted(found["policies"]) == sorted(TUNED)
    assert all(name in printed["5_evaluate"] for name in TUNED)
    rounds = json.loads((out / "6_rounds/summary.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [1, 2] and all(row["n"] == 6 for row in rounds)
    asked = [
        {row["prompt"] for row in read_preferences(out / f"6_rounds/round_{n}/preferences.jsonl")}
        for n in (1, 2)
    ]
    assert asked[0] and asked[1] and not asked[0] & asked[1]  # new prompts in each round
    edits = [row for _, row in read_rows(out / "3_ditto/edits.jsonl")]
    assert len(edits) == 3 and all(len(row["worse"]) == 2 for row in edits)


def test_the_votes_are_exported_and_added_once(
    printed: dict[str, str], out: Path, base: str, tmp_path: Path
) -> None:
    votes = read_preferences(out / "2_reward_model/preferences.jsonl")
    folder = out / "7_export_votes"
    assert f"{len(votes)} votes added, 0 were there already" in printed["7_export_votes"]
    for form in ("own", "trl", "kto", "hh", "sharegpt", "arena"):
        assert (folder / f"{form}.jsonl").is_file()
    pairs = [row for _, row in read_rows(folder / "trl.jsonl")]
    assert [row["chosen"][0]["content"] for row in pairs] == [row["chosen"] for row in votes]
    shutil.copytree(out / "2_reward_model", tmp_path / "2_reward_model")
    shutil.copytree(folder, tmp_path / "7_export_votes")
    again = run_recipe("7_export_votes", tmp_path, "--base", base)
    assert f"0 votes added, {len(votes)} were there already" in again


def test_chat_shows_both_and_takes_the_newest_policy(printed: dict[str, str], out: Path) -> None:
    assert str(out / "3_kto" / "adapters" / "policy") in printed["4_chat"]
    lines = [line.split() for line in printed["4_chat"].splitlines()]
    for role in ("base:", "policy:"):
        (answer,) = [words[1:] for words in lines if words[:1] == [role]]
        assert answer


def test_a_second_run_keeps_the_first(
    printed: dict[str, str], out: Path, base: str, tmp_path: Path
) -> None:
    shutil.copytree(out / "1_supervised", tmp_path / "1_supervised")
    first = (tmp_path / "1_supervised" / "metrics.jsonl").read_bytes()
    run_recipe("1_supervised", tmp_path, "--base", base)
    kept = tmp_path / "1_supervised" / "earlier-1"
    assert (kept / "metrics.jsonl").read_bytes() == first
    assert (kept / "adapters" / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_first_recipe_trains_the_real_base(tmp_path: Path) -> None:
    run_recipe("1_supervised", tmp_path)
    folder = tmp_path / "1_supervised"
    about = json.loads((folder / "run.json").read_text())
    assert (about["status"], about["base"]) == ("done", "smollm2-135m")
    losses = [row["loss"] for _, row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    assert 0 < losses[0] < 5  # a random model's is 10.8


@pytest.mark.parametrize(
    ("name", "there", "wanted"),
    [
        ("3_ppo", [], "recipes/1_supervised.py"),
        ("3_dpo", [], "recipes/1_supervised.py"),
        ("3_orpo", [], "recipes/1_supervised.py"),
        ("3_kto", [], "recipes/1_supervised.py"),
        ("3_rloo", [], "recipes/1_supervised.py"),
        ("3_best_of_n", [], "recipes/1_supervised.py"),
        ("3_best_of_n", ["1_supervised/adapters/policy"], "recipes/2_reward_model.py"),
        ("5_evaluate", ["1_supervised/adapters/policy"], "recipes/3_ppo.py"),
        ("6_rounds", [], "recipes/1_supervised.py"),
        ("7_export_votes", ["2_reward_model"], "recipes/2_reward_model.py"),
        ("3_ppo", ["1_supervised/adapters/policy"], "recipes/2_reward_model.py"),
        ("3_dpo", ["1_supervised/adapters/policy"], "recipes/2_reward_model.py"),
        ("4_chat", ["1_supervised/adapters/policy"], "recipes/3_ppo.py"),
    ],
)
def test_a_missing_step_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    there: list[str],
    wanted: str,
) -> None:
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        run_recipe(name, tmp_path)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"Run first: python {wanted}")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", [name for name in ORDER if name not in OTHERS])
def test_a_recipe_is_a_short_straight_script(name: str) -> None:
    source = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert '\nBASE = "smollm2-135m"' in source
    assert len(source.splitlines()) < 150
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, node.name
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        assert not any(name.startswith("_") for name in names), f"{names} is private"
    said = ast.get_docstring(tree) or ""
    for part in (f"python recipes/{name}.py", "\nCosts: ", "\nYou should see: "):
        assert part in said, part
