"""The health of DPO, ORPO and KTO: each alarm goes off for real, and watching changes nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.evaluation.candidates import repetition
from lorarlhf.evaluation.report import write_report
from lorarlhf.ppo.alarms import WINDOW
from lorarlhf.ppo.health import Finding, diagnose
from lorarlhf.project.settings import known_keys
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, DPOSettings, train_direct
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.preference_alarms import ALARMS
from lorarlhf.stages.preference_watch import (
    PreferenceWatch,
    good_and_bad,
    is_due,
    likelihoods,
    sample_figures,
)
from lorarlhf.stages.table import STAGES

Row = dict[str, Any]
WORDS = ("tea", "a crow", "late", "wax", "cold", "a fish", "ice", "a drum")
PAIRS = [
    {"prompt": f"What is {word}?", "chosen": f"It is {word}.", "rejected": "I will not say."}
    for word in WORDS
]
ENDLESS = [row | {"chosen": "no " * 40} for row in PAIRS]  # longer than the sampled answers
OTHERS = [row | {"prompt": f"Is this it: {row['chosen']}"} for row in PAIRS]
SMALL: Row = {"batch_size": 4, "micro_batch_size": 4, "holdout": 0.0}


def load(base: Path, **named: Any) -> Backbone:
    given: Row = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4}
    return Backbone.load(str(base), **(given | named))


def train(method: str, backbone: Backbone, rows: list[Row], run: Run, **settings: Any) -> Row:
    made = SMALL | settings
    if method == "kto":
        return train_kto(backbone, rows, run, KTOSettings(**made))
    kind = DPOSettings if method == "dpo" else DirectSettings
    return train_direct(backbone, rows, run, method, kind(**made))


def log_of(run: Run) -> list[Row]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def raised(run: Run) -> set[str]:
    return {row["alarm"] for row in log_of(run) if "alarm" in row}


# ---- each alarm by a training that goes wrong


@pytest.fixture(scope="module")
def sharp_base(make_base: Callable[..., Path]) -> Path:
    """A tiny base whose probabilities can come near 0 and 1, as a real one's can."""
    return make_base(initializer_range=0.4)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_a_huge_learning_rate_makes_margins_explode(
    method: str, sharp_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, run = load(sharp_base, adapter_layers="all"), Run(tmp_path, method, {"seed": 0})
    long = [row | {n: row[n] * 4 for n in ("chosen", "rejected")} for row in PAIRS]
    settings: Row = {"learning_rate": 0.01, "epochs": 6, "evaluations": 1}
    settings |= {"sft_weight": 0.0} if method == "dpo" else {}
    settings |= {"beta": 200.0} if method == "orpo" else {}  # or its SFT term holds it
    summary = train(method, backbone, long, run, **settings)
    assert "margins_explode" in raised(run) and "margins_explode" in summary["alarms"]
    assert re.search(r"Step \d+, margins_explode: The margins explode", capsys.readouterr().err)


def test_what_others_prefer_becomes_less_likely(sharp_base: Path, tmp_path: Path) -> None:
    """The held-out votes prefer what the training rejects."""
    others = [
        {"prompt": f"Well, {row['prompt']}", "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in PAIRS
    ]
    backbone, run = load(sharp_base, adapter_layers="all"), Run(tmp_path, "dpo", {"seed": 0})
    settings = DPOSettings(**SMALL, learning_rate=0.01, epochs=5, sft_weight=0.0)
    summary = train_direct(backbone, PAIRS, run, "dpo", settings, eval_rows=others)
    assert "chosen_falls" in raised(run)
    assert summary["kept_step"] == 0 and summary["alarms"] == []  # of the policy that is kept


def test_answers_that_repeat_and_do_not_end_are_reported(sharp_base: Path, tmp_path: Path) -> None:
    backbone, run = load(sharp_base, adapter_layers="all"), Run(tmp_path, "dpo", {"seed": 0})
    settings: Row = {"learning_rate": 1e-2, "epochs": 5, "sft_weight": 4.0, "evaluations": 1}
    with patch.object(Backbone, "stop_ids", list(range(3, 28))):  # so that answers end at first
        train("dpo", backbone, ENDLESS, run, **settings)
    assert raised(run) >= {"repetition", "length_drift", "endless_answers"}
    first, last = [row for row in log_of(run) if "repetition" in row]
    assert first["ended_fraction"] > 0.5 and last["ended_fraction"] < 0.2
    assert first["repetition"] < 0.1 and last["repetition"] > 0.5


def test_a_calm_training_has_no_alarm(tiny_base: Path, tmp_path: Path) -> None:
    for method in ("dpo", "orpo", "kto"):
        run = Run(tmp_path / method, method, {"seed": 0})
        settings: Row = {"learning_rate": 1e-3, "epochs": 3, "evaluations": 1}
        summary = train(method, load(tiny_base), PAIRS, run, **settings)
        assert raised(run) == set() and summary["alarms"] == []


# ---- the checks by hand


def on(rows: list[Row]) -> set[str]:
    return {finding.alarm.name for finding in diagnose(rows, ALARMS)}


START: Row = {"chosen_logp": -1.0, "repetition": 0.05, "completion_length": 30.0}
START |= {"ended_fraction": 0.5}


@pytest.mark.parametrize(
    ("name", "figure", "calm", "wrong"),
    [
        ("chosen_falls", "chosen_logp", -1.5, -1.51),
        ("repetition", "repetition", 0.25, 0.26),
        ("length_drift", "completion_length", 45.0, 46.0),
        ("length_drift", "completion_length", 20.0, 19.0),
        ("endless_answers", "ended_fraction", 0.126, 0.125),
    ],
)
def test_the_last_measurement_is_compared_with_the_first(
    name: str, figure: str, calm: float, wrong: float
) -> None:
    for value, expected in ((calm, set()), (wrong, {name})):
        now = START | {figure: value}
        assert on([START, {"loss": 0.1}, now]) == expected
        assert on([START, START | {figure: wrong}, now]) == expected  # it may be over
    assert on([START | {figure: wrong}]) == set()


def test_few_answers_that_end_at_the_start_say_nothing() -> None:
    assert on([START | {"ended_fraction": 0.25}, START | {"ended_fraction": 0.0}]) == set()


def test_margins_are_averaged_and_orpo_s_are_its_log_odds() -> None:
    wide = {"loss": 0.0, "rewards/margins": 11.0}
    assert on([wide] * (WINDOW - 1)) == set() and on([wide] * WINDOW) == {"margins_explode"}
    assert on([wide] * WINDOW + [wide | {"rewards/margins": 4.0}]) == set()  # a mean of 9.6
    assert on([wide | {"log_odds_chosen": 2.0}] * WINDOW) == set()
    odds = {"rewards/margins": 0.1, "log_odds_chosen": 11.0}
    assert on([odds] * WINDOW) == {"margins_explode"}


def test_advice_names_settings_that_the_stage_has() -> None:
    keys = {name: set(known_keys(STAGES[name])) for name in ("dpo", "orpo", "kto")}
    for alarm in ALARMS:
        words = set(re.findall(r"[a-z]+_[a-z]+|epochs|beta|holdout", alarm.advice))
        for name, known in keys.items():
            only_dpo = {"sft_weight"} if "in dpo" in alarm.advice.lower() else set()
            assert words - (only_dpo if name != "dpo" else set()) <= known, (alarm.name, name)
        assert Finding(alarm, 0.5).message().startswith(alarm.problem.format(0.5))


# ---- the figures


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2, 3]) == 0.0  # no run of four
    assert repetition([7] * 8) == pytest.approx(4 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 of five runs
    ended = Completion("a", [*[7] * 8, 2], True)
    figures = sample_figures([ended, Completion("b", [1, 2, 3], False)])
    assert figures == {
        "repetition": pytest.approx(0.4),
        "completion_length": 6.0,
        "ended_fraction": 0.5,
    }


def test_measurements_are_spread_and_the_last_step_has_one() -> None:
    def steps(last: int, evaluations: int) -> list[int]:
        return [step for step in range(1, last + 1) if is_due(step, last, evaluations)]

    assert steps(40, 4) == [10, 20, 30, 40]
    assert steps(19, 4) == [5, 10, 15, 19]
    assert steps(3, 4) == [3] and steps(42, 1) == [42]


def test_a_training_whose_minutes_are_over_keeps_what_it_has_learned(
    tiny: Backbone, tmp_path: Path
) -> None:
    run = Run(tmp_path, "dpo", {"seed": 0}, minutes=1e-6)  # over after the first step
    settings = DPOSettings(**(SMALL | {"learning_rate": 1e-2, "epochs": 4.0}))
    found = train_direct(tiny, PAIRS, run, "dpo", settings, eval_rows=OTHERS)
    assert found["steps"] == found["kept_step"] == 1
    measured = [row["step"] for row in log_of(run) if "eval_loss" in row]
    assert measured == [0, 1]


def test_good_and_bad_answers_are_drawn_from_pairs_and_labels() -> None:
    good, bad = good_and_bad(PAIRS)
    assert [row["answer"] for row in good] == [row["chosen"] for row in PAIRS]
    assert {row["answer"] for row in bad} == {"I will not say."}
    many = [
        {"prompt": f"{n}?", "completion": f"It is {n}.", "label": n % 3 == 0} for n in range(90)
    ]
    good, bad = good_and_bad(many)
    assert len(good) == len(bad) == 16 and good_and_bad(many) == (good, bad)
    assert all(int(row["prompt"][:-1]) % 3 == 0 for row in good)


def test_the_likelihood_of_an_answer_is_the_models_own(
    tiny: Backbone, randomise: Callable[..., None]
) -> None:
    from lorarlhf.rewards.role import encode_answer

    randomise(tiny, "policy")
    prompt = [{"role": "user", "content": "What is tea?"}]
    answers = [encode_answer(tiny, prompt, text, "last") for text in ("A leaf.", "No, never, no.")]
    wanted = []
    for one in answers:
        with torch.no_grad(), tiny.role("policy"):
            logits = tiny.causal(input_ids=torch.tensor([one.ids])).logits[0]
        tokens = torch.tensor(one.ids[one.start :])
        found = logits.log_softmax(-1)[one.start - 1 : -1].gather(1, tokens[:, None])
        wanted.append(found.mean().item())
    found = likelihoods(tiny, answers[:1], answers[1:])
    assert found == pytest.approx({"chosen_logp": wanted[0], "rejected_logp": wanted[1]}, abs=1e-5)
    assert likelihoods(tiny, answers[:1], []).keys() == {"chosen_logp"}


def test_a_family_that_scales_its_logits_is_only_sampled(tiny: Backbone, tmp_path: Path) -> None:
    run, inputs = Run(tmp_path, "dpo", {}), StageInputs(PAIRS, DPOSettings(plain=True), None)
    watch = PreferenceWatch(tiny, run, inputs)
    assert len(watch.good) == len(watch.bad) == len(watch.prompts) == len(PAIRS)
    head = tiny.causal.get_output_embeddings()
    head.register_forward_hook(lambda layer, given, output: output / 8)  # as Granite does
    watch = PreferenceWatch(tiny, run, inputs)
    assert watch.good == watch.bad == [] and len(watch.prompts) == len(PAIRS)
    assert likelihoods(tiny, [], []) == {}


# ---- the run


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_watching_changes_no_weight(method: str, tiny_base: Path, tmp_path: Path) -> None:
    trained = []
    for evaluations in (0, 4):
        torch.manual_seed(1)
        backbone = load(tiny_base, lora_dropout=0.2)  # draws from torch's random state
        run = Run(tmp_path / str(evaluations), method, {"seed": 1})
        train(method, backbone, PAIRS, run, epochs=2, learning_rate=1e-3, evaluations=evaluations)
        trained.append(torch.cat([p.detach().flatten() for p in backbone.parameters_of("policy")]))
        assert (run.folder / "samples.jsonl").exists() == bool(evaluations)
    assert trained[0].abs().sum() > 0 and torch.equal(*trained)


def test_a_resumed_run_knows_its_alarms_as_of_the_last_measurement(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, "dpo", {"seed": 0})
    watch = PreferenceWatch(tiny, run, StageInputs(PAIRS, DPOSettings(plain=True), None))
    log = [START, START | {"chosen_logp": -2.0}, *[{"loss": 0.0, "rewards/margins": 11.0}] * 5]
    state = type("State", (), {"log_history": log, "global_step": 6, "is_world_process_zero": True})
    watch.on_train_begin(None, state, None)
    assert watch.health.active == {"chosen_falls"}  # margins are checked at the next one
    log.append(START | {"chosen_logp": -2.0})
    watch.health.check(log, 7)
    assert watch.health.active == {"chosen_falls", "margins_explode"}
    assert raised(run) == {"margins_explode"}
    assert "chosen_falls" not in capsys.readouterr().err


def test_a_run_has_curves_samples_and_alarms_in_its_report(tiny_base: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, "dpo", {"seed": 0})
    summary = train("dpo", load(tiny_base), PAIRS, run, learning_rate=1e-3, epochs=4)
    run.log({"step": 8, "alarm": "chosen_falls", "value": 0.6, "words": "Halve learning_rate."})
    rows = [row for row in log_of(run) if "chosen_logp" in row]
    assert [row["step"] for row in rows] == [0, 5, 8]
    assert all({"rejected_logp", "repetition", "ended_fraction"} <= row.keys() for row in rows)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 3 * len(PAIRS) and {row["step"] for row in samples} == {0, 5, 8}
    assert {row["prompt"] for row in samples} == {row["prompt"] for row in PAIRS}
    write_json(tmp_path / "summary.json", run.finish("done", summary))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for words in ("Chosen and rejected answers: DPO", "Sampled answers: DPO", "What is tea?"):
        assert words in page
    assert "Alarms, at the step that raised them" in page and "chosen_falls" in page
    (tmp_path / "metrics.jsonl").unlink()
    write_json(tmp_path / "summary.json", summary | {"alarms": []})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The health checks of this run raised no alarm." in page
