"""Tuning against rewards without a critic: RLOO and GRPO by TRL's trainers, on the shared backbone.

Both answer a prompt several times and learn which of its answers are better than the others. They
differ in how the scores of a prompt's answers become advantages and in where the price of the KL
stands: RLOO takes it from the score of an answer, GRPO adds it to the loss of each token.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.structure import no_input_gradients
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.health import HealthWatch, diagnose
from lorarlhf.ppo.prompts import PromptOrder
from lorarlhf.ppo.samples import SampleCallback
from lorarlhf.ppo.scores import Rewards
from lorarlhf.rewards.deviation import score_with_deviations
from lorarlhf.rewards.functions import (
    RewardFunction,
    call_reward_function,
    completion_text,
    function_name,
)
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback, log_beside_bars
from lorarlhf.stages.conversations import Row
from lorarlhf.stages.inputs import PPOSettings, RewardSpec
from lorarlhf.stages.trl.arguments import Placement, trl_arguments
from lorarlhf.stages.trl.checkpointing import CheckpointingMixin, saving
from lorarlhf.stages.trl.trainer import remove_library_output, scale_losses, speed_ups

# TRL's trainer and configuration of each algorithm.
TRAINERS = {"rloo": ("RLOOTrainer", "RLOOConfig"), "grpo": ("GRPOTrainer", "GRPOConfig")}
# Ours: TRL's name for it in the log.
LOGGED = {
    "score": "reward",
    "score_std": "reward_std",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "clip_fraction": "clip_ratio/region_mean",
    "policy_loss": "loss",
    "grad_norm_policy": "grad_norm",
    "seconds": "step_time",
}


def train_critic_free(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    args: PPOConfig,
    spec: RewardSpec,
    settings: PPOSettings,
    resume: bool = False,
) -> Row:
    """Train the policy by RLOO (arXiv 2402.14740) or GRPO (arXiv 2402.03300).

    Each update answers `rollout_batch_size / num_generations` prompts `num_generations` times. An
    answer is compared with the others to the same prompt, so there is no value role.

    Args:
        rows: with a `prompt`; further columns are handed to the reward functions.
        args: PPO's configuration, of which the fields in the stage's `config_keys` count.
        spec: functions of TRL's signature, or `"reward"` for the reward role, whose score is
            brought to mean 0 and deviation 1.
        settings: its `algorithm` is rloo or grpo.
        resume: continue from the run's newest checkpoint, if there is one.

    Returns:
        the summary that PPO's has.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the update was finished and a checkpoint written.
    """
    if backbone.has("reference"):
        backbone.model.delete_adapter("ref")  # TRL makes a new one, a copy of the policy
    settings = replace(settings, reward_weights=list(spec.weights) if spec.weights else None)
    config = critic_free_arguments(Placement.of(backbone, run), args, settings)
    weighed = Rewards(backbone, spec.rewards, spec.weights, args.reward_pessimism, spec.deviation)
    samples = SampleCallback(backbone, rows, args, weighed, run.folder)
    log = UpdateLog(run, args, samples, settings.algorithm)
    checkpointing = config.gradient_checkpointing_kwargs
    with backbone.stage("policy") as model, no_input_gradients(model, checkpointing):
        trainer = _trainer_class(settings.algorithm, log.steps)(
            model=model,
            reward_funcs=[_function(weighed, reward, log.deviations) for reward in spec.rewards],
            args=config,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=backbone.tokenizer,
            callbacks=[log],
        )
        remove_library_output(trainer)
        scale_losses(trainer)
        backbone.float32_adapters()
        with speed_ups(backbone):
            trainer.train(resume)
    backbone.save("policy", run.folder / "adapters" / "policy")
    return log.summary()


def critic_free_arguments(placement: Placement, args: PPOConfig, settings: PPOSettings) -> Any:
    """TRL's configuration from PPO's fields; `settings.trl` reaches every other field of it.

    Raises:
        UserError, ValueError: a value or a field that TRL does not take.
    """
    import trl

    accumulation = args.rollout_batch_size // args.micro_batch_size
    weights = settings.reward_weights
    steps = _steps_in_update(args)
    # A share of the updates where it is below 1, as in transformers.
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * args.updates
    own = {
        "max_steps": args.updates * steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "linear" if args.linear_lr_decay else "constant",
        "per_device_train_batch_size": args.micro_batch_size,
        "gradient_accumulation_steps": accumulation // args.num_minibatches,
        "steps_per_generation": accumulation,
        "num_iterations": args.num_ppo_epochs,
        "num_generations": settings.num_generations,
        "max_completion_length": args.max_new_tokens,
        "temperature": args.temperature,
        "beta": args.kl_coef,
        "epsilon": args.clip_range,
        "max_grad_norm": args.max_grad_norm,
        "reward_weights": list(weights) if weights else None,
        "gradient_checkpointing": args.gradient_checkpointing,
        "report_to": args.report_to,
        **saving(max(1, int(every)) * steps),
    }
    _, config = TRAINERS[settings.algorithm]
    return trl_arguments(getattr(trl, config), placement, own, settings.trl)


def _steps_in_update(args: PPOConfig) -> int:
    """Optimizer steps on the answers of one update."""
    return args.num_ppo_epochs * args.num_minibatches


def _trainer_class(algorithm: str, steps: int) -> type:
    """TRL's trainer with checkpoints between updates, and with PPO's order of the prompts."""
    import trl

    name, _ = TRAINERS[algorithm]
    kinds = (_PromptOrderMixin, CheckpointingMixin, getattr(trl, name))
    return type(name, kinds, {"steps_in_update": steps})  # TRL writes the class's name into logs


_Trainer: Any = object  # one of TRL's trainers follows in the order of classes


class _PromptOrderMixin(_Trainer):
    """A trainer whose prompts come in the order that PPO's have, in one pass without an end.

    TRL's own order leaves out the prompts that do not fill an update, and a resumed run would begin
    it anew in each pass.
    """

    def _get_train_sampler(self, dataset: Any = None) -> "_RepeatedPrompts":
        args = self.args
        prompts = args.generation_batch_size // args.num_generations
        return _RepeatedPrompts(
            PromptOrder(len(self.train_dataset), args.seed),
            prompts,
            args.num_generations,
            args.num_iterations * args.steps_per_generation,
            args.max_steps // self.steps_in_update,
        )


class _RepeatedPrompts(Sampler[int]):
    """The rows of all updates: `prompts` of them `answers` times each, and that `batches` times.

    TRL samples answers for the first batch of an update and takes those for the others.
    """

    def __init__(
        self, order: PromptOrder, prompts: int, answers: int, batches: int, updates: int
    ) -> None:
        self.order, self.prompts, self.answers = order, prompts, answers
        self.batches, self.updates = batches, updates

    def __len__(self) -> int:
        return self.updates * self.batches * self.prompts * self.answers

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.updates):
            rows = [row for row in self.order.take(self.prompts) for _ in range(self.answers)]
            for _ in range(self.batches):
                yield from rows


class UpdateLog(RunCallback):
    """TRL's log lines in PPO's words, one an update: KL in nats an answer, length in tokens."""

    def __init__(
        self, run: Run, settings: PPOConfig, samples: SampleCallback, algorithm: str
    ) -> None:
        super().__init__(run, algorithm.upper(), ("score", "kl", "completion_length"))
        self.settings, self.samples, self.rows = settings, samples, list[Row]()
        self.algorithm = algorithm
        self.deviations: list[float] = []  # of the scores since the last row
        self.health = HealthWatch(run, log_beside_bars, algorithm=algorithm)
        self.steps = _steps_in_update(settings)

    # ---- for the checkpoint

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The rows of the updates so far, for the summary and the alarms."""
        return {}, {"rows": self.rows}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Back from a checkpoint; alarms that were on then have been reported."""
        self.rows = values["rows"]
        self.health.active = {finding.alarm.name for finding in diagnose(self.rows)}

    # ---- events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, self._in_updates(state), control)
        self.samples.on_train_begin(args, self._in_updates(state), control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            super().on_step_end(args, self._in_updates(state), control)
            self.samples.on_step_end(args, self._in_updates(state), control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control)
        self.samples.on_train_end(args, self._in_updates(state), control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any
    ) -> None:
        logs = dict(logs or {})
        if args.fp16 and not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]  # the scale of the loss is being found: no alarm
        if "reward" in logs:  # the first step on new answers
            self.rows.append(self._row(logs))
        elif "step_time" in logs:
            self.rows[-1]["seconds"] += logs["step_time"]
        if state.global_step % self.steps == 0 and "step_time" in logs:
            super().on_log(args, self._in_updates(state), control, self.rows[-1])
            self.health.check(self.rows, len(self.rows))

    def _in_updates(self, state: Any) -> Any:
        """The trainer's state with updates as its steps."""
        done, planned = state.global_step // self.steps, state.max_steps // self.steps
        first = state.is_world_process_zero
        return SimpleNamespace(global_step=done, max_steps=planned, is_world_process_zero=first)

    def _row(self, logs: Row) -> Row:
        row = {ours: logs[theirs] for ours, theirs in LOGGED.items() if theirs in logs}
        means = [name for name in logs if name.startswith("rewards/") and name.endswith("/mean")]
        if len(means) > 1:
            row |= {f"score/{name[8:-5]}": logs[name] for name in means if logs[name] is not None}
        if self.deviations:
            row["reward_deviation"] = sum(self.deviations) / len(self.deviations)
            self.deviations.clear()
        return row | {
            "kl": logs["kl"] * logs["completions/mean_length"],  # TRL's is a token's
            "ended_fraction": 1 - logs["completions/clipped_ratio"],
            "episodes": (len(self.rows) + 1) * self.settings.rollout_batch_size,
        }

    def summary(self) -> Row:
        """`updates`, `episodes`, `kl_per_sequence` (last ten), `seconds_per_update` (median)."""
        recent = [row["kl"] for row in self.rows[-10:]]
        return {
            "algorithm": self.algorithm,
            "alarms": sorted(self.health.active),
            "updates": len(self.rows),
            "episodes": len(self.rows) * self.settings.rollout_batch_size,
            "kl_per_sequence": sum(recent) / len(recent) if recent else 0.0,
            "seconds_per_update": median(r["seconds"] for r in self.rows) if self.rows else 0.0,
        }


