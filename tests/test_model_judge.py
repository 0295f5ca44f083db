"""A model as judge: what it is asked, how its letters are read, and the swap of the sides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.evaluation import model_judge
from lorarlhf.evaluation.model_judge import (
    TEMPLATE,
    fill,
    judge_pairs_by_model,
    letter_token,
    prefers_first,
    read_template,
)
from lorarlhf.runtime.errors import UserError


def test_places_are_filled_once() -> None:
    filled = fill("{prompt}|{first}|{second}", "p {first}", "a {second} {x}", "b {prompt}")
    assert filled == "p {first}|a {second} {x}|b {prompt}"
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    assert fill("{prompt}/{first}{second}", talk, "", "").startswith(
        "user: Hi\n\nassistant: Hello\n\nuser: Why?"
    )
    assert fill("{prompt}/{first}{second}", talk[:1], "", "") == "Hi/"
    assert all(place in TEMPLATE for place in ("{prompt}", "{first}", "{second}"))


def test_a_template_from_a_file(tmp_path: Path) -> None:
    assert read_template(None) == TEMPLATE
    (tmp_path / "mine.txt").write_text("{prompt} {first} {second} A or B?\n")
    assert read_template(tmp_path / "mine.txt") == "{prompt} {first} {second} A or B?"
    (tmp_path / "bad.txt").write_text("{prompt} {first}")
    with pytest.raises(UserError, match=r"\{second\} is missing"):
        read_template(tmp_path / "bad.txt")
    with pytest.raises(UserError, match="can't be read"):
        read_template(tmp_path / "none.txt")


def test_the_likelier_letter_is_the_verdict(tiny: Backbone) -> None:
    questions = ["Which?", "Which one of these two is it, and why do you think so?", "A or B?"]
    counted: list[int] = []
    found = prefers_first(tiny, questions, counted.append)
    assert sum(counted) == 3
    a, b = (letter_token(tiny.tokenizer, letter) for letter in "AB")
    for question, first in zip(questions, found, strict=True):
        ids = tiny.encode([{"role": "user", "content": question}])
        with torch.no_grad(), tiny.role("base"):
            logits = tiny.causal(torch.tensor([ids])).logits[0, -1]
        assert first == bool(logits[a] > logits[b])


@pytest.mark.parametrize(
    ("prefers", "outcomes"),
    [
        (lambda text: text.index("good") < text.index("bad"), [1, -1]),  # knows what is good
        (lambda text: True, [0, 0]),  # always the first: it contradicts itself
        (lambda text: False, [0, 0]),
    ],
)
def test_both_orders_have_to_agree(
    monkeypatch: pytest.MonkeyPatch, prefers: Callable[[str], bool], outcomes: list[int]
) -> None:
    def answers(backbone: Any, questions: list[str], progress: Any) -> list[bool]:
        return [prefers(question) for question in questions]

    monkeypatch.setattr(model_judge, "prefers_first", answers)
    pairs: Any = (["p", "p"], ["good", "bad"], ["bad", "good"])
    assert judge_pairs_by_model(None, "{prompt}{first} {second}", *pairs) == outcomes  # type: ignore[arg-type]


def test_a_letter_of_several_tokens_is_refused() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, 2]}

    with pytest.raises(UserError, match="as 2 tokens"):
        letter_token(tokenizer, "A")


def test_the_command_with_a_judging_model(
    tiny: Backbone,
    make_base: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    randomise: Callable[..., None],
) -> None:
    from lorarlhf.cli.main import main
    from lorarlhf.runtime.files import write_jsonl
    from lorarlhf.runtime.run import Run

    run = Run(tmp_path / "run", "sft", {"seed": 0, "compute_dtype": "float32"})
    run.base(tiny)
    randomise(tiny, "policy", std=0.3)
    tiny.save("policy", run.folder / "adapters" / "policy")
    write_jsonl(tmp_path / "held.jsonl", [{"prompt": f"{n}?"} for n in range(6)])
    judge, page = make_base(seed=9), tmp_path / "out"
    words = ["eval", str(run.folder), "--prompts", str(tmp_path / "held.jsonl"), "--no-skills"]
    words += ["--max-new-tokens", "5", "--judge-model", str(judge), "--out", str(page), "--json"]
    words += ["--set", "bits=16", "--set", "device=cpu"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["judges"]
    assert one["judge"] == f"model {judge}" and one["independent"]
    (result,) = one["results"]
    assert result["n"] == 6
    verdicts = [row["verdicts"][one["judge"]]["run"] for row in told["answers"]]
    backbone = Backbone.load(str(judge), bits=16, compute_dtype="float32")
    texts = [[row["answers"][name] for row in told["answers"]] for name in ("run", "base")]
    prompts = [row["prompt"] for row in told["answers"]]
    assert verdicts == judge_pairs_by_model(backbone, TEMPLATE, prompts, *texts)
