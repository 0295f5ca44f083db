"""What a stage trains from: rows, settings and TRL's configuration, each prepared once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from lorarlhf.data.twins import leave_out_shared
from lorarlhf.runtime.setting_types import one_of
from lorarlhf.stages.conversations import Row

if TYPE_CHECKING:
    from lorarlhf.rewards.deviation import ScoreDeviation


@dataclass
class StageInputs:
    """Everything but the backbone and the run.

    Attributes:
        rows: in the form that the stage takes (`conversational`).
        settings: an instance of the stage's settings class.
        args: TRL's configuration.
        eval_rows: held-out rows in the same form, for stages that take them.
        resume: continue from the run's newest checkpoint, if there is one.
    """

    rows: Sequence[Row]
    settings: Any
    args: Any
    eval_rows: Sequence[Row] | None = None
    resume: bool = False


@dataclass
class PPOSettings:
    """Settings of the command `ppo` that are not fields of `PPOConfig`.

    Attributes:
        config: the fields of `PPOConfig`.
    """

    algorithm: Annotated[str, one_of("ppo", "rloo", "grpo")] = "ppo"  # rloo and grpo have no critic
    num_generations: int = 2  # answers to a prompt, for rloo and grpo only
    reward_weights: list | None = None  # one number for each reward
    plain: bool = False  # texts as they are, without the chat template
    config: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass
class RewardSpec:
    """What rewards and judges the answers.

    Attributes:
        rewards: `"reward"` for the reward role, and functions of TRL's signature.
        weights: one a reward; all 1 by default.
        judges: functions that judge held-out answers and reward nothing.
        deviation: of the reward role's scores, for `reward_pessimism` above 0
            (`ScoreDeviation.load`).
    """

    rewards: list[Callable[..., Any] | str] = field(default_factory=lambda: ["reward"])
    weights: Sequence[float] | None = None
    judges: list[Callable[..., Any]] = field(default_factory=list)
    deviation: "ScoreDeviation | None" = None


@dataclass
class PPOInputs(StageInputs):
    """`StageInputs` with the rewards; `settings` are `PPOSettings`, `args` a `PPOConfig`."""

    spec: RewardSpec = field(default_factory=RewardSpec)


def hold_out_prompts(
    rows: Sequence[Row], eval_rows: Sequence[Row] | None, settings: PPOSettings, seed: int
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """Prompts to learn from and held-out prompts that are not among them.

    Raises:
        UserError: all held-out prompts are.
    """
    return rows, None if eval_rows is None else leave_out_shared(rows, eval_rows)
