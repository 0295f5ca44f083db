"""A rollout: prompts answered by the policy, and what each role computes for the answers.

Sequences are assigned to minibatches at random, and each minibatch is cut into micro-batches by
length. Both stay the same in all epochs: there is little padding, the output of the frozen layers
is kept per micro-batch, and every forward of an epoch has the shapes of the forward that gave the
old log-probabilities, so the ratio is exactly 1 in the first pass. The size of a micro-batch does
not change the optimizer steps.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.generation import (
    Completion,
    completion,
    encode_prompts,
    generate_ids,
    weights_for_sampling,
)
from lorarlhf.backbone.graph_sampler import sampler_for
from lorarlhf.backbone.limits import SAMPLED_MICRO_BATCHES
from lorarlhf.backbone.memory import sampled_rows
from lorarlhf.backbone.memory_plan import Plan
from lorarlhf.backbone.oom import retry_halving
from lorarlhf.backbone.sampler import Sampler, row_seeds
from lorarlhf.backbone.shape import Shape
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import (
    MicroBatch,
    can_reuse_value_states,
    first_trained_layer,
    make_micro_batches,
    policy_logprobs,
    retry_smaller_micro_batches,
    reward_states,
    storage_device,
    token_values,
)
from lorarlhf.rewards.deviation import ScoreDeviation, has_base_states
from lorarlhf.rewards.role import pool_states
from lorarlhf.runtime import distributed
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")


@dataclass
class Answers:
    """Prompts, their answers, and micro-batches of the answers that this process sampled."""

    prompts: list[dict[str, Any]]
    completions: list[Completion]
    minibatches: list[list[MicroBatch]]

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """The micro-batches of all minibatches."""
        return [micro for minibatch in self.minibatches for micro in minibatch]


@dataclass
class Rollout(Answers):
    """The data of one update. Tensors (B, C) are float32, padded right; `mask` is true on tokens.

    With several processes, the tensors hold the sequences of all processes and the micro-batches
    only those of this process.

    Attributes:
        encoded: token ids of each prompt.
        shares: row numbers of each minibatch that this process answered.
        tokens: answer tokens in each minibatch, over all processes.
        logprobs, ref_logprobs: of the answer tokens under the policy and the reference.
        values: before each answer token is written.
        entropy: of the distribution that each answer token was drawn from, in nats.
        advantages, returns: zeros until they are computed.
    """

    encoded: list[list[int]]
    shares: list[list[int]]
    tokens: list[int]
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def rebatch(self, backbone: Backbone, size: int) -> None:
        """Make micro-batches of at most `size` sequences, unless there are some already."""
        if self.micro_batches and max(len(micro.rows) for micro in self.micro_batches) <= size:
            return
        self.minibatches = []  # old and new ones together would need twice the memory
        encoded, answers = self.encoded, self.completions
        own = [i for share in self.shares for i in share]
        tokens = sum(len(encoded[i]) + len(answers[i].ids) for i in own)
        storage = storage_device(backbone, tokens)
        self.minibatches = [
            make_micro_batches(backbone, encoded, answers, size, share, storage)
            for share in self.shares
        ]

    def select(self, micro: MicroBatch, x: torch.Tensor) -> torch.Tensor:
        """The answer tokens (n,) of a micro-batch in a (B, C) tensor, row by row."""
        return x[micro.rows][self.mask[micro.rows]]


PolicySampler: TypeAlias = Callable[
    [Backbone, list[list[int]], PPOConfig, Sequence[int]], list[Completion]
]
"""Answers prompts (token ids), one seed each: `LocalSampler`, or a `VLLMSampler` on a server."""


class LocalSampler:
    """Answers prompts (token ids) with the policy; each answer depends on its own seed only.

    Attributes:
        max_batch: the most answers that fit into memory at a time, once more did not fit.
    """

    def __init__(self) -> None:
        self.max_batch: int | None = None

    def __call__(
        self, backbone: Backbone, encoded: list[list[int]], args: PPOConfig, seeds: Sequence[int]
    ) -> list[Completion]:
        """The answers, in order. Answers that were sampled before memory ran out are kept."""

        def attempt(count: int) -> list[list[int]]:
            rows = slice(len(new), len(new) + count)
            return generate_ids(
                backbone,
                encoded[rows],
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seeds=seeds[rows],
            )

        new: list[list[int]] = []
        if not encoded:
            return []
        limit = rows_at_once(backbone, encoded, args)
        with backbone.role("policy"), weights_for_sampling(backbone):
            while len(new) < len(encoded):
                new += self._shrinking(limit, len(encoded) - len(new), attempt)
        give_back_memory()
        return [completion(backbone, ids) for ids in new]

    def dry_run(self, backbone: Backbone, longest: list[list[int]], args: PPOConfig) -> None:
        """Sample a few tokens for as many of the longest prompts as are answered at a time.

        By then the memory for the keys and values of whole answers is allocated (except in layers
        with a sliding window, which grow up to the window).
        """

        def attempt(count: int) -> list[Sampler]:
            prompts = list(itertools.islice(itertools.cycle(longest), count))
            sampler = sampler_for(backbone)(
                backbone,
                prompts,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seeds=range(count),
            )
            sampler.step()
            if not sampler.done:
                sampler.step()
            return [sampler] * count

        share = len(distributed.own_share(args.rollout_batch_size))
        if not share:
            return
        with backbone.role("policy"), weights_for_sampling(backbone):
            self._shrinking(rows_at_once(backbone, longest, args), share, attempt)
        give_back_memory()

    def _shrinking(self, limit: int, left: int, attempt: Callable[[int], list[T]]) -> list[T]:
        """Results of an attempt at up to `left` rows; fewer where memory is short."""
        wanted = min(left, limit if self.max_batch is None else min(limit, self.max_batch))
        done = retry_halving(wanted, attempt)
        if len(done) < wanted:
            self.max_batch = len(done)
            log_to_stderr(
                f"Out of memory while sampling: from now on {self.max_batch} answers are sampled "
                "at a time. This does not change the answers."
            )
        return done


def rows_at_once(backbone: Backbone, encoded: Sequence[Sequence[int]], args: PPOConfig) -> int:
    """The most answers that are sampled together, as `lorarlhf estimate` counts them.

    On a card `memory.sampled_rows` says how many, elsewhere it is eight micro-batches.
    """
    usual = SAMPLED_MICRO_BATCHES * args.micro_batch_size
    if backbone.device.type != "cuda":
        return usual
    plan = Plan(
        "ppo",
        adapter_layers=backbone.adapter_layers,
        micro_batch_size=args.micro_batch_size,
        rollout_batch_size=max(1, len(distributed.own_share(args.rollout_batch_size))),
        prompt_tokens=max(map(len, encoded)),
        answer_tokens=args.max_new_tokens,
        float_bytes=backbone.compute_dtype.itemsize,
        device=backbone.device.type,
        gradient_checkpointing=args.gradient_checkpointing,
        value_adapter=backbone.has("value"),
        policy_layers=args.policy_layers,
        value_layers=args.value_layers,
    )
    try:
        return sampled_rows(Shape.of(backbone.causal.config.to_dict()), plan)
    except (KeyError, TypeError, ValueError):  # a family whose sizes are given in another way
        return usual


def collect(
    backbone: Backbone,
    rows: list[dict[str, Any]],
    args: PPOConfig,
    seed: int,
    sampler: PolicySampler | None = None,
) -> Rollout:
    """Sample answers and compute everything that the epochs need, without gradients.

    Args:
        rows: with a `prompt` each.
        seed: of the sampling, and of the assignment to `num_minibatches` minibatches.
        sampler: answers the prompts; a `LocalSampler` by default. The log-probabilities are always
            computed here.

    Raises:
        UserError: a prompt is longer than `max_prompt_tokens`.
    """
    encoded = encode_prompts(backbone, [row["prompt"] for row in rows], args.max_prompt_tokens)
    own = distributed.own_share(len(rows))
    sampler = sampler or LocalSampler()
    answered = sampler(backbone, [encoded[i] for i in own], args, row_seeds(seed, own))
    completions = distributed.all_gather(answered)
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator, device="cpu")
    parts = [part.tolist() for part in order.chunk(args.num_minibatches)]
    lengths = torch.tensor([len(c.ids) for c in completions], device=backbone.device)
    columns = torch.arange(int(lengths.max()), device=backbone.device)
    mask = columns[None, :] < lengths[:, None]  # (B, C)
    rollout = Rollout(
        prompts=rows,
        completions=completions,
        minibatches=[],
        encoded=encoded,
        shares=[[i for i in part if i in own] for part in parts],
        tokens=[int(lengths[part].sum()) for part in parts],
        mask=mask,
        **empty_tables(mask),
    )
    retry_smaller_micro_batches(args, lambda: _fill_tables(backbone, rollout, args))
    for table in (rollout.logprobs, rollout.entropy, rollout.ref_logprobs, rollout.values):
        distributed.all_reduce(table)  # each process has filled its own rows
    return rollout


def empty_tables(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The float32 tensors (B, C) of a rollout that are filled later, by field."""
    names = ("logprobs", "ref_logprobs", "values", "entropy", "advantages", "returns")
    return {name: torch.zeros(mask.shape, device=mask.device) for name in names}


