"""`PPOTrainer`: PPO on the shared backbone, with the interface of TRL's trainers.

TRL removed its own PPO after 1.12. This one takes texts or conversations, reward functions with
TRL's signature, callbacks and `report_to`; policy, reference, reward and value are adapters on one
base. docs/ppo-details.md lists each detail with its source.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput
from trl.trainer.base_trainer import _BaseTrainer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory, hold_freed_memory
from lorarlhf.backbone.generation import encode_prompts
from lorarlhf.backbone.structure import no_input_gradients
from lorarlhf.ppo import checkpoint, heldout, objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.kl import KLBudget, KLControl
from lorarlhf.ppo.learner import Learner
from lorarlhf.ppo.metrics import rollout_metrics, sampler_mismatch, summarize
from lorarlhf.ppo.micro_batches import retry_smaller_micro_batches
from lorarlhf.ppo.prompts import PromptOrder
from lorarlhf.ppo.rollout import LocalSampler, PolicySampler, Rollout, collect
from lorarlhf.ppo.scores import ROLE, Rewards, ScoreScale
from lorarlhf.rewards.deviation import ScoreDeviation
from lorarlhf.runtime import distributed

RewardFunction = Callable[..., Any]
MIN_SLOPE = 0.05
"""Smallest factor by which a new value head is scaled, in case the first rollout is unlucky."""


class PPOTrainer(_BaseTrainer):
    """Proximal Policy Optimization (arXiv 1707.06347) from human feedback (arXiv 1909.08593).

    Args:
        backbone: holds the policy, and the reward role where that gives the score.
        args: the settings.
        train_dataset: rows with a `prompt` (text or conversation); other columns are passed to the
            reward functions.
        reward_funcs: functions with TRL's signature, `f(prompts, completions, **columns) ->
            list[float | None]`, or `"reward"` (the default) for the backbone's reward role; one, or
            a list of any of them.
        reward_weights: one weight per function; all 1 by default.
        callbacks: transformers' trainer callbacks.
        eval_dataset: prompts that are never trained on, measured every `eval_steps` updates.
        judge_funcs: functions that judge the held-out answers and are no part of the reward.
        deviation: of the reward role's scores, for `reward_pessimism` above 0.

    Raises:
        ValueError: neither a reward role nor reward functions, a wrong number of weights, a KL
            budget or judges without held-out prompts, no judge to keep the best policy by, or
            pessimism without a deviation.
        UserError: the logits of the base's family are not known, or `generation` is `vllm` and the
            server can't be used.
    """

    _tag_names = ["trl", "ppo", "lorarlhf"]
    _name = "PPO"
    args: PPOConfig

    def __init__(
        self,
        backbone: Backbone,
        args: PPOConfig,
        train_dataset: Any,
        reward_funcs: RewardFunction | str | Sequence[RewardFunction | str] | None = None,
        reward_weights: Sequence[float] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        *,
        eval_dataset: Any = None,
        judge_funcs: Sequence[RewardFunction] = (),
        deviation: ScoreDeviation | None = None,
    ) -> None:
        sources: list[RewardFunction | str]
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            sources = [reward_funcs]
        else:
            sources = list(reward_funcs or [ROLE])
        self.rewards = Rewards(backbone, sources, reward_weights, args.reward_pessimism, deviation)
        with backbone.role("base"):
            backbone.lm_head.check()
        heldout.check(args, eval_dataset is not None, bool(judge_funcs))
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
        self.eval_rows, self.judges = eval_dataset, list(judge_funcs)
        self.kl = KLControl(args.kl_coef, args.kl_target, args.kl_horizon)
        self.budget = KLBudget.of(args.kl_budget, args.keep_best_by)
        self.scale = ScoreScale.from_config(backbone, args, from_role=self.rewards.only_role)
        self.value_is_new = "value" not in backbone.heads
        self._add_value()
        self.learner = Learner(backbone, args)
        self.sampler = make_sampler(backbone, args)
        hold_freed_memory()
        self.prompt_order = PromptOrder(len(train_dataset), args.seed)

    def _add_value(self) -> None:
        """Start the value as the reward role (arXiv 2403.17031), or as the policy with zeros."""
        if self.value_is_new:
            source = ROLE if ROLE in self.rewards.sources else "policy"
            self.backbone.add_role("value", copy_of=source, own_adapter=self.args.value_adapter)
        self.backbone.model.requires_grad_(False)

    # ---- the loop

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run the remaining updates; True resumes from the newest checkpoint in output_dir."""
        args = self.args
        self.state.max_steps, self.state.num_train_epochs = args.updates, args.num_ppo_epochs
        self.state.logging_steps = max(1, int(args.logging_steps))
        self.state.save_steps = max(1, int(args.save_steps))
        set_seed(args.seed)
        if resume_from_checkpoint:
            checkpoint.load_newest(self, resume_from_checkpoint)
        if args.gradient_checkpointing:
            with no_input_gradients(self.backbone.causal):
                self.backbone.causal.gradient_checkpointing_enable({"use_reentrant": False})
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        try:
            self._memory_dry_run()
            if self.state.global_step == 0:
                self._measure_heldout()
            while self.state.global_step < args.updates and not self._stopped:
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                metrics = self.update()
                self.state.global_step += 1
                self._after_update(metrics)
        finally:
            self.backbone.causal.gradient_checkpointing_disable()
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        if self.budget is not None and self.budget.best_step is not None:
            checkpoint.load_best(self)
        return TrainOutput(self.state.global_step, 0.0, self.summary())

    def update(self) -> dict[str, float]:
        """One update: roll out, score, shape rewards, advantages, epochs. Returns its metrics."""
        started = time.perf_counter()
        with self._dequantised_weights():
            metrics = self._update(started)
        give_back_memory()
        return metrics | {"seconds": time.perf_counter() - started}

    def _update(self, started: float) -> dict[str, float]:
        args, step = self.args, self.state.global_step
        seed = hash((args.seed, step)) % 2**31  # of sampling and of both shuffles
        rows = [self.rows[i] for i in self.prompt_order.take(args.rollout_batch_size)]
        rollout = collect(self.backbone, rows, args, seed, self.sampler)
        sampled = time.perf_counter()
        raw_scores, by_source = self._score(rollout)
        scores = self.scale.normalise(raw_scores, learn=step < self._scale_updates)
        scores = self._penalise_endless(scores, rollout)
        rewards = self._rewards(rollout, scores)
        if self.value_is_new and step == 0:  # not where a checkpoint was loaded
            self._calibrate_value(rollout, rewards)
        advantages, rollout.returns = objective.gae(
            rewards, rollout.values, rollout.mask, args.gamma, args.gae_lambda
        )
        rollout.advantages = objective.whiten(advantages, rollout.mask)
        scored = time.perf_counter()
        stats = self.learner.run_epochs(rollout, step, seed)
        ended = time.perf_counter()
        metrics = {"episodes": (step + 1) * args.rollout_batch_size, "kl_coef": self.kl.coef}
        metrics |= rollout_metrics(rollout, raw_scores, scores) | sampler_mismatch(rollout)
        if step > args.critic_warmup:  # the first rollout of a policy that has moved
            self.kl.update(metrics["kl"], len(rollout.prompts))
        return (metrics | by_source | stats) | {
            "seconds_rollout": sampled - started,
            "seconds_score": scored - sampled,
            "seconds_optimize": ended - scored,
        }

    # ---- the parts of an update

    def _score(self, rollout: Rollout) -> tuple[torch.Tensor, dict[str, float]]:
        """Raw scores (B,); means of what several sources gave, and of the reward's deviation."""
        own = distributed.own_share(len(rollout.prompts))

        def attempt(score: Callable[[], torch.Tensor]) -> torch.Tensor:
            rollout.rebatch(self.backbone, self.args.micro_batch_size)
            return score()

        found = self.rewards.score(
            rollout,
            own,
            self.state,
            lambda score: retry_smaller_micro_batches(self.args, lambda: attempt(score)),
        )
        scores = torch.tensor(distributed.all_gather(found.sums), device=self.backbone.device)
        means: dict[str, float] = {}
        if self.rewards.pessimism:
            deviations = distributed.all_gather(found.deviations)
            means["reward_deviation"] = sum(deviations) / len(deviations)
        if len(found.by_source) > 1:
            for name, values in zip(self.rewards.names, found.by_source, strict=True):
                known = [value for value in distributed.all_gather(values) if value is not None]
                if known:
                    means[f"score/{name}"] = sum(known) / len(known)
        return scores, means

    def _penalise_endless(self, scores: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        penalty = self.args.missing_eos_penalty
        if penalty is None:
            return scores
        endless = torch.tensor([not c.ended for c in rollout.completions], device=scores.device)
        return scores - penalty * endless

    def _rewards(self, rollout: Rollout, scores: torch.Tensor) -> torch.Tensor:
        """Rewards (B, C): the price of KL on every token, the score (B,) on the last one."""
        rewards = objective.shape_rewards(
            scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, self.kl.coef
        )
        if self.args.whiten_rewards:
            return objective.whiten(rewards, rollout.mask, keep_mean=True)
        return rewards

    def _calibrate_value(self, rollout: Rollout, rewards: torch.Tensor) -> None:
        """Scale and shift a new value head to the first rollout's returns, in closed form.

        The reward role's output varies far more from token to token than from answer to answer.
        Without this step the value would start as a worse guess than a constant.
        """
        nothing = torch.zeros_like(rewards)
        _, returns = objective.gae(rewards, nothing, rollout.mask, self.args.gamma, 1.0)
        slope, shift = objective.fit_line(rollout.values, returns, rollout.mask, MIN_SLOPE)
        head = self.backbone.heads["value"]
        head.full_weight = head.full_weight * slope
        head.bias.data.mul_(slope).add_(shift)
        rollout.values = (rollout.values * slope + shift) * rollout.mask
        self.value_is_new = False

    @property
    def _scale_updates(self) -> int:
        # Score statistics are learned while the policy still equals the reference: in the critic's
        # warm-up, or in the first update where there is none.
        return max(1, self.args.critic_warmup)

    # ---- memory

    def _memory_dry_run(self) -> None:
        """Run the largest sampling, forward and backward, so that memory runs out now or never."""
        args, count = self.args, self.args.micro_batch_size
        # Bytes predict the number of tokens better than letters do: in any script a token has
        # about three of them.
        rows = sorted(self.rows, key=lambda row: len(str(row["prompt"]).encode()))[-4 * count :]
        prompts = [row["prompt"] for row in rows]
        encoded = encode_prompts(self.backbone, prompts, args.max_prompt_tokens)
        longest = sorted(encoded, key=len)[::-1]
        with self._dequantised_weights(), self.learner.reserve_adam():
            if isinstance(self.sampler, LocalSampler):
                self.sampler.dry_run(self.backbone, longest, args)
            micro_batch = list(itertools.islice(itertools.cycle(longest), count))
            self.learner.dry_run(micro_batch, args.max_new_tokens)

    def _dequantised_weights(self) -> AbstractContextManager[None]:
        top = self.backbone.split + self.backbone.adapter_layers
        first = top - max(self.learner.layers.values())
        return self.backbone.dequantised(first, backward=True)

    # ---- logging, held-out prompts, saving

    @property
    def _stopped(self) -> bool:
        return self.control.should_training_stop or (self.budget is not None and self.budget.spent)

    def _after_update(self, metrics: dict[str, float]) -> None:
        args, state = self.args, self.state
        self.control = self.callback_handler.on_step_end(args, state, self.control)
        if state.global_step % state.logging_steps == 0:
            self.log(metrics)
        last = state.global_step == args.updates
        over_budget = self.budget is not None and metrics["kl"] > self.budget.limit
        if over_budget or heldout.is_due(args, state.global_step, metrics["kl"], state.log_history):
            self._measure_heldout()
        due = state.global_step % state.save_steps == 0
        if last or due or self._stopped or self.control.should_save:
            checkpoint.save(self)
            self.control = self.callback_handler.on_save(args, state, self.control)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The policy's figures on the held-out prompts (see `heldout.measure`)."""
        return heldout.measure(
            self.backbone,
            self.eval_rows,
            self.args,
            self.rewards,
            self.judges,
            self.state,
            self.sampler,
        )

    def _measure_heldout(self) -> None:
        """Log the held-out figures; with a KL budget, keep the best policy that is inside it."""
        if self.eval_rows is None:
            return
        found = self.evaluate()
        self.log(dict(found))
        if self.budget is None:
            return
        best = found[f"eval_{self.budget.by}"]
        if self.budget.record(self.state.global_step, best, found["eval_kl"]):
            checkpoint.save_best(self)

    def summary(self) -> dict[str, Any]:
        """The run so far in a few figures (see `metrics.summarize`)."""
        kept = self.budget.best_step if self.budget is not None else None
        state = self.state
        return summarize(state.log_history, state.global_step, self.args.rollout_batch_size, kept)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy and value as plain PEFT folders under `output_dir`/adapters."""
        folder = Path(output_dir or str(self.args.output_dir)) / "adapters"
        if self.is_world_process_zero():
            for role in ("policy", "value"):
                self.backbone.save(role, folder / role)


def make_sampler(backbone: Backbone, args: PPOConfig) -> PolicySampler:
    """What answers the prompts: this process, or a vLLM server."""
    if args.generation == "transformers":
        return LocalSampler()
    from lorarlhf.ppo.vllm import VLLMSampler  # needs TRL's client

    return VLLMSampler(backbone, args)
