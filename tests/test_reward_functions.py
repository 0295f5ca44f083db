"""Reward functions: loaded from real files, called as TRL calls them, checked and summed."""

import asyncio
import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.rewards.functions import (
    call_reward_function,
    combine,
    completion_text,
    load_function,
    rater_reward,
)
from lorarlhf.rewards.raters import Rater
from lorarlhf.runtime.errors import UserError

PROMPTS = ["Hi", "Hello"]
COMPLETIONS = ["one two", "three"]


async def lengths(prompts, completions, **columns):
    await asyncio.sleep(0.001)
    return [float(len(c)) for c in completions]


class Lengths:
    async def __call__(self, prompts, completions, **columns):
        return await lengths(prompts, completions)


def write(folder: Path, text: str, name: str = "rewards.py") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_function_is_loaded_from_its_file_and_called(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "def words(prompts, completions, **columns):\n"
        "    return [len(c.split()) for c in completions]\n",
    )
    path_before = list(sys.path)
    function = load_function(f"{file}:words")
    assert call_reward_function(function, PROMPTS, COMPLETIONS) == [2.0, 1.0]
    assert sys.path == path_before
    assert list(tmp_path.iterdir()) == [tmp_path / "rewards.py"]  # no __pycache__


def test_a_file_can_import_its_neighbour_but_not_change_sys_path(tmp_path: Path) -> None:
    write(tmp_path, "BONUS = 5\n", "neighbour_of_rewards.py")
    file = write(
        tmp_path,
        "import sys\nfrom neighbour_of_rewards import BONUS\nsys.path.append('elsewhere')\n"
        "def bonus(prompts, completions, **columns):\n    return [BONUS] * len(completions)\n",
    )
    path_before = list(sys.path)
    try:
        assert call_reward_function(load_function(f"{file}:bonus"), PROMPTS, COMPLETIONS) == [5, 5]
        assert sys.path == path_before
    finally:
        sys.modules.pop("neighbour_of_rewards", None)


def test_a_file_is_executed_once_until_it_changes(tmp_path: Path) -> None:
    text = "class Five:\n    pass\ndef f(**columns): return [1]\ndef g(**columns): return [2]\n"
    file = write(tmp_path, text)
    f, g = load_function(f"{file}:f"), load_function(f"{file}:g")
    assert f.__globals__ is g.__globals__
    write(tmp_path, text.replace("[1]", "[7]"))  # same length, same second
    assert load_function(f"{file}:f")() == [7]


def test_dataclasses_with_postponed_annotations_load(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Scorer:\n    factor: float\n"
        "    def __call__(self, prompts, completions, **columns):\n"
        "        return [self.factor * len(c) for c in completions]\n"
        "half = Scorer(0.5)\n",
    )
    half = load_function(f"{file}:half")
    assert call_reward_function(half, PROMPTS, COMPLETIONS) == [3.5, 2.5]
    with pytest.raises(UserError, match="no function 'hafl'.*mean 'half'"):
        load_function(f"{file}:hafl")


@pytest.mark.parametrize("spec", ["rewards.py", "rewards.py:", ":f", "", "rewards.py:not a name"])
def test_a_spec_without_file_and_name_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="FILE.py:NAME"):
        load_function(spec)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.py, which does not exist"):
        load_function(f"{tmp_path / 'absent.py'}:f")


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "hello", "rewards.txt")
    with pytest.raises(UserError, match=r"has to end in \.py"):
        load_function(f"{file}:f")


