"""A rollout: prompts answered by the policy, and what each role says of the answers.

Sequences are dealt to minibatches at random, then cut into micro-batches by length. Both stay
together through all epochs: padding costs little, the trunk is kept a micro-batch at a time, and
every forward of an epoch has the shapes of the forward that gave the old log-probabilities, so the
ratio is exactly 1 on the first pass. The size of a micro-batch changes no step.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.generation import Completion, completion, encode_prompts, generate_ids
from lorarlhf.backbone.limits import DEQUANTISED_BYTES, SAMPLED_MICRO_BATCHES
from lorarlhf.backbone.oom import retry_halving
from lorarlhf.backbone.sampler import Sampler, row_seeds
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import (
    MicroBatch,
    home_of,
    make_micro_batches,
    policy_logprobs,
    retry_smaller_micro_batches,
    reward_states,
    token_values,
    trained_from,
    value_serves_reward,
)
from lorarlhf.runtime import distributed
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")


@dataclass
class Answers:
    """Prompts, their answers, and the micro-batches of those that this process answered."""

    prompts: list[dict[str, Any]]
    completions: list[Completion]
    minibatches: list[list[MicroBatch]]

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """Those of all minibatches."""
        return [micro for minibatch in self.minibatches for micro in minibatch]


@dataclass
class Rollout(Answers):
    """What one update knows. Tensors (B, C) are float32, padded right; `mask` is true on tokens.

    With several processes the tables are those of all; the micro-batches are the process's own.

    Attributes:
        encoded: token ids of each prompt.
        parts: the sequences of each minibatch that this process answered.
        tokens: answer tokens in each minibatch, over all processes.
    """

    encoded: list[list[int]]
    parts: list[list[int]]
    tokens: list[int]
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def cut_to(self, backbone: Backbone, size: int) -> None:
        """Have micro-batches of at most `size` sequences; larger ones are cut anew."""
        if self.micro_batches and max(len(micro.rows) for micro in self.micro_batches) <= size:
            return
        self.minibatches = []  # not both at once
        encoded, answers = self.encoded, self.completions
        own = [i for part in self.parts for i in part]
        home = home_of(backbone, sum(len(encoded[i]) + len(answers[i].ids) for i in own))
        self.minibatches = [
            make_micro_batches(backbone, encoded, answers, size, part, home) for part in self.parts
        ]

    def of(self, micro: MicroBatch, x: torch.Tensor) -> torch.Tensor:
        """The valid tokens of (B, C) tensor `x` in a micro-batch, row by row: (n,)."""
        return x[micro.rows][self.mask[micro.rows]]


Sampling = Callable[[Backbone, list[list[int]], PPOConfig, Sequence[int]], list[Completion]]
"""What `OwnSampler` does; `lorarlhf.ppo.vllm.VLLMSampler` does it on a server."""


class OwnSampler:
    """Answers prompts (token ids) with the policy; each answer depends on its own seed.

    Attributes:
        most: so many together fitted into memory when more did not.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def __call__(
        self, backbone: Backbone, encoded: list[list[int]], args: PPOConfig, seeds: Sequence[int]
    ) -> list[Completion]:
        """The answers, in order; what was sampled before memory ran out is kept."""

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
        with backbone.role("policy"), backbone.dequantised(DEQUANTISED_BYTES):
            while len(new) < len(encoded):
                new += self._fitting(args, len(encoded) - len(new), attempt)
        give_back_memory()
        return [completion(backbone, ids) for ids in new]

    def rehearse(self, backbone: Backbone, longest: list[list[int]], args: PPOConfig) -> None:
        """Begin as many answers to the longest prompts as are sampled together, and go no further.

        The keys and values of whole answers have their room by then (in layers that keep all of
        them; those of a sliding window grow up to it).
        """

        def attempt(count: int) -> list[Sampler]:
            prompts = list(itertools.islice(itertools.cycle(longest), count))
            kind: dict[str, Any] = {"temperature": args.temperature, "seeds": range(count)}
            sampler = Sampler(backbone, prompts, max_new_tokens=args.max_new_tokens, **kind)
            sampler.step()
            if not sampler.done:
                sampler.step()
            return [sampler] * count

        share = len(distributed.own_share(args.rollout_batch_size))
        if not share:
            return
        with backbone.role("policy"), backbone.dequantised(DEQUANTISED_BYTES):
            self._fitting(args, share, attempt)
        give_back_memory()

    def _fitting(self, args: PPOConfig, left: int, attempt: Callable[[int], list[T]]) -> list[T]:
        """What an attempt at the next few gives: one thing for each."""
        most = SAMPLED_MICRO_BATCHES * args.micro_batch_size
        wanted = min(left, most if self.most is None else min(most, self.most))
        done = retry_halving(wanted, attempt)
        if len(done) < wanted:
            self.most = len(done)
            log_to_stderr(
                f"Out of memory while sampling: from here on {self.most} answers at a time. They "
                "are the same answers."
            )
        return done