@torch.no_grad()
def _fill_tables(backbone: Backbone, rollout: Rollout, args: PPOConfig) -> None:
    rollout.rebatch(backbone, args.micro_batch_size)
    micros, temperature = rollout.micro_batches, args.temperature
    with backbone.role("policy"):
        first = first_trained_layer(backbone, args, "policy")
        for micro in micros:
            logprobs, entropy = policy_logprobs(backbone, micro, temperature, first)
            _put(rollout, rollout.logprobs, micro, logprobs)
            _put(rollout, rollout.entropy, micro, entropy)
    with backbone.role("reference"):
        first = first if backbone.same_below("policy", "reference", first) else 0
        for micro in micros:
            logprobs, _ = policy_logprobs(backbone, micro, temperature, first)
            _put(rollout, rollout.ref_logprobs, micro, logprobs)
    with backbone.role("value"):
        first = first_trained_layer(backbone, args, "value")
        for micro in micros:
            _put(rollout, rollout.values, micro, token_values(backbone, micro, first))


def _put(rollout: Rollout, table: torch.Tensor, micro: MicroBatch, flat: torch.Tensor) -> None:
    part = torch.zeros(len(micro.rows), table.shape[1], device=table.device)
    part[rollout.mask[micro.rows]] = flat.float()
    table[micro.rows] = part


@torch.no_grad()
def reward_scores(
    backbone: Backbone, answers: Answers, deviation: ScoreDeviation | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the answers by the reward role and their deviations, (B,) each.

    Both are 0 for answers of other processes; without a `deviation` all deviations are 0.
    """
    scores, deviations = torch.zeros(2, len(answers.completions), device=backbone.device)
    head = backbone.heads["reward"]
    from_value = can_reuse_value_states(backbone, answers.micro_batches)
    one_forward = deviation is not None and has_base_states(backbone)
    with backbone.role("reward"):
        for micro in answers.micro_batches:
            hidden = reward_states(backbone, micro, from_value)[micro.answers]
            trunk = micro.trunk_for(head, micro.answers)
            scores[micro.rows] = head.pool(hidden, micro.answer_mask, trunk)
            if deviation is not None:
                if not one_forward:
                    with backbone.role("base"):
                        hidden = reward_states(backbone, micro, False)[micro.answers]
                states = pool_states(hidden, micro.answer_mask, trunk)
                deviations[micro.rows] = deviation(states, micro.answer_mask.sum(dim=1))
    return scores, deviations
