"""`PPOTrainer`: PPO on the shared backbone, in the ways of TRL's trainers.

TRL removed its own PPO after 1.12. This one takes texts or conversations, reward functions with
TRL's signature, callbacks and `report_to`; policy, reference, reward and value are adapters on one
base. Each detail is listed with its source in docs/ppo-details.md.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput
from trl.trainer.base_trainer import _BaseTrainer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.ppo import checkpoint, objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.kl import KLControl
from lorarlhf.ppo.rollout import (
    MicroBatch,
    Rollout,
    collect,
    policy_logprobs,
    reward_scores,
    token_values,
)
from lorarlhf.ppo.scores import ScoreScale, function_scores

RewardFunction = Callable[..., Any]
MIN_SLOPE = 0.05
"""What is left of a new value head that a first rollout's luck speaks against."""


class PPOTrainer(_BaseTrainer):
    """Proximal Policy Optimization (arXiv 1707.06347) from human feedback (arXiv 1909.08593).

    Args:
        backbone: holds the policy, and the reward role unless `reward_funcs` are given.
        args: the settings.
        train_dataset: rows with a `prompt` (text or conversation); other columns are handed to
            the reward functions.
        reward_funcs: functions of TRL's signature, `f(prompts, completions, **columns) ->
            list[float | None]`; the backbone's reward role by default.
        reward_weights: one weight a function; all 1 by default.
        callbacks: transformers' trainer callbacks.

    Raises:
        ValueError: neither a reward role nor reward functions, or weights of another number.
        UserError: the base is of a family whose logits are not known.
    """

    _tag_names = ["trl", "ppo", "lorarlhf"]
    _name = "PPO"
    args: PPOConfig

    def __init__(
        self,
        backbone: Backbone,
        args: PPOConfig,
        train_dataset: Any,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        reward_weights: Sequence[float] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
        weights = list(reward_weights or [1.0] * len(functions))
        if not functions and not backbone.has("reward"):
            raise ValueError("PPO needs a reward: load a reward role, or give reward_funcs")
        backbone.check_lm_head()
        if len(weights) != len(functions):
            raise ValueError(f"{len(functions)} reward functions, but {len(weights)} weights")
        super().__init__(
            model=backbone.model,
            args=args,
            train_dataset=train_dataset,
            processing_class=backbone.tokenizer,
            data_collator=list,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if args.disable_tqdm:
            self.remove_callback(ProgressCallback)
        self.backbone, self.rows = backbone, train_dataset
        self.reward_funcs = functions
        self.reward_weights = weights
        self.kl = KLControl(args.kl_coef, args.kl_target, args.kl_horizon)
        self.scale = ScoreScale.of(backbone, args, from_role=not functions)
        self._start_roles()
        self.optimizers_of = {
            "policy": self._adam("policy", args.learning_rate),
            "value": self._adam("value", args.value_learning_rate),
        }
        self._shuffle = torch.Generator().manual_seed(args.seed)
        self._queue: list[int] = []

    def _start_roles(self) -> None:
        """The value starts as the reward role (arXiv 2403.17031), or as the policy with zeros."""
        self._fresh_value = not self.backbone.has("value")
        if self._fresh_value:
            from_reward = self.backbone.has("reward") and not self.reward_funcs
            source = "reward" if from_reward else "policy"
            self.backbone.add_role("value", copy_of=source)
        self.backbone.model.requires_grad_(False)

    def _adam(self, role: str, learning_rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(
            self.backbone.parameters_of(role),
            lr=learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )

    # ---- the loop

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run the updates that are left; True resumes from the newest checkpoint in output_dir."""
        args = self.args
        self.state.max_steps, self.state.num_train_epochs = args.updates, args.num_ppo_epochs
        self.state.logging_steps = max(1, int(args.logging_steps))
        self.state.save_steps = max(1, int(args.save_steps))
        torch.manual_seed(args.seed)
        if resume_from_checkpoint:
            checkpoint.load_newest(self, resume_from_checkpoint)
        if args.gradient_checkpointing:
            self.backbone.causal.gradient_checkpointing_enable({"use_reentrant": False})
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        try:
            while self.state.global_step < args.updates and not self.control.should_training_stop:
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                metrics = self.update()
                self.state.global_step += 1
                self._after_update(metrics)
        finally:
            self.backbone.causal.gradient_checkpointing_disable()
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return TrainOutput(self.state.global_step, 0.0, self.summary())

    def update(self) -> dict[str, float]:
        """One update: roll out, score, shape rewards, advantages, epochs."""
        args, started = self.args, time.perf_counter()
        # Seeded by the update, so that dealing takes nothing from the prompts' order.
        dealer = torch.Generator().manual_seed(hash((args.seed, self.state.global_step)) % 2**31)
        rollout = collect(self.backbone, self._next_prompts(), args, dealer)
        sampled = time.perf_counter()
        raw_scores = self._score(rollout)
        scores = self.scale.normalise(raw_scores, learn=self.state.global_step < self._warmup)
        scores = self._penalise_endless(scores, rollout)
        rewards = objective.shape_rewards(
            scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, self.kl.coef
        )
        if self._fresh_value and self.state.global_step == 0:  # not where a checkpoint was loaded
            self._calibrate_value(rollout, rewards)
        advantages, rollout.returns = objective.gae(
            rewards, rollout.values, rollout.mask, args.gamma, args.gae_lambda
        )
        rollout.advantages = objective.whiten(advantages, rollout.mask)
        scored = time.perf_counter()
        give_back_memory()
        stats = self._epochs(rollout, dealer)
        give_back_memory()
        ended = time.perf_counter()
        metrics = self._metrics(rollout, raw_scores, scores) | stats
        if self._moves_policy:
            self.kl.update(metrics["kl"], len(rollout.prompts))
        return metrics | {
            "seconds": ended - started,
            "seconds_rollout": sampled - started,
            "seconds_score": scored - sampled,
            "seconds_optimize": ended - scored,
        }

    @property
    def _warmup(self) -> int:
        # Score statistics are learned while the policy is still the reference: in the critic's
        # warm-up, or in the first update where there is none.
        return max(1, self.args.critic_warmup)

    @property
    def _moves_policy(self) -> bool:
        return self.state.global_step >= self.args.critic_warmup

    def _next_prompts(self) -> list[dict[str, Any]]:
        """The next rows; every prompt is used once before one is used again."""
        rows: list[int] = []
        while len(rows) < self.args.rollout_batch_size:
            if not self._queue:
                order = torch.randperm(len(self.rows), generator=self._shuffle)
                self._queue = order.tolist()
            rows.append(self._queue.pop())
        return [self.rows[i] for i in rows]

    def _score(self, rollout: Rollout) -> torch.Tensor:
        if not self.reward_funcs:
            return reward_scores(self.backbone, rollout)
        scores = function_scores(self.reward_funcs, self.reward_weights, rollout, self.state)
        return torch.tensor(scores, dtype=torch.float32, device=self.backbone.device)

    def _penalise_endless(self, scores: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        penalty = self.args.missing_eos_penalty
        if penalty is None:
            return scores
        endless = torch.tensor([not c.ended for c in rollout.completions], device=scores.device)
        return scores - penalty * endless

    def _calibrate_value(self, rollout: Rollout, rewards: torch.Tensor) -> None:
        """Scale and shift a new value head to the first rollout's returns, in closed form.

        What the reward role says of one token varies far more than what it says of an answer. Left
        as it is, the value would begin as a worse guess than a constant.
        """
        nothing = torch.zeros_like(rewards)
        _, returns = objective.gae(rewards, nothing, rollout.mask, self.args.gamma, 1.0)
        slope, shift = objective.fit_line(rollout.values, returns, rollout.mask, MIN_SLOPE)
        head = self.backbone.heads["value"]
        head.whole_weight = head.whole_weight * slope
        head.bias.data.mul_(slope).add_(shift)
        rollout.values = (rollout.values * slope + shift) * rollout.mask
        self._fresh_value = False

    # ---- optimization

    def _epochs(self, rollout: Rollout, dealer: torch.Generator) -> dict[str, float]:
        """All passes over a rollout: `num_minibatches` optimizer steps in each."""
        sums: dict[str, list[float]] = {}
        for _ in range(self.args.num_ppo_epochs):
            for place in torch.randperm(len(rollout.minibatches), generator=dealer).tolist():
                micros = rollout.minibatches[place]
                stats = self._step_value(rollout, micros)
                if self._moves_policy:
                    stats |= self._step_policy(rollout, micros)
                for name, value in stats.items():
                    sums.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _step_policy(self, rollout: Rollout, micros: list[MicroBatch]) -> dict[str, float]:
        tokens = sum(len(micro.targets) for micro in micros)
        totals: dict[str, torch.Tensor] = {}
        with self.backbone.role("policy", train=True):
            for micro in micros:
                logprobs, _ = policy_logprobs(self.backbone, micro, self.args.temperature)
                loss, stats = objective.policy_loss(
                    logprobs,
                    rollout.of(micro, rollout.logprobs),
                    rollout.of(micro, rollout.advantages),
                    self.args.clip_range,
                )
                (loss / tokens).backward()
                for name, value in (stats | {"policy_loss": loss.detach()}).items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value
            norm = self._step("policy")
        means = {name: (value / tokens).item() for name, value in totals.items()}
        return means | {"grad_norm_policy": norm}

    def _step_value(self, rollout: Rollout, micros: list[MicroBatch]) -> dict[str, float]:
        tokens = sum(len(micro.targets) for micro in micros)
        total = clipped = 0.0
        with self.backbone.role("value", train=True):
            for micro in micros:
                loss, beyond = objective.value_loss(
                    token_values(self.backbone, micro),
                    rollout.of(micro, rollout.values),
                    rollout.of(micro, rollout.returns),
                    self.args.value_clip_range,
                )
                (self.args.vf_coef * loss / tokens).backward()
                total, clipped = total + loss.item(), clipped + beyond.item()
            norm = self._step("value")
        return {
            "value_loss": total / tokens,
            "value_clip_fraction": clipped / tokens,
            "grad_norm_value": norm,
        }

    def _step(self, role: str) -> float:
        """Clip the role's own gradients and step its own optimizer."""
        optimizer = self.optimizers_of[role]
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.item()

    # ---- accounts

    def _metrics(
        self, rollout: Rollout, raw_scores: torch.Tensor, scores: torch.Tensor
    ) -> dict[str, float]:
        mask, completions = rollout.mask, rollout.completions
        kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(dim=1)
        done = self.state.global_step + 1
        return {
            "episodes": done * self.args.rollout_batch_size,
            "score": raw_scores.mean().item(),
            "score_std": raw_scores.std(unbiased=False).item(),
            "score_normalised": scores.mean().item(),
            "kl": kl.mean().item(),
            "kl_coef": self.kl.coef,
            "entropy": objective.masked_mean(rollout.entropy, mask).item(),
            "completion_length": mask.sum().item() / len(completions),
            "ended_fraction": sum(c.ended for c in completions) / len(completions),
            "explained_variance": objective.explained_variance(
                rollout.values, rollout.returns, mask
            ),
        }

    def _after_update(self, metrics: dict[str, float]) -> None:
        args = self.args
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)
        if self.state.global_step % self.state.logging_steps == 0:
            self.log(metrics)
        last = self.state.global_step == args.updates or self.control.should_training_stop
        due = self.state.global_step % self.state.save_steps == 0
        if last or due or self.control.should_save:
            checkpoint.save(self)
            self.control = self.callback_handler.on_save(args, self.state, self.control)

    def summary(self) -> dict[str, float]:
        """`updates`, `episodes`, `kl_per_sequence` (last ten updates), `seconds_per_update`."""
        rows = [row for row in self.state.log_history if "kl" in row]
        recent = [row["kl"] for row in rows[-10:]]
        return {
            "updates": self.state.global_step,
            "episodes": self.state.global_step * self.args.rollout_batch_size,
            "kl_per_sequence": sum(recent) / len(recent) if recent else 0.0,
            "seconds_per_update": median(row["seconds"] for row in rows) if rows else 0.0,
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy and value as plain PEFT folders under `output_dir`/adapters."""
        folder = Path(output_dir or str(self.args.output_dir)) / "adapters"
        for role in ("policy", "value"):
            self.backbone.save(role, folder / role)