def test_an_unknown_name_lists_what_the_file_defines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "from math import sqrt\nfrom json import dumps\nLIMIT = 3\nclass Thing: pass\n"
        "def _hidden(): pass\ndef politeness(): pass\ndef length(): pass\n",
    )
    with pytest.raises(UserError) as caught:
        load_function(f"{file}:politenes")
    message = str(caught.value)
    assert "Did you mean 'politeness'? It has: politeness, length." in message
    with pytest.raises(UserError, match="'LIMIT' in .* is of type int, not a function"):
        load_function(f"{file}:LIMIT")
    empty = write(tmp_path, "X = 1\n", "empty.py")
    with pytest.raises(UserError, match="and no other function"):
        load_function(f"{empty}:f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*rewards.py, line 2\)"),
        ("import no_such_module_here\n", "No module named 'no_such_module_here'"),
        ("def f(:\n", r"SyntaxError: .*\(rewards.py, line 1\)"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("assert False\n", "AssertionError "),
        ("x = '\0'\n", "null bytes"),
    ],
)
def test_a_file_that_raises_is_reported_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    modules, path_before = set(sys.modules), list(sys.path)
    with pytest.raises(UserError, match=said) as caught:
        load_function(f"{file}:f")
    assert "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - modules if name.startswith("lorarlhf_reward")]
    assert sys.path == path_before


def test_ctrl_c_while_a_file_loads_passes_through(tmp_path: Path) -> None:
    file = write(tmp_path, "raise KeyboardInterrupt\n")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            load_function(f"{file}:f")


def test_arguments_are_passed_by_name_with_all_columns() -> None:
    seen: dict[str, object] = {}

    def f(completions, prompts, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, **columns)
        return [0, 1]

    call_reward_function(f, PROMPTS, COMPLETIONS, answer=["a", "b"], fn="a column may be named fn")
    assert seen == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "answer": ["a", "b"],
        "fn": "a column may be named fn",
    }


def test_async_functions_are_awaited_even_inside_a_running_loop() -> None:
    async def as_in_a_notebook():
        return call_reward_function(lengths, PROMPTS, COMPLETIONS)

    assert call_reward_function(lengths, PROMPTS, COMPLETIONS) == [7, 5]
    assert call_reward_function(Lengths(), PROMPTS, COMPLETIONS) == [7, 5]
    assert asyncio.run(as_in_a_notebook()) == [7, 5]


def test_async_exceptions_are_named_too() -> None:
    async def slow(**columns):
        raise OSError("no answer")

    with pytest.raises(UserError, match="'slow' raised OSError: no answer"):
        call_reward_function(slow, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    "returned",
    [
        [True, None],
        (1, None),
        [np.float32(1), None],
        [np.array(1), None],
        iter([np.bool_(True), None]),
    ],
)
def test_scalars_become_floats_and_none_stays(returned: object) -> None:
    values = call_reward_function(lambda **columns: returned, PROMPTS, COMPLETIONS)
    assert values == [1.0, None]
    assert type(values[0]) is float


def test_arrays_and_tensors_count_as_lists() -> None:
    import torch

    for returned in (np.array([0.5, 2]), torch.tensor([0.5, 2.0]), [torch.tensor(0.5), 2]):
        values = call_reward_function(lambda _r=returned, **columns: _r, PROMPTS, COMPLETIONS)
        assert values == [0.5, 2.0]
    with pytest.raises(UserError, match="for sample 0"):
        call_reward_function(lambda **columns: torch.zeros(2, 3), PROMPTS, COMPLETIONS)


def test_a_function_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "def f(prompts, completions, **columns):\n    return [{}['key']]\n")
    with pytest.raises(UserError, match=r"'f' raised KeyError: 'key' \(.*rewards.py, line 2\)"):
        call_reward_function(load_function(f"{file}:f"), PROMPTS, COMPLETIONS)


