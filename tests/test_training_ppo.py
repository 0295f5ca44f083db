"""The command `ppo`: mixed rewards, reward models, held-out prompts, and RLOO and GRPO."""

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
from tests.training_steps import ctrl_c_at

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
CRITIC_FREE = ("rloo", "grpo")
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
        ((), ("algorithm=dpo",), "algorithm is ppo, rloo or grpo, found"),
        ((), ("algorithm=rloo", "gae_lambda=0.9"), "does not use gae_lambda"),
        ((), ("algorithm=grpo", "num_generations=3"), "divides rollout_batch_size (4), found 3"),
        ((), ("num_generations=2",), "num_generations is for the algorithms rloo and grpo"),
        (("--reward-model", "nowhere"), (), "The reward model nowhere could not be loaded"),
    ],
)
def test_what_does_not_fit_together_is_told(
    ppo: Run, tmp_path: Path, words: tuple[str, ...], sets: tuple[str, ...], said: str
) -> None:
    status, _, err = ppo("--reward-function", "rewards.py:length", *words, sets=sets)
    assert status == 2 and said in err
    assert not (tmp_path / "run").exists()


# ---- RLOO and GRPO


@pytest.mark.parametrize("algorithm", CRITIC_FREE)
def test_without_a_critic_it_is_the_same_command_with_the_same_report(
    algorithm: str,
    reward_run: Path,
    tmp_path: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last log line, the summary and the report are those of PPO; there is no value."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": q} for q in QUESTIONS])
    sets = [
        *SETS[:6],
        "learning_rate=0.01",
        "save_steps=1",
        "trl.epsilon_high=0.3",
        f"algorithm={algorithm}",
        "num_generations=2",
        "num_ppo_epochs=2",
        "reward_pessimism=0.5",
    ]
    told = [part for text in sets for part in ("--set", text)]
    words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
    words += ["--reward", str(reward_run), "--out", str(tmp_path / "run"), "--json"]
    words += ["--reward-function", f"{tmp_path / 'rewards.py'}:length"]
    capsys.readouterr()
    assert main([*words, *told]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["updates"], summary["episodes"]) == (2, 8)
    assert summary["algorithm"] == algorithm
    assert {"seconds_per_update", "kl_per_sequence", "peak_rss_mb"} <= summary.keys()
    folder = tmp_path / "run"
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert {"score", "kl", "entropy", "completion_length", "ended_fraction"} <= row.keys()
        assert row["score"] == pytest.approx(row["score/length"] + row["score/reward"], abs=1e-3)
        assert row["reward_deviation"] > 0
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5) and abs(rows[1]["kl"]) > 1e-3
    page = (folder / "report.html").read_text(encoding="utf-8")
    name = algorithm.upper()
    assert f"{name} run" in page and f"After 2 updates of {name}, " in page
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert (folder / "adapters/policy/adapter_config.json").is_file()
    assert not (folder / "adapters/value").exists()
    reference = load_file(folder / "adapters/reference/adapter_model.safetensors")
    policy = load_file(folder / "adapters/policy/adapter_model.safetensors")
    moved = [name for name, weight in policy.items() if not torch.equal(weight, reference[name])]
    assert len(moved) > len(policy) / 2
    assert read_json(folder / "run.json")["config"]["algorithm"] == algorithm
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert steps == ["checkpoint-1", "checkpoint-2"]  # counted in updates, as PPO's


def test_without_a_critic_it_trains_on_fewer_prompts_than_an_update_has(
    ppo: Run, tmp_path: Path
) -> None:
    """TRL drops what does not fill an update; one prompt is then asked again."""
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?"}])
    words = ("--prompts", "one.jsonl", "--reward-function", "rewards.py:length")
    status, out, err = ppo(*words, sets=("algorithm=grpo", "num_generations=2"))
    assert status == 0, err
    assert json.loads(out)["updates"] == 2


SEEN = """
import json
def seen(prompts, completions, **columns):
    kept = {"prompts": prompts, "answers": completions}
    kept["state"] = columns.pop("trainer_state").max_steps > 0
    for name in ("log_extra", "log_metric"):  # TRL's own, for its tables
        columns.pop(name, None)
    with open("seen.jsonl", "a") as file:
        print(json.dumps(kept | columns), file=file)
    return [float(len(c[0]["content"])) for c in completions]
"""


