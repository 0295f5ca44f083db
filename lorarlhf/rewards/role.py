"""The reward role's scores of texts, and the pooled hidden states that its head is fitted to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.oom import batches_by_length
from lorarlhf.backbone.roles import normed, reads_trunk
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.data.readers import as_text

Answer = str | list[dict[str, str]]


@dataclass(frozen=True)
class EncodedAnswer:
    """Prompt and answer as token ids; the tokens from `start` to `end` (exclusive) are pooled."""

    ids: list[int]
    start: int
    end: int

    @staticmethod
    def batch(
        answers: Sequence["EncodedAnswer"], pad: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids padded on the right, attention mask and mask of the pooled tokens, each (B, T)."""
        width = max(len(answer.ids) for answer in answers)
        padded = [a.ids + [pad] * (width - len(a.ids)) for a in answers]
        ids = torch.tensor(padded, device=device)
        columns = torch.arange(width, device=device)[None, :]
        places = torch.tensor([(len(a.ids), a.start, a.end) for a in answers], device=device)
        lengths, starts, ends = places.T[:, :, None]
        return ids, (columns < lengths).long(), (columns >= starts) & (columns < ends)


def encode_answer(
    backbone: Backbone, prompt: Prompt, answer: Answer, pooling: str = "mean"
) -> EncodedAnswer:
    """Token ids of a prompt, its answer and the stop token.

    `mean` pools the tokens of the answer (for an empty answer, the stop token); `last` includes the
    stop token, where other tools read the score.
    """
    before = backbone.encode(prompt)
    own = backbone.tokenizer(as_text(answer), add_special_tokens=False)["input_ids"]
    # TRL ends plain texts with the tokenizer's EOS.
    stop = backbone.tokenizer.eos_token_id if isinstance(prompt, str) else backbone.stop_id
    ids = before + own + ([stop] if stop is not None else [])
    end = len(ids) if pooling == "last" or not own else len(before) + len(own)
    return EncodedAnswer(ids, len(before), end)


def pooled_states(
    backbone: Backbone,
    answers: Sequence[EncodedAnswer],
    pooling: str = "mean",
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """The inputs of a head with this pooling, from the base without adapters -> float32 (N, F).

    `mean`: F = 2H, the trunk's output and the final state (H without a trunk); `last`: the final
    state, F = H.
    """
    if not answers:
        raise ValueError("there are no answers")
    states = np.empty((len(answers), state_width(backbone, pooling)), np.float32)
    for rows, some in pooled_batches(backbone, answers, pooling, batch_size):
        states[rows] = some
        progress(len(rows))
    return states


def state_width(backbone: Backbone, pooling: str) -> int:
    """F of `pooled_states`."""
    parts = 2 if reads_trunk(pooling, backbone.forward.keeps_trunk) else 1
    return parts * backbone.hidden_size


def pooled_batches(
    backbone: Backbone,
    answers: Sequence[EncodedAnswer],
    pooling: str = "mean",
    batch_size: int = 16,
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """`pooled_states` batch by batch: places in `answers`, and their rows, float32 (n, F)."""
    with torch.no_grad(), backbone.role("base"):
        for rows, hidden, mask, trunk in _batches(backbone, answers, batch_size):
            if pooling == "last":
                mask = mask & (mask.long().cumsum(1) == mask.long().sum(1, keepdim=True))
            read = None if pooling == "last" else trunk
            yield rows, pool_states(hidden, mask, read).cpu().numpy()


def pool_states(
    hidden: torch.Tensor, mask: torch.Tensor, trunk: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean over masked tokens (B, T) of states (B, T, H), the trunk's first: float32 (B, F)."""
    weights = mask.float() / mask.sum(dim=1, keepdim=True)
    parts = [hidden] if trunk is None else [normed(trunk), hidden]
    pooled = [torch.einsum("bth,bt->bh", part.float(), weights) for part in parts]
    return torch.cat(pooled, dim=1)


@torch.no_grad()
def score_encoded(
    backbone: Backbone,
    answers: Sequence[EncodedAnswer],
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> list[float]:
    """Raw scores of the reward role; `progress` gets the number of answers of each batch."""
    scores = torch.zeros(len(answers), device="cpu")
    head = backbone.heads["reward"]
    with backbone.role("reward"):
        for rows, hidden, mask, trunk in _batches(backbone, answers, batch_size):
            scores[rows] = head.pool(hidden, mask, trunk).cpu()
            progress(len(rows))
    return scores.tolist()


@torch.no_grad()
def token_scores(backbone: Backbone, answer: EncodedAnswer) -> torch.Tensor:
    """What the reward role's head says of each pooled token of one answer: (n,)."""
    with backbone.role("reward"):
        _, hidden, mask, trunk = next(_batches(backbone, [answer], 1))
        return backbone.heads["reward"](hidden, trunk)[mask].cpu()


def score_answers(
    backbone: Backbone, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> list[float]:
    """Raw scores of the reward role for texts; higher means preferred by the rater."""
    pooling = backbone.heads["reward"].pooling
    pairs = zip(prompts, answers, strict=True)
    return score_encoded(backbone, [encode_answer(backbone, p, a, pooling) for p, a in pairs])


def _batches(backbone: Backbone, answers: Sequence[EncodedAnswer], size: int):
    """Batches by length: indices of the answers, final states (b, A, H), their mask (b, A), trunk.

    The states are those of the tokens to pool. A batch is packed: what all of its prompts begin
    with runs once. It has at most `size` answers, and fewer if memory runs out.
    """

    def forward(rows: Sequence[int]) -> Any:
        some = [answers[i] for i in rows]
        first = min(answer.start for answer in some)
        pack = Pack.of([answer.ids for answer in some], backbone.device, first)
        trunk = backbone.forward.packed_trunk(pack)
        hidden = backbone.forward.packed_hidden(pack, trunk)
        places, mask = _pooled_rows(pack, some, backbone.device)
        return hidden[places], mask, None if trunk is None else trunk[places]

    for rows, found in batches_by_length([len(answer.ids) for answer in answers], size, forward):
        yield rows, *found


def _pooled_rows(
    pack: Pack, answers: Sequence[EncodedAnswer], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed rows (b, A) of the tokens to pool, and false (b, A) where an answer has fewer."""
    rows = [[pack.row(n, place) for place in range(a.start, a.end)] for n, a in enumerate(answers)]
    width = max(map(len, rows))
    places = [row + [0] * (width - len(row)) for row in rows]
    mask = [[column < len(row) for column in range(width)] for row in rows]
    return torch.tensor(places, device=device), torch.tensor(mask, device=device)
