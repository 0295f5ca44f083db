"""Alarms for a run that goes wrong, each with advice on what to change.

`lorarlhf.ppo.alarms` lists them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from lorarlhf.ppo.alarms import ALARMS, Alarm, Row
from lorarlhf.runtime.files import replace_nonfinite
from lorarlhf.runtime.run import Run


@dataclass(frozen=True)
class Finding:
    """An alarm that is active, with the figure that triggered it."""

    alarm: Alarm
    value: float

    def message(self, algorithm: str = "ppo") -> str:
        """What is happening and what to change, in settings that the algorithm has."""
        advice = self.alarm.advice
        if algorithm != "ppo" and self.alarm.critic_free_advice:
            advice = self.alarm.critic_free_advice
        return f"{self.alarm.problem.format(self.value)} {advice}"


def diagnose(rows: Sequence[Row], alarms: Sequence[Alarm] = ALARMS) -> list[Finding]:
    """The alarms that are active after the last of a run's log rows."""
    found = ((alarm, alarm.check(rows, alarm.limit)) for alarm in alarms)
    return [Finding(alarm, value) for alarm, value in found if value is not None]


class HealthWatch(TrainerCallback):
    """Reports each alarm when it starts, in the terminal and as a row of `metrics.jsonl`.

    Args:
        run: its `metrics.jsonl` gets rows `{"step", "alarm", "value", "words"}`.
        log: prints a line in the terminal.
        stage: written into the rows if the run has several stages.
        algorithm: ppo, rloo or grpo, whose settings the advice names.
        alarms: what is checked.
        unit: what the log's steps are called in the terminal.

    Attributes:
        active: the names of the alarms that are active now.
    """

    def __init__(
        self,
        run: Run,
        log: Callable[[str], None],
        stage: str | None = None,
        algorithm: str = "ppo",
        alarms: Sequence[Alarm] = ALARMS,
        unit: str = "Update",
    ) -> None:
        self.run, self.log, self.stage, self.algorithm = run, log, stage, algorithm
        self.alarms, self.unit = alarms, unit
        self.active: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run has reported these before.
        self.active = {f.alarm.name for f in diagnose(state.log_history, self.alarms)}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.check(state.log_history, state.global_step)

    def check(self, rows: Sequence[Row], step: int) -> None:
        """Check the rows so far; an alarm that stays active is reported once."""
        found = diagnose(rows, self.alarms)
        for finding in found:
            name = finding.alarm.name
            if name not in self.active:
                words = finding.message(self.algorithm)
                self.log(f"{self.unit} {step}, {name}: {words}")
                row = {"step": step, "alarm": name, "value": finding.value, "words": words}
                self.run.log(replace_nonfinite(row), stage=self.stage)
        self.active = {finding.alarm.name for finding in found}