def _function(
    rewards: Rewards, reward: RewardFunction | str, deviations: list[float]
) -> RewardFunction:
    """A reward as TRL calls it, with the checks and the extra columns that PPO gives.

    Args:
        rewards: with the pessimism towards the reward role.
        deviations: gets those of the reward role's scores.
    """
    backbone = rewards.backbone

    def by_role(prompts: Any, texts: list[str]) -> list[float]:
        if rewards.deviation is None:
            return score_answers(backbone, prompts, texts)
        scores, unsure = score_with_deviations(backbone, prompts, texts, rewards.deviation)
        deviations.extend(unsure)
        return [s - rewards.pessimism * d for s, d in zip(scores, unsure, strict=True)]

    def call(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> Any:
        if isinstance(reward, str):
            head = backbone.heads[reward]
            texts = [completion_text(completion) for completion in completions]
            mean, std = head.score_mean.item(), head.score_std.item()
            return [(score - mean) / std for score in by_role(prompts, texts)]
        stops = set(backbone.stop_ids)
        columns["ended"] = [bool(ids) and ids[-1] in stops for ids in completion_ids]
        columns["completion_ids"] = completion_ids
        return call_reward_function(reward, prompts, completions, **columns)

    name = reward if isinstance(reward, str) else function_name(reward)
    call.__name__ = call.__qualname__ = name
    return call
