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
    letter_tokens,
    preferred_side,
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
    found = preferred_side(tiny, questions, counted.append)
    assert sum(counted) == 3
    a, b = (tiny.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
    for question, first in zip(questions, found, strict=True):
        ids = tiny.encode([{"role": "user", "content": question}])
        with torch.no_grad(), tiny.role("base"):
            logits = tiny.causal(torch.tensor([ids])).logits[0, -1]
        assert first == int((logits[a] - logits[b]).sign())


@pytest.mark.parametrize(
    ("prefers", "outcomes"),
    [
        (lambda text: 1 if text.index("good") < text.index("bad") else -1, [1, -1]),
        (lambda text: 1, [0, 0]),  # always the first: it contradicts itself
        (lambda text: -1, [0, 0]),
        (lambda text: 0, [0, 0]),
        (lambda text: 1 if text.index("good") < text.index("bad") else 0, [0, 0]),
    ],
)
def test_both_orders_have_to_agree(
    monkeypatch: pytest.MonkeyPatch, prefers: Callable[[str], int], outcomes: list[int]
) -> None:
    def answers(backbone: Any, questions: list[str], progress: Any) -> list[int]:
        return [prefers(question) for question in questions]

    monkeypatch.setattr(model_judge, "preferred_side", answers)
    pairs: Any = (["p", "p"], ["good", "bad"], ["bad", "good"])
    assert judge_pairs_by_model(None, "{prompt}{first} {second}", *pairs) == outcomes  # type: ignore[arg-type]


def test_a_letter_of_several_tokens_is_refused() -> None:
    class Tokenizer:
        chat_template = "{{ messages }}"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    with pytest.raises(UserError, match="as one token each"):
        letter_tokens(Tokenizer())


def test_a_base_without_a_chat_template_is_asked_with_a_cue(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    text = "Which?\nAnswer: A"
    *before, letter = tiny.tokenizer(text)["input_ids"]
    assert letter_tokens(tiny.tokenizer)[0] == letter
    seen: list[list[int]] = []
    forward = tiny.causal.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"][0].tolist())
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny.causal, "forward", watched)
    preferred_side(tiny, ["Which?"], lambda done: None)
    assert seen == [before]


def test_equal_logits_are_a_tie(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    a = letter_tokens(tiny.tokenizer)[0]
    monkeypatch.setattr(model_judge, "letter_tokens", lambda tokenizer: [a, a])
    assert preferred_side(tiny, ["Which?", "Why?"], lambda done: None) == [0, 0]


def test_a_question_that_is_too_long_names_what_can_be_shortened(tiny: Backbone) -> None:
    long = "word " * (model_judge.MOST_TOKENS + 10)
    with pytest.raises(UserError, match="1 of 2 questions to the judging model") as error:
        preferred_side(tiny, [long, "Why?"], lambda done: None)
    assert "--judge-prompt" in str(error.value) and "max_prompt_tokens" not in str(error.value)


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
    words[words.index(str(judge))] = str(tiny.base_path)
    words[words.index(str(page))] = str(tmp_path / "own")
    assert main(words) == 0
    (own,) = json.loads(capsys.readouterr().out)["judges"]
    assert not own["independent"] and "the candidates' own base" in own["note"]
    verdicts = [row["verdicts"][one["judge"]]["run"] for row in told["answers"]]
    backbone = Backbone.load(str(judge), bits=16, compute_dtype="float32")
    texts = [[row["answers"][name] for row in told["answers"]] for name in ("run", "base")]
    prompts = [row["prompt"] for row in told["answers"]]
    assert verdicts == judge_pairs_by_model(backbone, TEMPLATE, prompts, *texts)
