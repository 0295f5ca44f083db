"""Micro-batches: a few sequences packed into rows, with the states below the layers that train.

Policy, reference, value and reward use the same rows. The layers below those that a role trains are
run once per rollout. Their output is kept on the device or, for a large rollout, in main memory.
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
        rows: the sequences' row numbers in the rollout.
        pack: prompts and answers, followed by a stop token where one is scored.
        predicts: (n,) the packed rows whose next token is an answer token.
        targets: (n,) those answer tokens, sequence by sequence.
        answers: (b, A) the packed rows of each answer that the reward role scores: all but the stop
            token, or with `last` pooling the stop token alone.
        answer_mask: (b, A) false on the padding of `answers`.
        storage: the device that holds `trunk` and `lower`.
        trunk: (N, H) output of the layers below the adapters, or None.
        lower: by role, the first layer that trains and the states (N, H) below it, once computed.
    """

    rows: list[int]
    pack: Pack
    predicts: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    answer_mask: torch.Tensor
    storage: torch.device
    trunk: torch.Tensor | None
    lower: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)

    def trunk_on(self, device: torch.device) -> torch.Tensor | None:
        """The trunk (N, H) on a device."""
        return None if self.trunk is None else self.trunk.to(device)

    def trunk_for(self, head: ScalarHead, rows: torch.Tensor) -> torch.Tensor | None:
        """The trunk (..., H) at some packed rows; None where the head does not read it."""
        trunk = self.trunk_on(rows.device) if head.trunk_weight is not None else None
        return None if trunk is None else trunk[rows]


def retry_smaller_micro_batches(args: PPOConfig, attempt: Callable[[], T]) -> T:
    """Return `attempt()`; when memory runs out, halve `args.micro_batch_size` and try again.

    The size of a micro-batch does not change the optimizer steps. The attempt reads the size again
    each time, starts from scratch and must not communicate with other processes.

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


def storage_device(backbone: Backbone, tokens: int) -> torch.device:
    """The device that holds a rollout's kept states: the backbone's if there are few tokens."""
    small = kept_on_device(tokens, backbone.hidden_size, backbone.compute_dtype.itemsize)
    return backbone.device if small else torch.device("cpu")


def make_micro_batches(
    backbone: Backbone,
    encoded: list[list[int]],
    completions: list[Completion],
    size: int,
    rows: Sequence[int] | None = None,
    storage: torch.device | None = None,
) -> list[MicroBatch]:
    """Micro-batches of sequences of similar length, each with its trunk.

    Args:
        encoded: token ids of each prompt.
        size: sequences in a micro-batch.
        rows: the sequences to take; all by default.
        storage: holds the kept states; the backbone's device by default.
    """
    chosen = range(len(encoded)) if rows is None else rows
    order = sorted(chosen, key=lambda i: len(encoded[i]) + len(completions[i].ids))
    return [
        _micro_batch(
            backbone, order[i : i + size], encoded, completions, storage or backbone.device
        )
        for i in range(0, len(order), size)
    ]


def _micro_batch(
    backbone: Backbone,
    rows: list[int],
    encoded: list[list[int]],
    completions: list[Completion],
    storage: torch.device,
) -> MicroBatch:
    device = backbone.device
    starts = [len(encoded[i]) for i in rows]
    own = [_with_stop(backbone, completions[i]) for i in rows]
    # The last token of a prompt predicts, so it is never part of the shared prefix.
    sequences = [encoded[i] + ids for i, ids in zip(rows, own, strict=True)]
    pack = Pack.of(sequences, device, min(starts) - 1)
    predicts: list[int] = []
    answers: list[list[int]] = []
    for j, i in enumerate(rows):
        first, count = pack.row(j, starts[j]), len(completions[i].ids)
        predicts += range(first - 1, first + count - 1)
        if _scores_stop_token(backbone):
            answers.append([first + len(own[j]) - 1])
        else:  # an answer of only a stop token is scored on that token
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
        storage=storage,
        trunk=None if trunk is None else trunk.to(storage),
    )


def _with_stop(backbone: Backbone, completion: Completion) -> list[int]:
    """The tokens of an answer; one that was cut off gets a stop token where that is scored."""
    added = _scores_stop_token(backbone) and not completion.ended
    stop = backbone.stop_id
    return [*completion.ids, stop] if added and stop is not None else completion.ids


def _scores_stop_token(backbone: Backbone) -> bool:
    """Whether the reward role scores an answer at its stop token.

    With `last` pooling it was trained on that position alone.
    """
    return "reward" in backbone.heads and backbone.heads["reward"].pooling == "last"


def first_trained_layer(backbone: Backbone, args: PPOConfig, role: str) -> int:
    """The first layer of a role that trains; 0 where all layers with adapters do.

    The layers below stay as they were at the start.
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
        first: the policy's first layer that trains; the states below it are computed once.
    """
    kept, start = _states_below(backbone, micro, "policy", first)
    hidden = backbone.forward.packed_hidden(micro.pack, kept, start)
    head = backbone.lm_head
    return objective.token_logprobs(
        hidden[micro.predicts],
        head.weight,
        micro.targets,
        temperature,
        head.softcap,
        products=head.products,
    )


def token_values(backbone: Backbone, micro: MicroBatch, first: int = 0) -> torch.Tensor:
    """Values (n,) before each answer token is written; the value role must be active.

    Args:
        first: the value's first layer that trains, or the policy's where the value is only a head
            on the policy; the states below it are computed once.
    """
    # A value that is only a head reads the policy's states.
    own = backbone.has("value")
    kept, start = _states_below(backbone, micro, "value" if own else "policy", first)
    hidden = backbone.forward.packed_hidden(micro.pack, kept, start)
    head = backbone.heads["value"]
    return head(hidden[micro.predicts], micro.trunk_for(head, micro.predicts))


def _states_below(
    backbone: Backbone, micro: MicroBatch, role: str, first: int
) -> tuple[torch.Tensor | None, int]:
    """States (N, H) of the active role below the layers that are run, and the first of those.

    These are the trunk and the split where the model can't be split at `first`.
    """
    if first <= backbone.split or not backbone.forward.splits_at(first):
        return micro.trunk_on(backbone.device), backbone.split
    if role not in micro.lower or micro.lower[role][0] != first:
        states = backbone.forward.packed_lower(micro.pack, micro.trunk_on(backbone.device), first)
        micro.lower[role] = first, states.to(micro.storage)
    return micro.lower[role][1].to(backbone.device), first


def can_reuse_value_states(backbone: Backbone, micros: Sequence[MicroBatch]) -> bool:
    """Whether the states computed for the value are also those of the reward role.

    They are where the value began as a copy of the reward role, since only its upper layers train.
    """
    firsts = {micro.lower["value"][0] if "value" in micro.lower else None for micro in micros}
    return all(first and backbone.same_below("value", "reward", first) for first in firsts)


def reward_states(backbone: Backbone, micro: MicroBatch, from_value: bool) -> torch.Tensor:
    """Final states (N, H) of the active role, which is the reward role or the base.

    Args:
        from_value: start from the states computed for the value (`can_reuse_value_states`).
    """
    if not from_value:
        return backbone.forward.packed_hidden(micro.pack, micro.trunk_on(backbone.device))
    first, states = micro.lower["value"]
    return backbone.forward.packed_hidden(micro.pack, states.to(backbone.device), first)
