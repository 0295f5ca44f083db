"""`lorarlhf dpo --set rounds=N`: pairs labelled by the reward role, rounds, stops and resuming."""

import json
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.cli.project_defaults import fill_in
from lorarlhf.cli.request import TrainRequest
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import RANKED, ImportedVote, Verdict
from lorarlhf.project.project import create
from lorarlhf.rewards.deviation import ScoreDeviation, score_with_deviations, score_with_vectors
from lorarlhf.rewards.role import encode_answer, pooled_states
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.stages import iterated_dpo
from lorarlhf.stages.iterated_dpo import train_iterated_dpo
from lorarlhf.stages.round_alarms import round_alarms
from lorarlhf.stages.round_inputs import (
    CLOSE,
    CUT_OFF,
    EQUAL,
    IteratedDPOSettings,
    Labels,
    best_and_worst,
    keep_labels,
    kept_labels,
    pair_up,
    split_prompts,
    with_same_columns,
    without_held_out,
)
from lorarlhf.stages.table import STAGES
from tests.training_steps import Train, rows_of, summary_of

pytest_plugins = ("tests.training_steps",)

ROUNDS = ["rounds=2", "round_prompts=4", "num_generations=3", "max_new_tokens=6", "epochs=1"]
ROUNDS += ["batch_size=4", "micro_batch_size=2", "learning_rate=0.01", "save_steps=1"]
ROUNDS += ["lora_dropout=0.1"]
WORDS = ("dpo", "--data", "pairs.jsonl", "--prompts", "prompts.jsonl", "--json")


# ---- by hand


def test_the_best_and_the_worst_answer_are_a_pair() -> None:
    assert best_and_worst(["a", "b", "c"], [0.1, 0.9, 0.4]) == (1, 0)
    assert best_and_worst(["a", " ", "c"], [0.1, 0.9, 0.4]) == (2, 0)  # blank ones do not count
    assert best_and_worst(["a", ""], [0.1, 0.9]) is None
    assert best_and_worst(["a", "a"], [0.9, 0.1]) is None
    assert best_and_worst(["a", "b"], [0.5, 0.5]) is None


def test_a_cut_off_answer_is_never_the_better_one() -> None:
    texts, scores = ["a", "b", "c"], [0.9, 0.4, 0.1]
    assert best_and_worst(texts, scores, [False, True, False]) == (1, 2)
    assert best_and_worst(texts, scores, [False, False, True]) is None  # it is also the worst
    assert best_and_worst(texts, scores, [False] * 3) is None
    settings = IteratedDPOSettings(num_generations=2, least_gap=0.0)
    texts, scores = ["a", "b", "a", "b", "a", "a"], [1.0, 0.0] * 3
    ended = [True, False, False, True, False, False]
    labels = pair_up([4, 4, 6, 6, 8, 8], texts, scores, lambda one, other: 0.5, settings, ended)
    assert [pair["row"] for pair in labels.pairs] == [4]
    assert labels.left_out == {CUT_OFF: 1, EQUAL: 1}


def test_pairs_below_the_doubt_are_left_out_and_counted() -> None:
    texts = ["good", "bad", "x", "y", "same", "same"]
    scores = [2.0, 0.0, 1.0, 0.6, 1.0, 0.0]
    settings = IteratedDPOSettings(num_generations=2, least_gap=1.0)
    labels = pair_up([7, 7, 3, 3, 5, 5], texts, scores, lambda one, other: 0.5, settings)
    assert labels.pairs == [
        {"row": 7, "chosen": "good", "rejected": "bad", "gap": 2.0, "deviation": 0.5}
    ]
    assert labels.left_out == {CLOSE: 1, EQUAL: 1}
    assert labels.score == pytest.approx(4.6 / 6)
    settings = IteratedDPOSettings(num_generations=2, least_gap=0.0)
    labels = pair_up([7, 7, 3, 3, 5, 5], texts, scores, lambda one, other: 0.5, settings)
    assert [pair["row"] for pair in labels.pairs] == [7, 3]


