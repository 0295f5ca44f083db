"""The command `ppo`: mixed rewards, reward models, held-out prompts with a judge, and RLOO."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lorarlhf.cli.main import main
from lorarlhf.rewards.classifier import load_classifier
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl

QUESTIONS = [f"What is {number} and why?" for number in range(8)]
REWARDS = """
def length(prompts, completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]

async def ended(prompts, completions, ended, **columns):
    return [1.0 if e else None for e in ended]

def shortness(prompts, completions, **columns):
    return [-float(len(c[0]["content"])) for c in completions]
"""
SETS = ("bits=16", "compute_dtype=float32", "lora_rank=4", "updates=2", "rollout_batch_size=4")
SETS += ("max_new_tokens=6", "save_steps=1")
RLOO = ("algorithm=rloo",)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ppo(
    tmp_path: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """`lorarlhf ppo` in a folder with prompts and reward functions, on the tiny base."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": q} for q in QUESTIONS])
    write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": f"Is {q}"} for q in QUESTIONS[:3]])
    (tmp_path / "rewards.py").write_text(REWARDS)

    def run(*words: str, sets: tuple[str, ...] = ()) -> tuple[int, str, str]:
        told = [part for text in (*SETS, *sets) for part in ("--set", text)]
        fixed = ["--prompts", "prompts.jsonl", "--base", str(tiny_base), "--out", "run", "--json"]
        status = main(["ppo", *fixed, *words, *told])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def reward_run(tmp_path: Path, tiny_base: Path) -> Path:
    pairs = {"chosen": "It is good.", "rejected": "No idea at all, sorry."}
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": q, **pairs} for q in QUESTIONS])
    told = [part for text in (*SETS[:3], "epochs=0") for part in ("--set", text)]
    files = ["--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "reward")]
    assert main(["reward", *files, "--base", str(tiny_base), *told]) == 0
    return tmp_path / "reward"


# ---- rewards of every kind


def test_role_functions_and_a_reward_model_are_mixed_with_weights(
    reward_run: Path, ppo: Run, tmp_path: Path, tiny_base: Path
) -> None:
    model = _reward_model(tiny_base, tmp_path / "rm")
    words = ("--reward", "reward", "--reward-function", "rewards.py:length")
    words += ("--reward-function", "rewards.py:ended", "--reward-model", str(model))
    status, _, err = ppo(*words, sets=("reward_weights=[2, 0.5, 1, 3]",))
    assert status == 0, err
    rows = [row for row in metrics(tmp_path / "run") if "score" in row]  # the rest are alarms
    assert len(rows) == 2
    for row in rows:
        role, length, model = (row[f"score/{name}"] for name in ("reward", "length", "rm"))
        # `ended` has an opinion on answers that ended alone; None counts as nothing.
        assert row.get("score/ended", 1.0) == 1.0
        wanted = 2 * role + 0.5 * length + row["ended_fraction"] + 3 * model
        assert row["score"] == pytest.approx(wanted, abs=1e-4)


def _reward_model(base: Path, folder: Path, labels: int = 1) -> Path:
    """A tiny random reward model with the base's tokenizer and chat template."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_reads_the_conversation_by_its_own_template(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = _reward_model(tiny_base, tmp_path / "rm")
    reward = load_classifier(str(folder), torch.device("cpu"))
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "What is a long question?")]
    answers = [[{"role": "assistant", "content": text}] for text in ("Yes.", "No, never at all")]
    scores = reward(prompts=prompts, completions=answers, ended=[True, True])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder)
    for score, prompt, answer in zip(scores, prompts, answers, strict=True):
        ids = tokenizer.apply_chat_template(prompt + answer, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            alone = model(input_ids=ids["input_ids"]).logits[0, 0].item()
        assert score == pytest.approx(alone, abs=1e-5)


def test_a_classifier_with_another_tokenizer_scores_the_answer_by_a_label(
    tiny_base: Path, tmp_path: Path
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "mood")
    tokenizer.save_pretrained(tmp_path / "mood")
    device = torch.device("cpu")
    both = [
        load_classifier(f"{tmp_path / 'mood'}#{label}", device)(
            prompts=["One?", "Another, longer?"], completions=["Fine day", "Bad"]
        )
        for label in ("positive", "NEGATIVE")
    ]
    for good, bad in zip(*both, strict=True):
        probabilities = torch.tensor([good, bad]).exp()
        assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(
        UserError, match="has several outputs.*#LABEL, where LABEL is one of NEGATIVE"
    ):
        load_classifier(str(tmp_path / "mood"), device)
    with pytest.raises(UserError, match="has no label happy"):
        load_classifier(f"{tmp_path / 'mood'}#happy", device)


def test_what_is_no_reward_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a reward model: its file lacks score.weight"):
        load_classifier(str(tiny_base), torch.device("cpu"))
    with pytest.raises(UserError, match="could not be loaded"):
        load_classifier(str(tmp_path / "nowhere"), torch.device("cpu"))


# ---- pessimism


def test_pessimism_needs_the_votes_of_the_reward_run(
    reward_run: Path, ppo: Run, tmp_path: Path
) -> None:
    sets = ("reward_pessimism=1",)
    status, _, err = ppo("--reward", "reward", sets=sets)
    assert status == 0, err
    rows = [row for row in metrics(tmp_path / "run") if "score" in row]
    assert len(rows) == 2 and all(row["reward_deviation"] > 0 for row in rows)
    (reward_run / "votes.safetensors").unlink()
    status, _, err = ppo("--reward", "reward", "--out", "other", sets=sets)
    assert status == 2 and "needs the votes of the reward run" in err
    assert not (tmp_path / "other").exists()


# ---- held-out prompts


def test_held_out_prompts_are_measured_and_judged(ppo: Run, tmp_path: Path) -> None:
    words = ("--reward-function", "rewards.py:length", "--eval", "heldout.jsonl")
    words += ("--judge-function", "rewards.py:shortness")
    status, out, err = ppo(*words, sets=("eval_steps=1",))
    assert status == 0, err
    rows = [row for row in metrics(tmp_path / "run") if "eval_score" in row]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["eval_judge"] == -row["eval_score"]
        assert 1 <= row["eval_length"] <= 6
    assert rows[0]["eval_kl"] == 0.0
    summary = json.loads(out)
    assert summary["eval_score"] == rows[-1]["eval_score"]
    assert summary["eval_judge"] == rows[-1]["eval_judge"]


JUDGED = ("--eval", "heldout.jsonl", "--judge-function", "rewards.py:length")


@pytest.mark.parametrize(
    ("words", "sets", "said"),
    [
        (("--judge-function", "rewards.py:length"), (), "A judge needs held-out prompts: add --ev"),
        ((), ("kl_budget=3",), "kl_budget needs held-out prompts: add --eval FILE"),
        ((), ("eval_kl_steps=2",), "eval_kl_steps needs held-out prompts: add --eval FILE"),
        ((), ("reward_pessimism=1",), "name its run with --reward RUN"),
        ((), ("keep_best_by=judge",), "keep_best_by judge needs a judge: add --judge-function"),
        (JUDGED, ("keep_best_by=judge",), "inside a KL budget, and without one the last"),
        ((), ("reward_weights=[1, 2]",), "a list of 1 numbers here"),
        ((), ("reward_weights=[x]",), "a list of 1 numbers here"),
        ((), ("algorithm=grpo",), "algorithm is ppo or rloo, found"),
        ((), ("algorithm=rloo", "gae_lambda=0.9"), "does not use gae_lambda"),
        ((), ("num_generations=2",), "num_generations is for algorithm rloo"),
        (("--reward-model", "nowhere"), (), "The reward model nowhere could not be loaded"),
    ],
)
def test_what_does_not_fit_together_is_told(
    ppo: Run, tmp_path: Path, words: tuple[str, ...], sets: tuple[str, ...], said: str
) -> None:
    status, _, err = ppo("--reward-function", "rewards.py:length", *words, sets=sets)
    assert status == 2 and said in err
    assert not (tmp_path / "run").exists()


# ---- RLOO


def test_rloo_is_the_same_command_with_the_same_report(
    reward_run: Path, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last log line, the summary and the report are those of PPO; there is no value."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": q} for q in QUESTIONS])
    sets = [
        *SETS[:6],
        "learning_rate=0.01",
        "save_steps=1",
        "trl.epsilon_high=0.3",
        "algorithm=rloo",
        "num_generations=2",
        "num_ppo_epochs=2",
        "reward_pessimism=0.5",
    ]
    told = [part for text in sets for part in ("--set", text)]
    words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
    words += ["--reward", str(reward_run), "--out", str(tmp_path / "rloo"), "--json"]
    words += ["--reward-function", f"{tmp_path / 'rewards.py'}:length"]
    capsys.readouterr()
    assert main([*words, *told]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["updates"], summary["episodes"]) == (2, 8)
    assert {"seconds_per_update", "kl_per_sequence", "peak_rss_mb"} <= summary.keys()
    folder = tmp_path / "rloo"
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert {"score", "kl", "entropy", "completion_length", "ended_fraction"} <= row.keys()
        assert row["score"] == pytest.approx(row["score/length"] + row["score/reward"], abs=1e-3)
        assert row["reward_deviation"] > 0
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5) and abs(rows[1]["kl"]) > 1e-3
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "RLOO run" in page and "After 2 updates of RLOO, " in page
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert (folder / "adapters/policy/adapter_config.json").is_file()
    assert not (folder / "adapters/value").exists()
    reference = load_file(folder / "adapters/reference/adapter_model.safetensors")
    policy = load_file(folder / "adapters/policy/adapter_model.safetensors")
    moved = [name for name, weight in policy.items() if not torch.equal(weight, reference[name])]
    assert len(moved) > len(policy) / 2
    assert read_json(folder / "run.json")["config"]["algorithm"] == "rloo"


def test_rloo_trains_on_fewer_prompts_than_an_update_has(ppo: Run, tmp_path: Path) -> None:
    """TRL drops what does not fill an update; one prompt is then asked again."""
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?"}])
    status, out, err = ppo(
        "--prompts", "one.jsonl", "--reward-function", "rewards.py:length", sets=RLOO
    )
    assert status == 0, err
    assert json.loads(out)["updates"] == 2
