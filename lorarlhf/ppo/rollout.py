"""A rollout: prompts answered by the policy, cut into fixed micro-batches with their trunk kept.

Sequences are dealt to minibatches at random, then cut into micro-batches by length. Both stay
together through all epochs: padding costs little, the trunk is kept a micro-batch at a time, and
every forward of an epoch has the shapes of the forward that gave the old log-probabilities, so the
ratio is exactly 1 on the first pass. The size of a micro-batch changes no step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorarlhf import processes
from lorarlhf.backbone.anatomy import count_trained_layers
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.packing import Pack
from lorarlhf.backbone.shrinking import shrinking
from lorarlhf.generation import Completion, completion, encode_prompts, generate_ids
from lorarlhf.memory import DENSE, GENERATED_AT_ONCE
from lorarlhf.ppo import objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.halving import until_it_fits
from lorarlhf.sampling import row_seeds


@dataclass
class MicroBatch:
    """A few sequences, packed into N rows.

    Attributes:
        rows: their places in the rollout.
        pack: prompts and answers, and behind those a stop token where one is scored.
        predicts: (n,) the rows whose next token is an answer token.
        targets: (n,) those answer tokens, sequence by sequence.
        answers: (b, A) the rows of each answer that the reward role scores: all but the stop
            token, or with `last` pooling that one alone.
        answer_mask: (b, A) true where there is one.
        trunk: (N, H) kept lower layers, or None.
        lower: (N, H) by role, the same of its layers that don't train, once they were run.
    """

    rows: list[int]
    pack: Pack
    predicts: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    answer_mask: torch.Tensor
    trunk: torch.Tensor | None
    lower: dict[str, torch.Tensor] = field(default_factory=dict)


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
        self.minibatches = [
            make_micro_batches(backbone, self.encoded, self.completions, size, part)
            for part in self.parts
        ]

    def of(self, micro: MicroBatch, x: torch.Tensor) -> torch.Tensor:
        """The valid tokens of (B, C) tensor `x` in a micro-batch, row by row: (n,)."""
        return x[micro.rows][self.mask[micro.rows]]


def sample(
    backbone: Backbone, encoded: list[list[int]], args: PPOConfig, seeds: Sequence[int]
) -> list[Completion]:
    """Answer prompts (token ids) with the policy; each answer depends on its own seed."""
    if not encoded:
        return []
    at_once = GENERATED_AT_ONCE * args.micro_batch_size
    new = shrinking(at_once, lambda size: _sampled(backbone, encoded, args, seeds, size))
    give_back_memory()  # the holes that keys and values left as they grew
    return [completion(backbone, ids) for ids in new]


def _sampled(
    backbone: Backbone,
    encoded: list[list[int]],
    args: PPOConfig,
    seeds: Sequence[int],
    size: int,
) -> list[list[int]]:
    new: list[list[int]] = []
    with backbone.role("policy"), backbone.dense(DENSE):
        for start in range(0, len(encoded), size):
            new += generate_ids(
                backbone,
                encoded[start : start + size],
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seeds=seeds[start : start + size],
            )
    return new


Sampling = Callable[[Backbone, list[list[int]], PPOConfig, Sequence[int]], list[Completion]]
"""What `sample` does; `lorarlhf.ppo.vllm.VLLMSampler` does it on a server."""


def collect(
    backbone: Backbone,
    rows: list[dict[str, Any]],
    args: PPOConfig,
    seed: int,
    sampling: Sampling = sample,
) -> Rollout:
    """Sample answers and everything about them that the epochs need, without gradients.

    Args:
        seed: of the sampling, and of dealing the sequences to `num_minibatches` minibatches.
        sampling: who answers. The log-probabilities are computed here, whoever it is.
    """
    encoded = encode_prompts(backbone, [row["prompt"] for row in rows], args.max_prompt_tokens)
    own = processes.own_share(len(rows))
    answered = sampling(backbone, [encoded[i] for i in own], args, row_seeds(seed, own))
    completions = processes.all_rows(answered)
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
    until_it_fits(args, lambda: _fill_tables(backbone, rollout, args))
    for table in (rollout.logprobs, rollout.entropy, rollout.ref_logprobs, rollout.values):
        processes.total(table)  # each process has filled its own rows
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
        for micro in micros:
            logprobs, _ = policy_logprobs(backbone, micro, temperature)
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


def make_micro_batches(
    backbone: Backbone,
    encoded: list[list[int]],
    completions: list[Completion],
    size: int,
    rows: Sequence[int] | None = None,
) -> list[MicroBatch]:
    """Sequences of like length together, each micro-batch with its trunk.

    Args:
        rows: which of the sequences; all by default.
    """
    chosen = range(len(encoded)) if rows is None else rows
    order = sorted(chosen, key=lambda i: len(encoded[i]) + len(completions[i].ids))
    return [
        _micro_batch(backbone, order[i : i + size], encoded, completions)
        for i in range(0, len(order), size)
    ]


def _micro_batch(
    backbone: Backbone, rows: list[int], encoded: list[list[int]], completions: list[Completion]
) -> MicroBatch:
    device = backbone.device
    starts = [len(encoded[i]) for i in rows]
    own = [_closed(backbone, completions[i]) for i in rows]
    # The last token of a prompt predicts: it is never among the shared ones.
    together = [encoded[i] + ids for i, ids in zip(rows, own, strict=True)]
    pack = Pack.of(together, device, min(starts) - 1)
    predicts: list[int] = []
    answers: list[list[int]] = []
    for j, i in enumerate(rows):
        first, count = pack.row(j, starts[j]), len(completions[i].ids)
        predicts += range(first - 1, first + count - 1)
        if _reads_stop(backbone):
            answers.append([first + len(own[j]) - 1])
        else:  # an answer that is nothing but its stop token is scored on that token
            answers.append(list(range(first, first + max(1, count - completions[i].ended))))
    width = max(len(places) for places in answers)
    trunk = backbone.packed_trunk(pack)
    return MicroBatch(
        rows,
        pack,
        predicts=torch.tensor(predicts, device=device),
        targets=torch.tensor([t for i in rows for t in completions[i].ids], device=device),
        answers=torch.tensor([p + [0] * (width - len(p)) for p in answers], device=device),
        answer_mask=torch.tensor(
            [[n < len(p) for n in range(width)] for p in answers], device=device
        ),
        trunk=trunk,
    )


def _closed(backbone: Backbone, completion: Completion) -> list[int]:
    """The tokens of an answer; one that was cut off ends in a stop token where that is scored."""
    closes = _reads_stop(backbone) and not completion.ended
    return completion.ids + backbone.stop_ids[:1] * closes


def _reads_stop(backbone: Backbone) -> bool:
    """Whether the reward role scores an answer at its stop token.

    With `last` pooling it was trained on answers that end, and means nothing elsewhere.
    """
    return "reward" in backbone.heads and backbone.heads["reward"].pooling == "last"


def trained_from(backbone: Backbone, args: PPOConfig, role: str) -> int:
    """The first layer that trains of a role. What lies below stays what it was at the start."""
    wanted = {"policy": args.policy_layers, "value": args.value_layers}[role]
    adapted = backbone.adapter_layers
    return backbone.split + adapted - count_trained_layers(role, wanted, adapted)


def policy_logprobs(
    backbone: Backbone, micro: MicroBatch, temperature: float, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (n,) of the answer tokens under the active role.

    Args:
        first: the policy's first layer that trains; what lies below is run once and kept.
    """
    kept, start = _below(backbone, micro, "policy", first)
    hidden = backbone.packed_hidden(micro.pack, kept, start)
    weight, softcap = backbone.lm_head
    return objective.token_logprobs(
        hidden[micro.predicts], weight, micro.targets, temperature, softcap
    )