def collect(
    backbone: Backbone,
    rows: list[dict[str, Any]],
    args: PPOConfig,
    seed: int,
    sampling: Sampling | None = None,
) -> Rollout:
    """Sample answers and everything about them that the epochs need, without gradients.

    Args:
        seed: of the sampling, and of dealing the sequences to `num_minibatches` minibatches.
        sampling: who answers, this process by default. The log-probabilities are computed here,
            whoever it is.
    """
    encoded = encode_prompts(backbone, [row["prompt"] for row in rows], args.max_prompt_tokens)
    own = distributed.own_share(len(rows))
    sampling = sampling or OwnSampler()
    answered = sampling(backbone, [encoded[i] for i in own], args, row_seeds(seed, own))
    completions = distributed.all_gather(answered)
    dealer = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(rows), generator=dealer, device="cpu")
    parts = [part.tolist() for part in order.chunk(args.num_minibatches)]
    lengths = torch.tensor([len(c.ids) for c in completions], device=backbone.device)
    columns = torch.arange(int(lengths.max()), device=backbone.device)
    mask = columns[None, :] < lengths[:, None]
    tokens = [int(lengths[part].sum()) for part in parts]
    empty = torch.zeros(mask.shape, device=backbone.device)
    tables = [empty.clone() for _ in range(6)]
    shares = [[i for i in part if i in own] for part in parts]
    rollout = Rollout(rows, completions, [], encoded, shares, tokens, mask, *tables)
    retry_smaller_micro_batches(args, lambda: _fill_tables(backbone, rollout, args))
    for table in (rollout.logprobs, rollout.entropy, rollout.ref_logprobs, rollout.values):
        distributed.all_reduce(table)  # each process has filled its own rows
    return rollout


@torch.no_grad()
def _fill_tables(backbone: Backbone, rollout: Rollout, args: PPOConfig) -> None:
    rollout.cut_to(backbone, args.micro_batch_size)
    micros, temperature = rollout.micro_batches, args.temperature
    with backbone.role("policy"):
        first = trained_from(backbone, args, "policy")
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
        first = trained_from(backbone, args, "value")
        for micro in micros:
            _put(rollout, rollout.values, micro, token_values(backbone, micro, first))


def sampler_mismatch(rollout: Rollout) -> dict[str, float]:
    """How far another program that sampled is from the policy that is trained, a token.

    Returns:
        nothing where this process sampled. Otherwise `vllm_kl`, the KL of its distribution to ours
        in nats (k3 of John Schulman's "Approximating KL divergence"), and `vllm_gap`, the mean
        absolute difference of the log-probabilities; both over the answers that came with them.
    """
    known = [(i, c.sampled_logprobs) for i, c in enumerate(rollout.completions)]
    given = [(i, theirs) for i, theirs in known if theirs is not None]
    if not given:
        return {}
    device = rollout.logprobs.device
    theirs = torch.tensor([x for _, row in given for x in row], device=device)
    rows = [i for i, _ in given]
    log_ratio = rollout.logprobs[rows][rollout.mask[rows]] - theirs
    kl = log_ratio.exp() - 1 - log_ratio
    return {"vllm_kl": kl.mean().item(), "vllm_gap": log_ratio.abs().mean().item()}


def _put(rollout: Rollout, table: torch.Tensor, micro: MicroBatch, flat: torch.Tensor) -> None:
    part = torch.zeros(len(micro.rows), table.shape[1], device=table.device)
    part[rollout.mask[micro.rows]] = flat.float()
    table[micro.rows] = part


@torch.no_grad()
def reward_scores(backbone: Backbone, answers: Answers) -> torch.Tensor:
    """Scores (B,) of the answers by the reward role, on the kept trunk.

    Answers of other processes have 0.
    """
    scores = torch.zeros(len(answers.completions), device=backbone.device)
    head = backbone.heads["reward"]
    from_value = value_serves_reward(backbone, answers.micro_batches)
    with backbone.role("reward"):
        for micro in answers.micro_batches:
            hidden = reward_states(backbone, micro, from_value)
            trunk = micro.read_by(head, micro.answers)
            scores[micro.rows] = head.pool(hidden[micro.answers], micro.answer_mask, trunk)
    return scores