def test_held_out_prompts_are_at_most_a_quarter() -> None:
    rows = [{"prompt": str(n)} for n in range(10)]
    learned, held_out = split_prompts(rows, seed=1)
    assert len(held_out) == 2 and sorted(map(str, learned + held_out)) == sorted(map(str, rows))
    assert split_prompts(rows, seed=1) == (learned, held_out)
    assert len(split_prompts([{"prompt": str(n)} for n in range(400)], 0)[1]) == 32
    with pytest.raises(UserError, match="need 8 prompts or more"):
        split_prompts(rows[:7], 0)


def test_votes_on_held_out_prompts_are_not_learned_from() -> None:
    rows = [{"prompt": [{"role": "user", "content": f"What is {n}?"}]} for n in range(12)]
    votes = [{"prompt": f"What is  {n}?"} for n in range(10)]  # a question alone, other blanks
    learned, held_out = split_prompts(rows, 3, votes)
    assert rows[10] in held_out and rows[11] in held_out and len(held_out) == 3
    kept = without_held_out(votes, held_out)
    assert len(kept) == 9 and not [row for row in held_out if row in learned]
    assert without_held_out(kept, learned) == []  # each is on a prompt to learn from


def test_new_pairs_get_the_columns_that_votes_have() -> None:
    rows = with_same_columns([{"prompt": "a", "margin": 2.0}, {"prompt": "b"}])
    assert rows == [{"margin": 2.0, "prompt": "a"}, {"margin": 0.0, "prompt": "b"}]
    assert with_same_columns([{"prompt": "b"}]) == [{"prompt": "b"}]


def test_pairs_that_were_kept_belong_to_their_prompts(tmp_path: Path) -> None:
    file, prompts = tmp_path / "pairs.jsonl", [{"prompt": "a"}, {"prompt": "b"}]
    labels = Labels([{"row": 1, "chosen": "x", "rejected": "y"}], Counter({EQUAL: 1}), 0.5, 3.0)
    assert keep_labels(file, labels, prompts) == kept_labels(file, prompts) == labels
    with pytest.raises(UserError, match=r"not those that the answers in .*pairs\.jsonl belong to"):
        kept_labels(file, prompts[::-1])
    head, *pairs = rows_of(file)
    del head["prompts"], head["seconds"]  # as an older version wrote it
    write_jsonl(file, [head, *pairs])
    assert kept_labels(file, prompts[::-1]) == replace(labels, seconds=0.0)


@pytest.mark.parametrize("wrong", [{}, {"rounds": 1, "num_generations": 1}])
def test_settings_that_train_nothing_are_refused(
    tmp_path: Path, tiny: Backbone, wrong: dict[str, int]
) -> None:
    prompts = [{"prompt": str(number)} for number in range(8)]
    run = iterated_dpo.Run(tmp_path / "run", "dpo", {})
    with pytest.raises(UserError, match="rounds of 1 or more and num_generations of 2 or more"):
        train_iterated_dpo(tiny, [], prompts, run, IteratedDPOSettings(**wrong))


def test_alarms_of_a_round() -> None:
    start = {"eval_length": 10.0, "eval_ended": 0.8, "eval_kl": 0.0}
    calm = start | {"pairs": 3, "left_out": {CLOSE: 1}}
    assert round_alarms([start]) == {} and round_alarms([start, calm]) == {}
    assert set(round_alarms([start, calm | {"pairs": 1, "left_out": {CLOSE: 7}}])) == {"few_pairs"}
    assert set(round_alarms([start, calm | {"eval_kl": 5.1}])) == {"kl_runaway"}
    assert set(round_alarms([start, calm | {"eval_ended": 0.1}])) == {"endless_answers"}
    assert set(round_alarms([start, calm | {"eval_length": 21.0}])) == {"length_drift"}


