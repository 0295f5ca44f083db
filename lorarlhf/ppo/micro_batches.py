"""Micro-batches: a few sequences packed into rows, and the states below what PPO trains.

Policy, reference, value and reward read the same rows. What lies below the layers that a role
trains is run once and kept, on the device or, where a rollout keeps much, in the host's memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.limits import count_trained_layers, kept_on_device
from lorarlhf.backbone.oom import retry_halving
from lorarlhf.backbone.roles import ScalarHead
from lorarlhf.ppo import objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")


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
        home: where `trunk` and `lower` lie.
        trunk: (N, H) kept lower layers, or None.
        lower: by role, the first layer that trains and the states (N, H) below, once they were run.
    """

    rows: list[int]
    pack: Pack
    predicts: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    answer_mask: torch.Tensor
    home: torch.device
    trunk: torch.Tensor | None
    lower: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)

    def trunk_on(self, device: torch.device) -> torch.Tensor | None:
        """The trunk, there."""
        return None if self.trunk is None else self.trunk.to(device)

    def read_by(self, head: ScalarHead, rows: torch.Tensor) -> torch.Tensor | None:
        """The trunk (..., H) at some rows, where a head reads it."""
        trunk = self.trunk_on(rows.device) if head.trunk_weight is not None else None
        return None if trunk is None else trunk[rows]


def retry_smaller_micro_batches(args: PPOConfig, attempt: Callable[[], T]) -> T:
    """Return `attempt()`; when memory runs out, halve `args.micro_batch_size` and try again.

    The size of a micro-batch changes no step: the batch stays as large as it was, and what was
    sampled is kept. The attempt reads the size again each time, starts from scratch and must not
    communicate with other processes.

    Raises:
        RuntimeError: the attempt's own error, if it is not about memory or a single sequence is
            too much.
    """

    def halved(size: int) -> None:
        args.micro_batch_size = size
        log_to_stderr(
            f"Out of memory: from here on micro_batch_size is {size}. The batch stays as large as "
            "it was, and nothing is lost."
        )

    return retry_halving(args.micro_batch_size, lambda _: attempt(), on_halved=halved)


def home_of(backbone: Backbone, tokens: int) -> torch.device:
    """Where the kept states of a rollout with so many tokens lie: on the device if they are few."""
    small = kept_on_device(tokens, backbone.hidden_size, backbone.compute_dtype.itemsize)
    return backbone.device if small else torch.device("cpu")


def make_micro_batches(
    backbone: Backbone,
    encoded: list[list[int]],
    completions: list[Completion],
    size: int,
    rows: Sequence[int] | None = None,
    home: torch.device | None = None,
) -> list[MicroBatch]:
    """Sequences of like length together, each micro-batch with its trunk.

    Args:
        rows: which of the sequences; all by default.
        home: where kept states lie; the backbone's device by default.
    """
    chosen = range(len(encoded)) if rows is None else rows
    order = sorted(chosen, key=lambda i: len(encoded[i]) + len(completions[i].ids))
    return [
        _micro_batch(backbone, order[i : i + size], encoded, completions, home or backbone.device)
        for i in range(0, len(order), size)
    ]


def _micro_batch(
    backbone: Backbone,
    rows: list[int],
    encoded: list[list[int]],
    completions: list[Completion],
    home: torch.device,
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
    trunk = backbone.forward.packed_trunk(pack)
    return MicroBatch(
        rows,
        pack,
        predicts=torch.tensor(predicts, device=device),
        targets=torch.tensor([t for i in rows for t in completions[i].ids], device=device),
        answers=torch.tensor([p + [0] * (width - len(p)) for p in answers], device=device),
        answer_mask=torch.tensor(
            [[n < len(p) for n in range(width)] for p in answers], device=device
        ),
        home=home,
        trunk=None if trunk is None else trunk.to(home),
    )


def _closed(backbone: Backbone, completion: Completion) -> list[int]:
    """The tokens of an answer; one that was cut off ends in a stop token where that is scored."""
    closes = _reads_stop(backbone) and not completion.ended
    stop = backbone.tokenizer.eos_token_id  # of several the one that answers end in in training
    return completion.ids + [stop] * (closes and stop is not None)


def _reads_stop(backbone: Backbone) -> bool:
    """Whether the reward role scores an answer at its stop token.

    With `last` pooling it was trained on answers that end, and means nothing elsewhere.
    """
    return "reward" in backbone.heads and backbone.heads["reward"].pooling == "last"


def trained_from(backbone: Backbone, args: PPOConfig, role: str) -> int:
    """The first layer that trains of a role: 0 where all do that have adapters.

    What lies below stays what it was at the start.
    """
    if not backbone.has(role):  # a value that is only a head on the policy
        role = "policy"
    wanted = {"policy": args.policy_layers, "value": args.value_layers}[role]
    left = backbone.adapter_layers - count_trained_layers(role, wanted, backbone.adapter_layers)
    return backbone.split + left if left else 0


def policy_logprobs(
    backbone: Backbone, micro: MicroBatch, temperature: float, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (n,) of the answer tokens under the active role.

    Args:
        first: the policy's first layer that trains; what lies below is run once and kept.
    """
    kept, start = _below(backbone, micro, "policy", first)
    hidden = backbone.forward.packed_hidden(micro.pack, kept, start)
    head = backbone.lm_head
    return objective.token_logprobs(
        hidden[micro.predicts], head.weight, micro.targets, temperature, head.softcap
    )


def token_values(backbone: Backbone, micro: MicroBatch, first: int = 0) -> torch.Tensor:
    """Values (n,) before each answer token is written; the value role must be active.

    Args:
        first: the value's first layer that trains, or the policy's where the value is only a head
            on it; what lies below is run once and kept.
    """
    # A value that is only a head reads the policy's states, which move.
    own = backbone.has("value")
    kept, start = _below(backbone, micro, "value" if own else "policy", first)
    hidden = backbone.forward.packed_hidden(micro.pack, kept, start)
    head = backbone.heads["value"]
    return head(hidden[micro.predicts], micro.read_by(head, micro.predicts))


def _below(
    backbone: Backbone, micro: MicroBatch, role: str, first: int
) -> tuple[torch.Tensor | None, int]:
    """States (N, H) of a role, which is active, below the layers to be run, and the first of them.

    The whole trunk where the layers from `first` on can't be run apart.
    """
    if first <= backbone.split or not backbone.forward.splits_at(first):
        return micro.trunk_on(backbone.device), backbone.split
    if role not in micro.lower or micro.lower[role][0] != first:
        states = backbone.forward.packed_lower(micro.pack, micro.trunk_on(backbone.device), first)
        micro.lower[role] = first, states.to(micro.home)
    return micro.lower[role][1].to(backbone.device), first


def value_serves_reward(backbone: Backbone, micros: Sequence[MicroBatch]) -> bool:
    """Whether what was run for the value is right for the reward role, too.

    The value begins as its copy: it is, where nothing below the value's first layer has changed.
    """
    firsts = {micro.lower["value"][0] if "value" in micro.lower else None for micro in micros}
    return all(first and backbone.same_below("value", "reward", first) for first in firsts)


def reward_states(backbone: Backbone, micro: MicroBatch, from_value: bool) -> torch.Tensor:
    """Final states (N, H) of the reward role, which is active.

    Args:
        from_value: go on from what was run for the value (`value_serves_reward`).
    """
    if not from_value:
        return backbone.forward.packed_hidden(micro.pack, micro.trunk_on(backbone.device))
    first, states = micro.lower["value"]
    return backbone.forward.packed_hidden(micro.pack, states.to(backbone.device), first)
