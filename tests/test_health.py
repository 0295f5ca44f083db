"""Each alarm goes off in a real run in which its trouble is real, and none in a calm one."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from lorarlhf.cli.ppo_options import check_rewards
from lorarlhf.cli.request import TrainRequest
from lorarlhf.evaluation.report import write_report
from lorarlhf.ppo.alarms import ALARMS, WINDOW
from lorarlhf.ppo.health import Finding, HealthWatch, diagnose
from lorarlhf.project.settings import known_keys, resolve
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.stages.critic_free import LOGGED
from lorarlhf.stages.inputs import RewardSpec
from lorarlhf.stages.table import STAGES
from lorarlhf.stages.trl.arguments import Placement
from tests.provocations import CALM, PROVOCATIONS, provoke

Row = dict[str, Any]


def went_off(rows: list[Row]) -> dict[str, int]:
    """The alarms of a log, and after how many rows each went on first."""
    found: dict[str, int] = {}
    for count in range(1, len(rows) + 1):
        for finding in diagnose(rows[:count]):
            found.setdefault(finding.alarm.name, count)
    return found


class EndsAt(TrainerCallback):
    """Ends a run when an alarm is on: updates after it change nothing about that."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on = [finding.alarm.name for finding in diagnose(state.log_history)]
        control.should_training_stop |= self.name in on


@pytest.mark.parametrize("name", [alarm.name for alarm in ALARMS])
def test_each_alarm_is_provoked_for_real(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """In one of four seeds: what such a run does depends on the last digits of a machine."""
    case = PROVOCATIONS[name]
    for seed in range(4):
        seeded = replace(case, settings=case.settings | {"seed": seed})
        if name in went_off(provoke(seeded, tiny_base, tmp_path / str(seed), [EndsAt(name)])):
            return
    raise AssertionError(f"{name} did not go off")


def test_a_calm_run_has_no_alarm(tiny_base: Path, tmp_path: Path) -> None:
    assert went_off(provoke(CALM, tiny_base, tmp_path)) == {}


def test_an_alarm_is_said_once_written_down_and_reported(tiny_base: Path, tmp_path: Path) -> None:
    run, said = Run(tmp_path, "ppo", {"seed": 0}), list[str]()
    provoke(PROVOCATIONS["length_reward"], tiny_base, tmp_path, [HealthWatch(run, said.append)])
    ours = [text for text in said if "length_reward" in text]
    assert len(ours) == 1
    assert "measures little but length (correlation 1.00). Vote on pairs" in ours[0]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row.get("alarm") == "length_reward"]
    assert row["step"] == WINDOW + 1 and row["value"] == pytest.approx(1.0)
    write_json(tmp_path / "summary.json", {"updates": 15})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "length_reward" in page and "measures little but length" in page
    (tmp_path / "metrics.jsonl").unlink()
    for summary, said in (({"alarms": []}, True), ({"updates": 15}, False)):
        write_json(tmp_path / "summary.json", summary)
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert ("The health checks of this run raised no alarm." in page) == said


def test_a_resumed_run_does_not_repeat_its_alarms(tmp_path: Path) -> None:
    rows = [{"completion_length": 9, "policy_loss": 0.0, "kl": -5.0} for _ in range(WINDOW)]
    said: list[str] = []
    watch = HealthWatch(Run(tmp_path, "ppo", {"seed": 0}), said.append)
    state = type(
        "State", (), {"log_history": rows, "global_step": 5, "is_world_process_zero": True}
    )
    watch.on_train_begin(None, state, None)
    watch.on_log(None, state, None)
    assert said == []
    watch.check([*rows, *({**row, "kl": 1.0} for row in rows)], 10)  # it is over
    watch.check(rows, 11)  # and comes again
    assert len(said) == 1 and said[0].startswith("Update 11, negative_kl: The KL is negative (-5.0")


def test_nothing_is_said_of_too_few_updates() -> None:
    row = {"completion_length": 9, "policy_loss": 0.0, "kl": 99.0, "ratio": 3.0, "entropy": 0.1}
    assert diagnose([row] * (WINDOW - 1)) == []
    assert {f.alarm.name for f in diagnose([row] * WINDOW)} == {"kl_runaway", "ratio"}
    assert [f.alarm.name for f in diagnose([row | {"kl": math.nan}])] == ["not_a_number"]
    assert diagnose([]) == []