def test_the_doubt_of_a_difference_is_the_length_of_the_difference(
    tiny: Backbone, randomise: Callable[..., None]
) -> None:
    tiny.add_role("reward")
    prompts = ["Why?", "How?", "When?", "Who?"]
    good, bad = ["A good one.", "So.", "At noon.", "He."], ["No", "Bad", "Never ever.", "Nobody"]
    sides = [
        pooled_states(tiny, [encode_answer(tiny, p, a) for p, a in zip(prompts, side, strict=True)])
        for side in (good, bad)
    ]
    votes = VoteFit()
    votes.add_all(*sides, prompts)
    posterior = votes.posterior()
    deviation = ScoreDeviation.of(posterior)
    scores, vectors = score_with_vectors(tiny, prompts, good, deviation)
    same, lengths = score_with_deviations(tiny, prompts, good, deviation)
    assert scores == same and vectors.norm(dim=1).tolist() == pytest.approx(lengths)
    _, others = score_with_vectors(tiny, prompts, bad, deviation)
    # Without the shrinking of short answers, it is the posterior's own deviation of a margin.
    one, other = (torch.full((4,), 1e9) for _ in range(2))
    apart = deviation.vectors(torch.tensor(sides[0]), one) - deviation.vectors(
        torch.tensor(sides[1]), other
    )
    _, wanted = posterior.margins(*sides)
    assert apart.norm(dim=1).tolist() == pytest.approx(wanted.tolist(), rel=1e-3)
    assert (vectors - others).norm(dim=1).max() < apart.norm(dim=1).max()


# ---- the command


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base's answers count as ended, though its stop token is as rare as any other."""
    generate = iterated_dpo.generate_encoded

    def ended(*given: Any, **named: Any) -> list[Completion]:
        return [replace(answer, ended=True) for answer in generate(*given, **named)]

    monkeypatch.setattr(iterated_dpo, "generate_encoded", ended)