def token_values(backbone: Backbone, micro: MicroBatch, first: int = 0) -> torch.Tensor:
    """Values (n,) before each answer token is written; the value role must be active.

    Args:
        first: the value's first layer that trains; what lies below is run once and kept.
    """
    # A value that is only a head reads the policy's states, which move.
    kept, start = _below(backbone, micro, "value", first if backbone.has("value") else 0)
    hidden = backbone.packed_hidden(micro.pack, kept, start)
    trunk = None if micro.trunk is None else micro.trunk[micro.predicts]
    return backbone.heads["value"](hidden[micro.predicts], trunk)


def _below(
    backbone: Backbone, micro: MicroBatch, role: str, first: int
) -> tuple[torch.Tensor | None, int]:
    """States (N, H) of a role, which is active, below the layers to be run, and the first of them.

    The whole trunk where the layers from `first` on can't be run apart.
    """
    if first <= backbone.split or not backbone.splits:
        return micro.trunk, backbone.split
    if role not in micro.lower:
        micro.lower[role] = backbone.packed_lower(micro.pack, micro.trunk, first)
    return micro.lower[role], first


@torch.no_grad()
def reward_scores(backbone: Backbone, answers: Answers) -> torch.Tensor:
    """Scores (B,) of the answers by the reward role, on the kept trunk.

    Answers of other processes have 0.
    """
    scores = torch.zeros(len(answers.completions), device=backbone.device)
    head = backbone.heads["reward"]
    with backbone.role("reward"):
        for micro in answers.micro_batches:
            hidden = backbone.packed_hidden(micro.pack, micro.trunk)
            trunk = None if micro.trunk is None else micro.trunk[micro.answers]
            scores[micro.rows] = head.pool(hidden[micro.answers], micro.answer_mask, trunk)
    return scores
