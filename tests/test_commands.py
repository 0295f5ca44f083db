"""`score` and `chat` with a run of the tiny base whose adapters are known."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lorarlhf.cli.main import main
from lorarlhf.cli.result import table
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.runtime.run import Run

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone

PROMPT, ANSWERS = "How are you?", ["Very well, thank you.", "Bad.", "Very well, thank you."]
ASKED = ("--prompt", PROMPT)


@pytest.fixture
def run(tiny: "Backbone", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with policy, reference and reward, none of them the bare base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORARLHF_DEBUG", raising=False)
    made = Run(tmp_path / "run", "demo", {"seed": 0, "compute_dtype": "float32"})
    made.base(tiny)
    torch.manual_seed(0)
    for role in ("policy", "reference", "reward"):
        if role != "policy":
            tiny.add_role(role)
        for weight in tiny.parameters_of(role):
            weight.data.normal_(std=0.3)
        tiny.save(role, made.folder / "adapters" / role)
    return made.folder


def ok(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    out, err = capsys.readouterr()
    assert status == 0 and "Traceback" not in err, err
    return out


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    return err


# ---- score


def test_score_gives_one_number_an_answer(
    run: Path, tiny: "Backbone", capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for answer in ANSWERS for word in ("--answer", answer)]
    scores = json.loads(ok(capsys, "score", str(run), *ASKED, *words, "--json"))
    chats = [[{"role": "user", "content": PROMPT}]] * 3
    assert scores == pytest.approx(score_answers(tiny, chats, ANSWERS), abs=1e-5)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) and scores[0] != scores[1]


def test_score_of_plain_texts_leaves_the_template_out(
    run: Path, tiny: "Backbone", capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("score", str(run), *ASKED, "--answer", "Bad.", "--set", "plain=true", "--json")
    assert json.loads(ok(capsys, *words)) == pytest.approx(
        score_answers(tiny, [PROMPT], ["Bad."]), abs=1e-5
    )


def test_score_of_a_file_and_of_an_adapters_own_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl("answers.jsonl", [{"prompt": PROMPT, "completion": answer} for answer in ANSWERS])
    adapter = str(run / "adapters/reward")
    scores = json.loads(ok(capsys, "score", adapter, "--file", "answers.jsonl", "--json"))
    one = ok(capsys, "score", str(run), *ASKED, "--answer", ANSWERS[1], "--json")
    assert len(scores) == 3 and json.loads(one) == pytest.approx([scores[1]], abs=1e-5)


def test_score_for_people_is_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ok(capsys, "score", str(run), *ASKED, "--answer", "So\nso. " * 40).splitlines()
    assert lines[0] == "   score  answer" and len(lines) == 2
    assert lines[1].endswith("...") and float(lines[1].split()[0])


def test_score_refuses_files_without_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl("texts.jsonl", [{"text": "Only this."}])
    error = mistake(capsys, "score", str(run), "--file", "texts.jsonl")
    assert "expected the columns prompt and completion" in error


def test_score_refuses_a_setting_of_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("score", str(run), *ASKED, "--answer", "x", "--set", "epochs=3")
    assert "there is no setting epochs" in mistake(capsys, *words)


def test_score_by_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("score", str(run), *ASKED, "--answer", "Bad, very bad.")
    (score,) = json.loads(ok(capsys, *words, "--json"))
    (told,) = json.loads(ok(capsys, *words, "--words", "--json"))
    assert told["exact"] and told["score"] == pytest.approx(score, abs=1e-5)
    assert sum(told["shares"]) == pytest.approx(score, abs=1e-5)
    assert "".join(text for text, _ in told["words"]) == "".join(told["texts"])
    assert [text.strip() for text, _ in told["words"]] == ["Bad,", "very", "bad."]
    assert sum(share for _, share in told["words"]) == pytest.approx(score, abs=1e-5)
    lines = ok(capsys, *words, "--words").splitlines()
    assert lines[0].split()[1:] == ["the", "score"] and len(lines) == 4
    assert [line.split()[1] for line in lines[1:]] == ["Bad,", "very", "bad."]


# ---- chat, once


def test_chat_answers_once_and_repeats_itself(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("chat", str(run), *ASKED, "--max-new-tokens", "8", "--json")
    first, again = ok(capsys, *words, "--seed", "5"), ok(capsys, *words, "--seed", "5")
    told = json.loads(first)
    assert first == again and first.count("\n") == 1
    assert list(told) == ["role", "prompt", "answer", "seed"]
    assert (told["role"], told["prompt"], told["seed"]) == ("policy", PROMPT, 5)
    assert json.loads(ok(capsys, *words, "--seed", "6"))["answer"] != told["answer"]


def test_chat_with_each_role(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chat", str(run), *ASKED, "--max-new-tokens", "8", "--temperature", "0", "--json")
    said = {
        role: json.loads(ok(capsys, *words, "--role", role))["answer"]
        for role in ("base", "policy", "reference")
    }
    assert len(set(said.values())) == 3


def test_chat_with_a_bare_base(
    run: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("chat", *ASKED, "--max-new-tokens", "8", "--temperature", "0", "--json")
    settings = ("--set", "bits=16", "--set", "compute_dtype=float32")
    alone = json.loads(ok(capsys, *words, "--base", str(tiny_base), *settings))
    of_run = json.loads(ok(capsys, *words[:1], str(run), *words[1:], "--role", "base"))
    assert alone == of_run and alone["role"] == "base"


def test_chat_for_people_is_the_answer_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chat", str(run), *ASKED, "--max-new-tokens", "4", "--temperature", "0")
    answer = json.loads(ok(capsys, *words, "--json"))["answer"]
    assert ok(capsys, *words).rstrip("\n") == answer.rstrip("\n")


def test_the_system_message_counts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chat", str(run), *ASKED, "--max-new-tokens", "8", "--temperature", "0", "--json")
    assert ok(capsys, *words) != ok(capsys, *words, "--system", "Answer in French.")


def test_chat_refuses_a_role_that_the_run_has_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = str(run / "adapters/reward")
    assert "is a reward adapter" in mistake(capsys, "chat", reward, *ASKED)
    policy = str(run / "adapters/policy")
    error = mistake(capsys, "chat", policy, *ASKED, "--role", "reference")
    assert "is a policy adapter, and a reference is needed" in error


def test_a_long_prompt_is_told_not_cut(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chat", str(run), "--prompt", "word " * 50, "--set", "max_prompt_tokens=20")
    assert "longer than max_prompt_tokens (20)" in mistake(capsys, *words)


# ---- the best of several answers

SHORT = ("--max-new-tokens", "6")


def test_the_reward_picks_the_best(
    run: Path, tiny: "Backbone", capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("chat", str(run), *ASKED, *SHORT, "--best-of", "4", "--seed", "2", "--json")
    told = json.loads(ok(capsys, *words))
    assert len(told["answers"]) == len(told["scores"]) == 4 and len(set(told["answers"])) > 1
    chats = [[{"role": "user", "content": PROMPT}]] * 4
    assert told["scores"] == pytest.approx(score_answers(tiny, chats, told["answers"]), abs=1e-4)
    assert told["answer"] == told["answers"][told["scores"].index(max(told["scores"]))]
    assert told["kl_bound"] == pytest.approx(0.6363, abs=1e-4)
    assert ok(capsys, *words) == ok(capsys, *words)
    base = json.loads(ok(capsys, *words, "--role", "base"))
    assert base["role"] == "base" and base["answers"] != told["answers"]


def test_another_run_s_reward_picks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, reward = str(run / "adapters/policy"), str(run / "adapters/reward")
    words = ("chat", policy, *ASKED, *SHORT, "--best-of", "3", "--json")
    told = json.loads(ok(capsys, *words, "--reward", reward))
    assert told["answer"] in told["answers"] and told["role"] == "policy"
    assert "is a policy adapter, and a reward is needed" in mistake(capsys, *words)


def test_a_conversation_of_best_answers(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/role base\n/retry\n"))
    out = ok(capsys, "chat", str(run), *SHORT, "--seed", "1", "--best-of", "3")
    assert out.count("policy> ") == 1 and out.count("base> ") == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--best-of", "0"), "--best-of is 1 or more, not 0"),
        (("--best-of", "4", "--temperature", "0"), "needs answers that differ"),
        (("--reward", "x"), "add --best-of N"),
        (("--best-of", "2", "--reward", "none"), "there is no such folder"),
    ],
)
def test_mistakes_about_the_best_of(
    run: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    assert error in mistake(capsys, "chat", str(run), *ASKED, *words)


def test_the_base_alone_has_no_reward(capsys: pytest.CaptureFixture[str], tiny_base: Path) -> None:
    words = ("chat", "--base", str(tiny_base), *ASKED, "--best-of", "2")
    assert "name a run with --reward RUN" in mistake(capsys, *words)


# ---- chat, in the terminal


def test_a_conversation_from_lines(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Hi\n/role base\nHi again\n/role king\n/retry\n/reset\n/retry\n/what\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    out = ok(capsys, "chat", str(run), "--max-new-tokens", "4", "--seed", "1")
    assert out.startswith("policy answers. /role NAME")
    assert out.count("policy> ") == 1 and out.count("base> ") == 2
    assert "There is no role king here: base, policy, reference." in out
    assert "A new conversation." in out and "There is nothing to answer yet." in out


def test_table_shows_figures_shortly() -> None:
    assert table([("a", 0.123456), ("long", 12), ("c", "x")]) == "a     0.1235\nlong  12\nc     x"
    assert table([("a", float("nan")), ("b", None)]).count("not enough to tell") == 2