def without_seconds(file: Path) -> list[dict[str, Any]]:
    rows = rows_of(file)
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def test_rounds_from_votes_and_from_labelled_answers(
    work: Path, train: Train, reward_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, names = iterated_dpo.run_dpo, []
    monkeypatch.setattr(
        iterated_dpo,
        "run_dpo",
        lambda *given: (names.append(given[2].args.run_name), learn(*given))[1],
    )
    sets = [*ROUNDS, "least_gap=0"]
    status, out, err = train(*WORDS, "--reward", "runs/reward", "--out", "rounds", sets=sets)
    assert status == 0 and "2 of 8 rows are on held-out prompts" in err
    summary = json.loads(out)
    folder = work / "rounds"
    rows = [row for row in rows_of(folder / "metrics.jsonl") if "eval_score" in row]
    done = summary["rounds"]
    assert 1 <= done <= 2 and [row["step"] for row in rows] == list(range(done + 1))
    assert rows[0]["eval_kl"] == pytest.approx(0.0, abs=1e-4) and rows[1]["eval_kl"] != 0
    assert rows[1]["pairs"] + sum(rows[1]["left_out"].values()) == 4
    assert (summary["votes"], summary["votes_left_out"]) == (6, 2)
    scores = [row["eval_score"] for row in rows]
    assert summary["best_round"] == scores.index(max(scores))
    assert summary["score_best"] == max(scores) and summary["score_first"] == scores[0]
    assert done == 2 or scores[1] <= scores[0]  # it ends early only where nothing was gained
    pairs = rows_of(folder / "rounds/1/pairs.jsonl")[1:]
    assert len(pairs) == rows[1]["pairs"] and all(pair["gap"] > 0 for pair in pairs)
    inner = read_json(folder / "rounds/1/run.json")
    assert inner["status"] == "done" and inner["summary"]["rows"] == 6 + len(pairs)
    assert (folder / "report.html").is_file() and names[0] == "rounds-round-1"
    config = read_json(folder / "run.json")["config"]
    assert Path(config["reward"]).name == "reward" and config["rounds"] == 2


def test_rounds_that_were_stopped_go_on(
    work: Path, train: Train, reward_run: Path, endings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the DPO of the first round, the run resumes as if it had not been."""
    monkeypatch.setattr(iterated_dpo._Rounds, "_best", lambda self: len(self.rows) - 1)
    words = (*WORDS, "--reward", "runs/reward", "--minutes", "9")
    sets = [*ROUNDS, "least_gap=0"]
    whole = summary_of(train(*words, "--out", "whole", sets=sets))
    assert whole["rounds"] == 2
    before = iterated_dpo.Run.log

    def dies(self: Any, row: dict[str, Any], stage: str | None = None) -> None:
        before(self, row, stage)
        if self.folder.name == "1" and row.get("step") == 2:
            raise MemoryError("killed")  # as from outside: nothing more is written

    monkeypatch.setattr(iterated_dpo.Run, "log", dies)
    status, _, _ = train(*words, "--out", "parts", sets=sets)
    assert status == 1
    monkeypatch.setattr(iterated_dpo.Run, "log", before)
    file = work / "parts/rounds/1/pairs.jsonl"
    head, *pairs = rows_of(file)
    assert head["seconds"] > 0
    write_jsonl(file, [head | {"seconds": 100.0}, *pairs])  # it took long
    answers = file.read_bytes()
    # The pairs name prompts by their number, so other prompts would be other pairs.
    prompts = rows_of(work / "prompts.jsonl")
    write_jsonl(work / "prompts.jsonl", prompts[::-1])
    status, _, err = train(*words, "--out", "parts", "--resume", sets=sets)
    assert status == 2 and "The prompts have changed" in err and "in another order" in err
    write_jsonl(work / "prompts.jsonl", [*prompts, {"prompt": "Typed on the Rate page?"}])
    kept = work / "parts/rounds/1/metrics.jsonl"
    write_jsonl(kept, [row | {"trained_seconds": 50.0} for row in rows_of(kept)])
    status, out, err = train(*words, "--out", "parts", "--resume", sets=sets)
    write_jsonl(work / "prompts.jsonl", prompts)
    assert status == 0 and "Continuing after step 0." in err, err
    assert "1 prompts were added since this run began; it goes on without them." in err
    assert (work / "parts/rounds/1/pairs.jsonl").read_bytes() == answers
    assert json.loads(out)["rounds"] == 2
    # What was spent on the round before the stop is not given again.
    first = next(row for row in rows_of(work / "parts/metrics.jsonl") if row["step"] == 1)
    assert first["seconds"] > 150
    ours, theirs = (without_seconds(work / n / "metrics.jsonl") for n in ("parts", "whole"))
    assert ours == theirs
    for file in ("adapters/policy", "rounds/1/adapters/policy", "rounds/2/adapters/policy"):
        name = f"{file}/adapter_model.safetensors"
        assert (work / "parts" / name).read_bytes() == (work / "whole" / name).read_bytes()


def test_ctrl_c_in_the_last_step_of_a_round_stops_the_rounds(
    work: Path, train: Train, reward_run: Path, endings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, "--reward", "runs/reward", "--out", "pressed")
    # A run that had a reference has left it here.
    (work / "pressed/adapters/reference").mkdir(parents=True)
    log, last = iterated_dpo.Run.log, []

    def presses(self: Any, row: dict[str, Any], stage: str | None = None) -> None:
        log(self, row, stage)
        if self.folder.name == "1" and "loss" in row:
            last.append(row["step"])
            learned = 6 + len(rows_of(self.folder / "pairs.jsonl")) - 1  # six votes, a heading
            if row["step"] == math.ceil(learned / 4):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(iterated_dpo.Run, "log", presses)
    status, _, err = train(*words, sets=[*ROUNDS, "least_gap=0", "rounds=1"])
    assert status == 130 and read_json(work / "pressed/run.json")["status"] == "stopped", err
    assert not (work / "pressed/adapters/reference").exists()
    monkeypatch.setattr(iterated_dpo.Run, "log", log)
    summary = summary_of(train(*words, "--resume", sets=[*ROUNDS, "least_gap=0", "rounds=1"]))
    rows = [row["step"] for row in rows_of(work / "pressed/rounds/1/metrics.jsonl")]
    assert summary["rounds"] == 1 and rows == last == list(range(1, last[-1] + 1))


def test_rounds_end_when_the_held_out_score_no_longer_rises(
    work: Path, train: Train, reward_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 2.0, 1.5])
    figures = {"eval_length": 5.0, "eval_ended": 1.0}
    monkeypatch.setattr(
        iterated_dpo._Rounds, "_measure", lambda self: {"eval_score": next(scores), **figures}
    )
    words = (*WORDS, "--reward", "runs/reward", "--out", "falls")
    summary = summary_of(train(*words, sets=[*ROUNDS, "rounds=9", "least_gap=0"]))
    assert (summary["rounds"], summary["best_round"]) == (2, 1)
    assert summary["ended"].startswith("Round 2 did not raise the held-out score")
    name = "adapters/policy/adapter_model.safetensors"
    assert (work / "falls" / name).read_bytes() == (work / "falls/rounds/1" / name).read_bytes()


def test_rounds_end_when_the_minutes_are_over(
    work: Path, train: Train, reward_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterated_dpo._Rounds, "_best", lambda self: len(self.rows) - 1)
    words = (*WORDS, "--reward", "runs/reward", "--out", "short", "--minutes", "0.02")
    summary = summary_of(train(*words, sets=[*ROUNDS, "rounds=1000", "least_gap=0"]))
    assert "minutes of training are over after round" in summary["ended"]
    about = read_json(work / "short/run.json")
    assert 1.2 <= about["trained_seconds"] < 60 and summary["rounds"] < 1000


@pytest.mark.parametrize(
    ("words", "sets", "said"),
    [
        (("--reward", "runs/reward"), (), "--reward is for rounds of new answers"),
        ((), ("num_generations=3",), "num_generations is for rounds of new answers"),
        (("--prompts", "prompts.jsonl"), ("rounds=2",), "need prompts and a reward role"),
        (
            ("--prompts", "prompts.jsonl", "--reward", "runs/reward"),
            ("rounds=2", "num_generations=1"),
            "num_generations is 2 or more",
        ),
    ],
)
def test_what_rounds_need_is_told(
    work: Path,
    train: Train,
    reward_run: Path,
    words: tuple[str, ...],
    sets: tuple[str, ...],
    said: str,
) -> None:
    status, _, err = train("dpo", "--data", "pairs.jsonl", "--out", "no", *words, sets=sets)
    assert status == 2 and said in err and not (work / "no").exists()


def test_the_doubt_needs_the_votes_of_the_reward_run(
    work: Path, train: Train, reward_run: Path, tmp_path: Path
) -> None:
    (work / "runs/reward/votes.safetensors").rename(tmp_path / "votes.safetensors")
    words = (*WORDS, "--reward", "runs/reward", "--out", "unsure")
    status, _, err = train(*words, sets=ROUNDS)
    (tmp_path / "votes.safetensors").rename(work / "runs/reward/votes.safetensors")
    assert status == 2 and "least_gap needs the votes of the reward run" in err
    summary = summary_of(train(*words, sets=[*ROUNDS, "rounds=1"]))
    pairs = rows_of(work / "unsure/rounds/1/pairs.jsonl")[1:]
    assert all(pair["gap"] > pair["deviation"] > 0 for pair in pairs)
    assert math.isfinite(summary["score_best"])


def test_rounds_take_what_a_project_has(
    work: Path, train: Train, reward_run: Path, tmp_path: Path
) -> None:
    project = create(tmp_path / "mine")
    votes = [
        ImportedVote(f"What is {n}?", (("A.", "base"), ("B.", "base")), Verdict(RANKED, [[0], [1]]))
        for n in range(5)
    ]
    add_votes(project.store(), votes)
    request = TrainRequest(STAGES["dpo"], project=str(project.folder), sets=("rounds=2",))
    with pytest.raises(UserError, match="has no reward yet"):
        fill_in(request)
    source = work / "runs/reward"
    target = project.folder / "runs/0001-reward"
    shutil.copytree(source, target)
    filled, _ = fill_in(request)
    assert filled.reward == str(target) and filled.prompts == str(project.prompts)
    filled, _ = fill_in(TrainRequest(STAGES["dpo"], project=str(project.folder)))
    assert filled.reward is None and filled.prompts is None
    shutil.copytree(work / "runs/reward", project.folder / "runs/0009-sft")
    about = read_json(project.folder / "runs/0009-sft/run.json") | {"stage": "sft"}
    (project.folder / "runs/0009-sft/run.json").write_text(json.dumps(about))
    (project.folder / "runs/0009-sft/adapters/reward").rename(
        project.folder / "runs/0009-sft/adapters/policy"
    )
    filled, _ = fill_in(TrainRequest(STAGES["dpo"], project=str(project.folder)))
    assert filled.init is not None and filled.init.endswith("0009-sft")
    filled, _ = fill_in(TrainRequest(STAGES["dpo"], project=str(project.folder), init="base"))
    assert filled.init is None