def test_the_server_may_be_as_far_off_as_an_update_goes() -> None:
    row = {"completion_length": 9, "policy_loss": 0.0, "kl": 0.0}
    row |= {"approx_kl": 0.05, "vllm_kl": 0.04}
    assert diagnose([row] * WINDOW) == []
    warm = {"completion_length": 9, "vllm_kl": 0.015}  # the critic's warm-up: no update of a policy
    assert diagnose([warm] * WINDOW) == []
    for apart in (row | {"approx_kl": 0.01}, row | {"vllm_kl": 0.06}, warm | {"vllm_kl": 0.03}):
        (found,) = diagnose([apart] * WINDOW)
        assert found.alarm.name == "server_apart" and f"KL {apart['vllm_kl']}" in found.message()


# ---- advice that can be followed

VALUES = {
    "temperature": "1.0",
    "learning_rate": "1e-5",
    "score_clip": "4",
    "kl_coef": "0.1",
    "kl_target": "6",
    "kl_budget": "6",
    "max_new_tokens": "128",
    "missing_eos_penalty": "1",
    "num_ppo_epochs": "2",
    "max_approx_kl": "0.02",
    "generation": "transformers",
    "value_learning_rate": "1e-4",
    "critic_warmup": "4",
    "algorithm": "rloo",
}
CRITIC_FREE_ROW = {"kl": 1.0, "ended_fraction": 0.0, "episodes": 4, **dict.fromkeys(LOGGED, 1.0)}


def critic_free_alarms() -> set[str]:
    """The alarms that can start on what RLOO and GRPO log."""
    extremes = [-9.0, 0.0, 1e-3, 1.0, 1e3, math.nan]
    starts = [CRITIC_FREE_ROW | {"entropy": 5.0, "ended_fraction": 0.9}] * 3
    found = set()
    for name in CRITIC_FREE_ROW:
        for value in extremes:
            rows = [*starts, *[CRITIC_FREE_ROW | {"completion_length": 9.0, name: value}] * WINDOW]
            found |= {finding.alarm.name for finding in diagnose(rows)}
    return found


def test_without_a_critic_the_alarms_of_its_figures_can_be_raised() -> None:
    known = {"not_a_number", "negative_kl", "kl_runaway", "entropy_collapse", "length_drift"}
    assert critic_free_alarms() == known | {"endless_answers", "clip_fraction"}


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
def test_all_advice_can_be_followed_with_the_algorithm_that_it_speaks_of(
    algorithm: str, tmp_path: Path
) -> None:
    stage, tried = STAGES["ppo"], set()
    raised = {alarm.name for alarm in ALARMS} if algorithm == "ppo" else critic_free_alarms()
    for alarm in (alarm for alarm in ALARMS if alarm.name in raised):
        words = set(re.findall(r"[a-z_]+|--[a-z]+", Finding(alarm, 0.0).message(algorithm)))
        words -= set(re.findall(r"[a-z_]+|--[a-z]+", alarm.problem))
        settings = sorted(words & known_keys(stage).keys() - {"base"} | words & {"algorithm"})
        options = {"resume": "--resume" in words, "eval": "e.jsonl" if "--eval" in words else None}
        if alarm.name == "over_optimisation":  # is raised by judges, which need held-out prompts
            options["eval"] = "e.jsonl"
        for name in settings:
            sets = [f"{name}={VALUES[name]}"]
            if algorithm != "ppo":
                sets.append(f"algorithm={algorithm}")
            request = TrainRequest(stage, sets=tuple(sets), **options)
            found = resolve(stage, sets=sets)
            check_rewards(request, found, RewardSpec(rewards=["reward"]))
            own = stage.make_settings(found.own, found.trl)
            stage.make_arguments(Placement(torch.device("cpu"), torch.float32, tmp_path, 0), own)
            tried.add(name)
    assert tried >= {"learning_rate", "kl_coef", "max_new_tokens"}
    assert ("score_clip" in tried) == (algorithm == "ppo")
