"""The optimization of one rollout: in each minibatch of each pass, a value and a policy step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.generation import Completion
from lorarlhf.ppo import objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import (
    first_trained_layer,
    policy_logprobs,
    retry_smaller_micro_batches,
    token_values,
)
from lorarlhf.ppo.rollout import Rollout, empty_tables
from lorarlhf.runtime import distributed

Stats = dict[str, float]


class Learner:
    """Takes the optimizer steps of policy and value; each role has its own Adam.

    Attributes:
        first_layer: the first layer that trains, by role.
        optimizers: by role.
        scalers: of the losses, by role, since the roles' gradients differ in size. They scale in
            float16 only.
    """

    def __init__(self, backbone: Backbone, args: PPOConfig) -> None:
        self.backbone, self.args = backbone, args
        self.first_layer = {
            role: first_trained_layer(backbone, args, role) for role in ("policy", "value")
        }
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.reset_optimizers()
        with backbone.role("base"):  # tried once, now, and not in the middle of an update
            for first in self.first_layer.values():
                if first > backbone.split:
                    backbone.forward.splits_at(first)

    @property
    def layers(self) -> dict[str, int]:
        """How many layers train, by role."""
        split, top = self.backbone.split, self.backbone.split + self.backbone.adapter_layers
        return {role: top - max(first, split) for role, first in self.first_layer.items()}

    def reset_optimizers(self) -> None:
        """Make new optimizers and loss scales for the roles' present weights."""
        for role, first in self.first_layer.items():
            self.optimizers[role] = torch.optim.Adam(
                self.backbone.parameters_of(role, first),
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
            self.scalers[role] = _scaler(self.backbone)

    @contextmanager
    def reserve_adam(self) -> Iterator[None]:
        """Hold as much memory as Adam will take in its first step, until the block ends."""
        stateless = [role for role, optimizer in self.optimizers.items() if not optimizer.state]
        weights = [weight for role in stateless for weight in self._weights(role)]
        reserved = [torch.empty_like(weight) for weight in weights for _ in range(2)]
        yield
        del reserved

    def dry_run(self, prompts: list[list[int]], answer_tokens: int) -> None:
        """Compute both roles' gradients on made-up answers of full length, and take no step.

        Args:
            prompts: token ids of each.
        """
        answer = Completion("", prompts[0][-1:] * answer_tokens, ended=False)
        shape = (len(prompts), answer_tokens)
        mask = torch.ones(shape, dtype=torch.bool, device=self.backbone.device)
        rollout = Rollout(
            prompts=[],
            completions=[answer] * len(prompts),
            minibatches=[],
            encoded=prompts,
            shares=[list(range(len(prompts)))],
            tokens=[mask.numel()],
            mask=mask,
            **empty_tables(mask),
        )
        with torch.random.fork_rng(devices=[]):
            retry_smaller_micro_batches(self.args, lambda: self._value_gradients(rollout, 0))
            retry_smaller_micro_batches(self.args, lambda: self._policy_gradients(rollout, 0))
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        give_back_memory()

    def learning_rates(self, step: int) -> Stats:
        """Rates of an update, by role: constant, or falling linearly to 0 after the last update."""
        args = self.args
        left = 1 - step / args.updates if args.linear_lr_decay else 1.0
        return {"policy": args.learning_rate * left, "value": args.value_learning_rate * left}

    def run_epochs(self, rollout: Rollout, step: int, seed: int) -> Stats:
        """All passes over a rollout: `num_minibatches` optimizer steps of each role in each pass.

        They end early when the policy has moved as far as `max_approx_kl` allows. In the critic's
        warm-up only the value learns.

        Returns:
            means over the steps; `policy_steps`, the number of the policy's steps; and
            `skipped_steps`, the number that were skipped since ratio or gradient had diverged. In
            float16 also the `loss_scale_*` of each role after the update, and `overflows_*`, the
            steps that were skipped to halve it. Those belong to the search for a scale and are no
            sign of divergence.
        """
        for role, rate in self.learning_rates(step).items():
            for group in self.optimizers[role].param_groups:
                group["lr"] = rate
        taken: list[Stats] = []
        for index in self._order(len(rollout.minibatches), seed):
            stats = self._step_value(rollout, index)
            if step >= self.args.critic_warmup:
                stats |= self._step_policy(rollout, index)
            taken.append(stats)
            if self._moved_enough(stats):
                break
        names = {name: None for stats in taken for name in stats}
        lists = {name: [stats[name] for stats in taken if name in stats] for name in names}
        means = {n: sum(x) if n in COUNTS else sum(x) / len(x) for n, x in lists.items()}
        scaled = {role: scaler for role, scaler in self.scalers.items() if scaler.is_enabled()}
        return means | {f"loss_scale_{role}": s.get_scale() for role, s in scaled.items()}

    def _order(self, minibatches: int, seed: int) -> list[int]:
        """The minibatches' numbers for all epochs, shuffled in each."""
        generator = torch.Generator("cpu").manual_seed(seed)
        epochs = range(self.args.num_ppo_epochs)
        shuffled = (torch.randperm(minibatches, generator=generator, device="cpu") for _ in epochs)
        return [i for order in shuffled for i in order.tolist()]

    def _moved_enough(self, stats: Stats) -> bool:
        limit = self.args.max_approx_kl
        return limit is not None and stats.get("approx_kl", 0.0) > limit

    def _step_policy(self, rollout: Rollout, index: int) -> Stats:
        """One step of the policy, skipped where its ratio diverged or it has moved far enough."""
        totals = retry_smaller_micro_batches(
            self.args, lambda: self._policy_gradients(rollout, index)
        )
        means = _means(totals, POLICY_STATS, rollout.tokens[index], self.backbone.device)
        limit = self.args.max_ratio
        ratio = means["ratio"]
        diverged = not math.isfinite(ratio) or (limit is not None and ratio > limit)
        enough = self._moved_enough(means)
        figures = self._step("policy", means["policy_loss"], skip=diverged or enough)
        diverged = diverged or not math.isfinite(figures.get("grad_norm_policy", 0.0))
        taken = not diverged and not enough and not figures.get("overflows_policy", 0.0)
        return means | figures | {"policy_steps": float(taken), "skipped_steps": float(diverged)}

    def _policy_gradients(self, rollout: Rollout, index: int) -> dict[str, torch.Tensor]:
        """Compute the gradients of a minibatch; returns sums of its statistics over its tokens."""
        totals: dict[str, torch.Tensor] = {}
        self._begin("policy", rollout)
        first = self.first_layer["policy"]
        with self.backbone.role("policy", train=True, first=first):
            for micro in rollout.minibatches[index]:
                logprobs, _ = policy_logprobs(self.backbone, micro, self.args.temperature, first)
                loss, stats = objective.policy_loss(
                    logprobs,
                    rollout.select(micro, rollout.logprobs),
                    rollout.select(micro, rollout.advantages),
                    self.args.clip_range,
                )
                self.scalers["policy"].scale(loss / rollout.tokens[index]).backward()
                _add(totals, stats | {"policy_loss": loss.detach()})
        return totals

    def _step_value(self, rollout: Rollout, index: int) -> Stats:
        totals = retry_smaller_micro_batches(
            self.args, lambda: self._value_gradients(rollout, index)
        )
        means = _means(totals, VALUE_STATS, rollout.tokens[index], self.backbone.device)
        return means | self._step("value", means["value_loss"])

    def _value_gradients(self, rollout: Rollout, index: int) -> dict[str, torch.Tensor]:
        backbone, tokens = self.backbone, rollout.tokens[index]
        totals: dict[str, torch.Tensor] = {}
        self._begin("value", rollout)
        # Without its own adapter the value is a head on the policy, and must not train the policy.
        first = self.first_layer["value"]
        with backbone.role("value", train=backbone.has("value"), first=first):
            for micro in rollout.minibatches[index]:
                loss, clipped = objective.value_loss(
                    token_values(backbone, micro, first),
                    rollout.select(micro, rollout.values),
                    rollout.select(micro, rollout.returns),
                    self.args.value_clip_range,
                )
                self.scalers["value"].scale(self.args.vf_coef * loss / tokens).backward()
                _add(totals, {"value_loss": loss.detach(), "value_clip_fraction": clipped})
        return totals

    def _begin(self, role: str, rollout: Rollout) -> None:
        """Drop gradients of an attempt that ran out of memory, and apply a smaller micro-batch."""
        self.optimizers[role].zero_grad(set_to_none=True)
        rollout.rebatch(self.backbone, self.args.micro_batch_size)

    def _weights(self, role: str) -> list[nn.Parameter]:
        return [p for group in self.optimizers[role].param_groups for p in group["params"]]

    def _step(self, role: str, loss: float, skip: bool = False) -> Stats:
        """Clip one role's gradients and step its optimizer; returns the gradients' norm.

        No step is taken where a gradient is not finite, since it would stay in Adam's state for
        ever. In float16 that also happens with a finite loss where the loss scale is too large, and
        the scale is then halved. Until the scale is below 1, the step counts as an overflow and no
        norm is returned.
        """
        optimizer, scaler = self.optimizers[role], self.scalers[role]
        weights = self._weights(role)
        distributed.all_reduce_gradients(weights)  # first, so that all see an overflow in one
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm).item()
        if math.isfinite(norm) and not skip:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not scaler.is_enabled():
            return {f"grad_norm_{role}": norm}
        # A loss that is not finite tells nothing about the scale, so the scale stays.
        scaler.update(None if math.isfinite(loss) else scaler.get_scale())
        if math.isfinite(loss) and not math.isfinite(norm) and scaler.get_scale() >= 1:
            return {f"overflows_{role}": 1.0}
        return {f"overflows_{role}": 0.0, f"grad_norm_{role}": norm}


