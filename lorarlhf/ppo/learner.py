"""The optimization of one rollout: passes over its minibatches, a step of policy and value each."""

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
    policy_logprobs,
    retry_smaller_micro_batches,
    token_values,
    trained_from,
)
from lorarlhf.ppo.rollout import Rollout
from lorarlhf.runtime import distributed

Stats = dict[str, float]


class Learner:
    """Takes the optimizer steps of policy and value, each with an Adam of its own.

    Attributes:
        first: the first layer that trains, by role.
        optimizers: by role.
        scalers: of the losses, by role; in float16 only, elsewhere they let everything pass as it
            is. Each role has its own, as its gradients have sizes of their own.
    """

    def __init__(self, backbone: Backbone, args: PPOConfig) -> None:
        self.backbone, self.args = backbone, args
        self.first = {role: trained_from(backbone, args, role) for role in ("policy", "value")}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.start_anew()
        with backbone.role("base"):  # tried once, at a calm moment
            for first in self.first.values():
                if first > backbone.split:
                    backbone.forward.splits_at(first)

    @property
    def layers(self) -> dict[str, int]:
        """How many layers train, by role."""
        split, top = self.backbone.split, self.backbone.split + self.backbone.adapter_layers
        return {role: top - max(first, split) for role, first in self.first.items()}

    def start_anew(self) -> None:
        """Optimizers and loss scales without memory, over the roles' weights as they are now."""
        for role, first in self.first.items():
            self.optimizers[role] = torch.optim.Adam(
                self.backbone.parameters_of(role, first),
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
            self.scalers[role] = _scaler(self.backbone)

    @contextmanager
    def reserve_adam(self) -> Iterator[None]:
        """Hold as much memory inside as Adam will have after its first step."""
        anew = [role for role, optimizer in self.optimizers.items() if not optimizer.state]
        weights = [weight for role in anew for weight in self._weights(role)]
        room = [torch.empty_like(weight) for weight in weights for _ in range(2)]
        yield
        del room

    def rehearse(self, prompts: list[list[int]], answer_tokens: int) -> None:
        """Gradients of both roles on made-up answers of full length; no step is taken.

        Args:
            prompts: token ids of each.
        """
        nonsense = Completion("", prompts[0][-1:] * answer_tokens, ended=False)
        rows = list(range(len(prompts)))
        like = torch.zeros(len(rows), answer_tokens, device=self.backbone.device)
        tables = [like.clone() for _ in range(6)]
        answers = [nonsense] * len(rows)
        tokens = [like.numel()]
        rollout = Rollout([], answers, [], prompts, [rows], tokens, like == 0, *tables)
        with torch.random.fork_rng(devices=[]):
            retry_smaller_micro_batches(self.args, lambda: self._value_gradients(rollout, 0))
            retry_smaller_micro_batches(self.args, lambda: self._policy_gradients(rollout, 0))
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        give_back_memory()

    def learning_rates(self, step: int) -> Stats:
        """Rates of an update, by role: constant, or falling in a line to 0 after the last one."""
        args = self.args
        left = 1 - step / args.updates if args.linear_lr_decay else 1.0
        return {"policy": args.learning_rate * left, "value": args.value_learning_rate * left}

    def epochs(self, rollout: Rollout, step: int, seed: int) -> Stats:
        """All passes over a rollout: `num_minibatches` optimizer steps of each role in each.

        They end early where the policy has moved as far as `max_approx_kl` allows. In the critic's
        warm-up only the value learns.

        Returns:
            means over the steps; `policy_steps`, how many the policy took; and `skipped_steps`,
            how many it did not because its ratio or its gradient had run wild. In float16 also
            `loss_scale_*` of each role, after the update, and `overflows_*`, the steps left out to
            halve it: part of finding a scale, and no sign of anything wild.
        """
        for role, rate in self.learning_rates(step).items():
            for group in self.optimizers[role].param_groups:
                group["lr"] = rate
        taken: list[Stats] = []
        for place in self._order(len(rollout.minibatches), seed):
            stats = self._step_value(rollout, place)
            if step >= self.args.critic_warmup:
                stats |= self._step_policy(rollout, place)
            taken.append(stats)
            if self._moved_enough(stats):
                break
        names = {name: None for stats in taken for name in stats}
        lists = {name: [stats[name] for stats in taken if name in stats] for name in names}
        means = {n: sum(x) if n in COUNTS else sum(x) / len(x) for n, x in lists.items()}
        scaled = {role: scaler for role, scaler in self.scalers.items() if scaler.is_enabled()}
        return means | {f"loss_scale_{role}": s.get_scale() for role, s in scaled.items()}

    def _order(self, minibatches: int, seed: int) -> list[int]:
        """The minibatches of all epochs, shuffled anew in each."""
        dealer = torch.Generator("cpu").manual_seed(seed)
        epochs = range(self.args.num_ppo_epochs)
        shuffled = (torch.randperm(minibatches, generator=dealer, device="cpu") for _ in epochs)
        return [i for order in shuffled for i in order.tolist()]

    def _moved_enough(self, stats: Stats) -> bool:
        limit = self.args.max_approx_kl
        return limit is not None and stats.get("approx_kl", 0.0) > limit

    def _step_policy(self, rollout: Rollout, place: int) -> Stats:
        """One step of the policy, left out where its ratio or its KL says that it went too far."""
        totals = retry_smaller_micro_batches(
            self.args, lambda: self._policy_gradients(rollout, place)
        )
        means = _means(totals, POLICY_STATS, rollout.tokens[place], self.backbone.device)
        limit = self.args.max_ratio
        wild = not math.isfinite(means["ratio"]) or (limit is not None and means["ratio"] > limit)
        enough = self._moved_enough(means)
        figures = self._step("policy", means["policy_loss"], unless=wild or enough)
        wild = wild or not math.isfinite(figures.get("grad_norm_policy", 0.0))
        taken = not wild and not enough and not figures.get("overflows_policy", 0.0)
        return means | figures | {"policy_steps": float(taken), "skipped_steps": float(wild)}

    def _policy_gradients(self, rollout: Rollout, place: int) -> dict[str, torch.Tensor]:
        """Gradients of a minibatch, from nothing; sums of its statistics."""
        totals: dict[str, torch.Tensor] = {}
        self._begin("policy", rollout)
        first = self.first["policy"]
        with self.backbone.role("policy", train=True, first=first):
            for micro in rollout.minibatches[place]:
                logprobs, _ = policy_logprobs(self.backbone, micro, self.args.temperature, first)
                loss, stats = objective.policy_loss(
                    logprobs,
                    rollout.of(micro, rollout.logprobs),
                    rollout.of(micro, rollout.advantages),
                    self.args.clip_range,
                )
                self.scalers["policy"].scale(loss / rollout.tokens[place]).backward()
                _add(totals, stats | {"policy_loss": loss.detach()})
        return totals

    def _step_value(self, rollout: Rollout, place: int) -> Stats:
        totals = retry_smaller_micro_batches(
            self.args, lambda: self._value_gradients(rollout, place)
        )
        means = _means(totals, VALUE_STATS, rollout.tokens[place], self.backbone.device)
        return means | self._step("value", means["value_loss"])

    def _value_gradients(self, rollout: Rollout, place: int) -> dict[str, torch.Tensor]:
        backbone, tokens = self.backbone, rollout.tokens[place]
        totals: dict[str, torch.Tensor] = {}
        self._begin("value", rollout)
        # Without an adapter of its own the value is a head on the policy, which it does not move.
        first = self.first["value"]
        with backbone.role("value", train=backbone.has("value"), first=first):
            for micro in rollout.minibatches[place]:
                loss, clipped = objective.value_loss(
                    token_values(backbone, micro, first),
                    rollout.of(micro, rollout.values),
                    rollout.of(micro, rollout.returns),
                    self.args.value_clip_range,
                )
                self.scalers["value"].scale(self.args.vf_coef * loss / tokens).backward()
                _add(totals, {"value_loss": loss.detach(), "value_clip_fraction": clipped})
        return totals

    def _begin(self, role: str, rollout: Rollout) -> None:
        """No gradients of an attempt that ran out of memory, and micro-batches that are smaller."""
        self.optimizers[role].zero_grad(set_to_none=True)
        rollout.cut_to(self.backbone, self.args.micro_batch_size)

    def _weights(self, role: str) -> list[nn.Parameter]:
        return [p for group in self.optimizers[role].param_groups for p in group["params"]]

    def _step(self, role: str, loss: float, unless: bool = False) -> Stats:
        """Clip the role's own gradients and step its own optimizer; returns their norm.

        A gradient that is not finite would stay in Adam's memory for ever: no step is taken. In
        float16 the gradient of a finite loss is so where the scale is too large, which then falls.
        That is counted instead of a norm, until there is no scale left to blame.
        """
        optimizer, scaler = self.optimizers[role], self.scalers[role]
        weights = self._weights(role)
        distributed.all_reduce_gradients(
            weights
        )  # before the check: all processes see an overflow in one
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm).item()
        if math.isfinite(norm) and not unless:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not scaler.is_enabled():
            return {f"grad_norm_{role}": norm}
        # A loss that is no number says nothing of the scale, which would fall to nothing.
        scaler.update(None if math.isfinite(loss) else scaler.get_scale())
        if math.isfinite(loss) and not math.isfinite(norm) and scaler.get_scale() >= 1:
            return {f"overflows_{role}": 1.0}
        return {f"overflows_{role}": 0.0, f"grad_norm_{role}": norm}


def _scaler(backbone: Backbone) -> torch.amp.GradScaler:
    """Loss scaling in float16, whose gradients would else fall under its smallest number.

    torch's own settings (arXiv 1710.03740, section 3.2): from 65,536 on, half as much after a
    gradient that is no number, twice as much after 2000 steps without one.
    """
    device = backbone.device
    scaler = torch.amp.GradScaler(device.type, enabled=backbone.compute_dtype == torch.float16)
    scaler.scale(torch.zeros((), device=device))  # or one without a share of the rows has no scale
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
