"""The settings of PPO: TRL's own configuration class with PPO's fields added.

The fields stand in small groups by what uses them. `PPOConfig` inherits them all, so every setting
is a plain keyword: `PPOConfig(kl_target=4.0)`.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

from trl.trainer.base_config import _BaseConfig

from lorarlhf.runtime.setting_types import (
    Address,
    FloatAbove1,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_limits,
    one_of,
)


def _field(default: float | int | bool | str | None, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SamplingSettings:
    """How prompts are answered."""

    max_prompt_tokens: PositiveInt = _field(512, "Longest prompt; longer ones are refused, not cut")
    max_new_tokens: PositiveInt = _field(64, "Longest answer, in tokens")
    temperature: PositiveFloat = _field(1.0, "Temperature of sampling and of all log-probabilities")
    generation: Annotated[str, one_of("transformers", "vllm")] = _field(
        "transformers", "Who samples: transformers, or a vllm server"
    )
    vllm_server: Address = _field("http://127.0.0.1:8000", "Address of that server")


@dataclass
class ScoreSettings:
    """How the scores of answers become rewards."""

    normalize_scores: bool = _field(True, "Scores to mean 0, deviation 1 on reference answers")
    reward_pessimism: NonNegativeFloat = _field(
        0.0,
        "Standard deviations subtracted from a raw score of the reward role; above 0 it needs the "
        "votes of the reward run",
    )
    score_clip: PositiveFloat | None = _field(None, "Largest normalised score, in either direction")
    missing_eos_penalty: NonNegativeFloat | None = _field(
        None, "Subtracted from the normalised score of an answer that does not end by itself"
    )
    whiten_rewards: bool = _field(False, "Rewards of a rollout to deviation 1; their mean is kept")


@dataclass
class KLSettings:
    """How far the policy may move from the reference."""

    kl_coef: NonNegativeFloat = _field(0.05, "Price of one nat of KL to the reference, per token")
    kl_target: PositiveFloat | None = _field(
        None,
        "KL in nats per answer that kl_coef is steered towards; by default kl_coef is constant",
    )
    kl_horizon: PositiveInt = _field(
        32, "Answers over which a KL far from kl_target changes kl_coef by a fifth"
    )
    kl_budget: PositiveFloat | None = _field(
        None,
        "KL in nats per held-out answer beyond which training ends; the best policy below it is "
        "kept",
    )


@dataclass
class HeldOutSettings:
    """When the policy answers held-out prompts, beside `eval_steps`, and which policy is kept."""

    eval_kl_steps: PositiveFloat | None = _field(
        None, "KL in nats per answer after which the held-out prompts are measured, too"
    )
    keep_best_by: Annotated[str, one_of("score", "judge")] = _field(
        "score", "What the best policy below kl_budget has most of on held-out prompts"
    )


@dataclass
class ValueSettings:
    """How the value function learns."""

    value_learning_rate: NonNegativeFloat = _field(
        3e-4, "Step size of the value's adapter and head"
    )
    value_adapter: bool = _field(True, "False: only a head on the policy, which saves memory")
    value_layers: PositiveInt | None = _field(
        None, "Upper layers that the value trains; by default a third of those with adapters"
    )
    value_clip_range: PositiveFloat = _field(0.2, "How far a value may move in one update")
    vf_coef: NonNegativeFloat = _field(0.1, "Weight of the value loss")
    critic_warmup: NonNegativeInt = _field(2, "First updates, in which only the value learns")


@dataclass
class TrainerDefaults(_BaseConfig):
    """Fields of transformers' `TrainingArguments` for which PPO has another default."""

    adam_epsilon: PositiveFloat = _field(1e-5, "Adam's epsilon (arXiv 2403.17031)")
    gradient_checkpointing: bool = _field(False, "Recompute activations: less memory, more time")
    logging_steps: PositiveFloat = _field(1, "Updates between two log lines")
    eval_steps: PositiveInt = _field(10, "Updates between two measurements on held-out prompts")
    save_steps: PositiveFloat = _field(10, "Updates between two checkpoints")
    save_total_limit: PositiveInt = _field(2, "Newest checkpoints that are kept")
    report_to: str = _field("none", "Where metrics also go: none, wandb, tensorboard, ...")


@dataclass
class PPOConfig(
    SamplingSettings,
    ScoreSettings,
    KLSettings,
    HeldOutSettings,
    ValueSettings,
    TrainerDefaults,
):
    """Settings of `PPOTrainer`; everything else but `unused` is TRL's and transformers' own.

    In one update, `rollout_batch_size` prompts are answered once each. `num_ppo_epochs` passes over
    the answers follow, each with `num_minibatches` optimizer steps; one forward takes
    `micro_batch_size` sequences.

    Raises:
        ValueError: sizes that do not divide, a number outside its limit, or one of `unused`.
    """

    # Fields of transformers' `TrainingArguments` that have no effect here, so setting one is an
    # error.
    unused: ClassVar[tuple[str, ...]] = (
        *("optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "num_train_epochs"),
        *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    )

    updates: PositiveInt = _field(40, "Number of updates (rollout and optimization)")
    rollout_batch_size: PositiveInt = _field(16, "Prompts answered in one update")
    num_ppo_epochs: PositiveInt = _field(4, "Passes over each rollout")
    num_minibatches: PositiveInt = _field(1, "Optimizer steps in each pass")
    micro_batch_size: PositiveInt = _field(8, "Sequences in one forward; affects memory only")
    policy_layers: PositiveInt | None = _field(
        None, "Upper layers that the policy trains; by default two thirds of those with adapters"
    )
    learning_rate: NonNegativeFloat = _field(3e-4, "Step size of the policy's adapter")
    linear_lr_decay: bool = _field(False, "Both learning rates fall linearly to 0")
    gamma: Fraction = _field(1.0, "Discount of later rewards")
    gae_lambda: Fraction = _field(0.95, "Bias against variance of the advantages")
    clip_range: PositiveFloat = _field(0.2, "How far the policy's ratio may leave 1")
    max_ratio: FloatAbove1 | None = _field(
        10.0, "Mean ratio of a minibatch above which its step is skipped"
    )
    max_approx_kl: PositiveFloat | None = _field(
        None, "KL in nats per token that ends an update's epochs early"
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = False  # PPO computes in the backbone's dtype; TRL would refuse some CPUs
        defaults = {field.name: field.default for field in fields(self)}
        for name in self.unused:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"PPO here does not use {name}: it runs Adam with a constant learning_rate, "
                    "and updates, rollout_batch_size and micro_batch_size give the sizes"
                )
        super().__post_init__()
        check_limits(self)
        self._check_kl()
        self._check_sizes()

    def _check_kl(self) -> None:
        if self.kl_target is None:
            return
        if self.kl_coef <= 0:
            raise ValueError("kl_target multiplies kl_coef, so kl_coef must be above 0")
        if self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon}) must be at least rollout_batch_size "
                f"({self.rollout_batch_size}): raise kl_horizon"
            )

    def _check_sizes(self) -> None:
        if self.rollout_batch_size % self.num_minibatches:
            raise ValueError(
                f"rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
                f"num_minibatches ({self.num_minibatches})"
            )
        size = self.rollout_batch_size // self.num_minibatches
        self.micro_batch_size = min(self.micro_batch_size, size)
        if size % self.micro_batch_size:
            raise ValueError(
                f"a minibatch has {size} sequences, which micro_batch_size "
                f"({self.micro_batch_size}) must divide"
            )