def _scaler(backbone: Backbone) -> torch.amp.GradScaler:
    """Loss scaling in float16, where small gradients would otherwise become 0.

    torch's defaults (arXiv 1710.03740, section 3.2): the scale starts at 65,536, is halved after a
    gradient that is not finite, and doubled after 2000 steps without one.
    """
    device = backbone.device
    scaler = torch.amp.GradScaler(device.type, enabled=backbone.compute_dtype == torch.float16)
    # A scaler has a scale only after its first use, and a process may have no rows to use it on.
    scaler.scale(torch.zeros((), device=device))
    return scaler


POLICY_STATS = ("clip_fraction", "approx_kl", "ratio", "policy_loss")
COUNTS = ("policy_steps", "skipped_steps", "overflows_policy", "overflows_value")
VALUE_STATS = ("value_loss", "value_clip_fraction")


def _add(totals: dict[str, torch.Tensor], sums: dict[str, torch.Tensor]) -> None:
    for name, value in sums.items():
        totals[name] = totals[name] + value if name in totals else value


def _means(
    totals: dict[str, torch.Tensor], names: tuple[str, ...], tokens: int, device: torch.device
) -> Stats:
    """Sums over this process's tokens -> means over the minibatch's tokens in all processes."""
    nothing = torch.zeros((), device=device)
    sums = distributed.all_reduce(
        torch.stack([totals.get(name, nothing).float() for name in names])
    )
    return dict(zip(names, (sums / tokens).tolist(), strict=True))