def test_missing_columns_are_explained_and_a_user_error_passes() -> None:
    def narrow(prompts, completions):
        return [0, 0]

    def careful(**columns):
        raise UserError("mine")

    with pytest.raises(UserError, match=r"'narrow' raised TypeError.*with \*\*columns"):
        call_reward_function(narrow, PROMPTS, COMPLETIONS, answer=[1, 2])
    with pytest.raises(UserError, match="^mine$"):
        call_reward_function(careful, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned None of type NoneType.*list of 2 numbers.*`return` missing"),
        (0.5, "returned 0.5 of type float"),
        ("12", "returned '12' of type str"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2} of type dict"),
        ([1], "returned 1 values, expected 2"),
        ([1, 2, 3], "returned 3 values, expected 2"),
        ([1, math.nan], "returned nan for sample 1 .*, the completion 'three'"),
        ([math.inf, 1], "returned inf for sample 0 .*, the completion 'one two'"),
        ([1, "0.5"], "returned '0.5' for sample 1"),
        ([1, [2]], r"returned \[2\] for sample 1"),
        ([1j, 2], "returned 1j for sample 0"),
        ([10**400, 2], r"returned 10+\.\.\. for sample 0"),
    ],
)
def test_wrong_values_are_named(returned: object, said: str) -> None:
    def judge(prompts, completions, **columns):
        return returned

    with pytest.raises(UserError, match=f"'judge' {said}"):
        call_reward_function(functools.partial(judge), PROMPTS, COMPLETIONS)


def test_a_long_completion_is_shown_as_an_excerpt() -> None:
    with pytest.raises(UserError) as caught:
        call_reward_function(lambda **columns: [math.nan], ["p"], ["word\n" * 1000])
    assert "word" in str(caught.value) and len(str(caught.value)) < 300


def test_combine_is_a_weighted_sum_that_leaves_none_out() -> None:
    scores = [[1.0, None, -2.0], [0.5, 4.0, None]]
    assert combine(scores, [1.0, 2.0]) == [2.0, 8.0, -2.0]
    assert combine([[1, 2]], [0.0]) == [0.0, 0.0]
    assert combine([[1, 2], [3, 4]], [1, -1]) == [-2, -2]


def test_combine_equals_nansum_as_trl_uses_it() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3))
    table[rng.random(table.shape) < 0.4] = np.nan
    table = table[~np.isnan(table).all(axis=1)]
    weights = [0.3, -1.0, 2.5]
    columns = [[None if np.isnan(x) else float(x) for x in column] for column in table.T]
    expected = np.nansum(table * np.array(weights), axis=1)
    np.testing.assert_allclose(combine(columns, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(combine(table.T.tolist(), weights), expected, rtol=1e-12)


def test_combine_refuses_a_sample_without_opinion_and_wrong_shapes() -> None:
    with pytest.raises(UserError, match="opinion on sample 1"):
        combine([[1.0, None], [2.0, None]], [1, 1])
    with pytest.raises(UserError, match="2 reward functions but 1 weights"):
        combine([[1.0], [2.0]], [1])
    with pytest.raises(ValueError, match="shorter"):
        combine([[1.0, 2.0], [2.0]], [1, 1])


def test_completion_text_of_strings_and_messages() -> None:
    assert completion_text("plain") == "plain"
    assert completion_text([{"role": "assistant", "content": "a"}]) == "a"
    parts = [{"type": "text", "text": "b"}, {"type": "image"}, {"type": "text", "text": "c"}]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "not the assistant's"},
        {"role": "assistant", "content": parts},
    ]
    assert completion_text(messages) == "\nbc"


def test_rater_reward_scores_by_the_rule_without_noise() -> None:
    reward = rater_reward(Rater.named("plain", noise=0.5))
    chat = [[{"role": "assistant", "content": "Hi!"}], [{"role": "assistant", "content": "Hi."}]]
    assert call_reward_function(reward, PROMPTS, ["Hi!", "Hi."], other=[1, 2]) == [-1, 0]
    assert call_reward_function(reward, PROMPTS, chat) == [-1, 0]
    assert reward.__name__ == "plain_reward"


def test_rater_reward_knows_cut_off_answers_by_the_column_ended() -> None:
    reward = rater_reward(Rater.named("brief"))
    texts = ["word " * 20, "word"]
    assert call_reward_function(reward, PROMPTS, texts, ended=[True, False]) == [0.5, 0.0]
    assert call_reward_function(reward, PROMPTS, texts) == [0.5, 20 / 21]