def test_reward_functions_get_the_same_from_every_algorithm(ppo: Run, tmp_path: Path) -> None:
    """The prompts in PPO's order, the dataset's columns, the ids, and who ended by itself."""
    (tmp_path / "seen.py").write_text(SEEN)
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": q, "kind": q[:6]} for q in QUESTIONS])
    found = {}
    for algorithm in ("ppo", *CRITIC_FREE):
        (tmp_path / "seen.jsonl").unlink(missing_ok=True)
        words = ("--prompts", "rows.jsonl", "--reward-function", "seen.py:seen")
        sets = ["updates=1", "save_steps=2", f"algorithm={algorithm}"]
        sets += ["num_generations=2"] if algorithm != "ppo" else ["rollout_batch_size=2"]
        status, _, err = ppo(*words, "--out", algorithm, sets=tuple(sets))
        assert status == 0, err
        calls = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
        found[algorithm] = calls[1]  # the first are the samples before the first update
    ppo_call = found.pop("ppo")
    for call in found.values():
        assert call.keys() == ppo_call.keys() and call["state"]
        assert call["prompts"] == [p for p in ppo_call["prompts"] for _ in range(2)]
        assert call["kind"] == [row[0]["content"][:6] for row in call["prompts"]]
        for answer, ids, ended in zip(
            call["answers"], call["completion_ids"], call["ended"], strict=True
        ):
            assert answer[0]["role"] == "assistant" and 1 <= len(ids) <= 6
            assert ended == (len(ids) < 6 or ids[-1] == 2)


def test_without_a_critic_ctrl_c_ends_after_the_update_and_resume_goes_on(
    ppo: Run, tmp_path: Path
) -> None:
    """RLOO; GRPO, which shares the code, is killed in tests/invariants."""
    words = ("--reward-function", "rewards.py:length")
    sets = ("algorithm=rloo", "num_generations=2", "updates=4", "save_steps=3")
    sets += ("num_ppo_epochs=2", "num_minibatches=2", "learning_rate=0.01", "lora_dropout=0.1")
    status, out, err = ppo(*words, "--out", "whole", sets=sets)
    assert status == 0, err
    with ctrl_c_at(2):
        status, out, err = ppo(*words, "--out", "parts", sets=sets)
    assert (status, out) == (130, "") and "To resume where it ended" in err
    assert (tmp_path / "parts/checkpoints/checkpoint-3").is_dir()  # not within an update
    status, out, err = ppo(*words, "--out", "parts", "--resume", sets=sets)
    assert status == 0 and "Continuing after update 3." in err
    assert json.loads(out)["updates"] == 4

    def kept(name: str) -> list[dict[str, Any]]:
        rows = metrics(tmp_path / name)
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]

    assert kept("parts") == kept("whole")
    file = "adapters/policy/adapter_model.safetensors"
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    told = (tmp_path / "parts/samples.jsonl").read_text()
    assert told.count('"step": 4') == (tmp_path / "whole/samples.jsonl").read_text().count(
        '"step": 4'
    )


# ---- a budget of minutes


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_training_ends_when_its_minutes_are_over(
    algorithm: str, ppo: Run, tmp_path: Path
) -> None:
    words = ("--reward-function", "rewards.py:length", "--minutes", "0.03")
    sets = (f"algorithm={algorithm}", "updates=1000000", "save_steps=1000000")
    status, out, err = ppo(*words, sets=sets)
    assert status == 0, err
    assert "The 0.03 minutes of training are over" in err
    updates = json.loads(out)["updates"]
    rows = [row for row in metrics(tmp_path / "run") if "score" in row]
    assert 1 <= updates == len(rows)
    spent = [row["trained_seconds"] for row in rows]
    assert spent == sorted(spent) and all(second < 1.8 for second in spent[:-1])
    assert (tmp_path / "run/adapters/policy/adapter_config.json").is_file()
    about = read_json(tmp_path / "run/run.json")
    assert about["minutes"] == 0.03 and 1.8 <= about["trained_seconds"] < 30
    # A run that goes on has only what is left of its minutes.
    about["status"] = "stopped"
    (tmp_path / "run/run.json").write_text(json.dumps(about))
    status, out, err = ppo(*words, "--resume", sets=sets)
    assert status == 0 and json.loads(out)["updates"] == updates + 1
    status, _, err = ppo(*words[:2], "--minutes", "0")
    assert status == 2 and "--minutes is above 0" in err
