"""What each token of an answer adds to its score.

A `mean` head scores an answer by the mean over its tokens, so a token's share is exact: what the
head says of the token's own states, divided by what the mean is divided by. The shares add up to
the score, with a trained adapter too. A state also knows the tokens before it, so a word may owe
its share to what it answers.

A `last` head reads one token alone. There the shares are integrated gradients (arXiv 1703.01365,
equation 1) along the line from an answer of as many line breaks to the real one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.roles import SHRINK_TOKENS
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.role import Answer, EncodedAnswer, encode_answer, token_scores

STEPS, STEPS_AT_ONCE = 64, 8
"""Points of the line at which gradients are taken, and how many of them in one forward."""


@dataclass(frozen=True)
class TokenShares:
    """One answer's score by its parts; `sum(shares) + rest` is the score.

    Attributes:
        score: the reward role's raw score.
        texts: the answer's tokens as text; joined they are the answer.
        shares: what each adds to the score.
        rest: what no token of the answer adds: 0 for a `mean` head, and for a `last` one about the
            score of as many line breaks.
        exact: whether the shares are the score's own terms, and not integrated gradients.
    """

    score: float
    texts: list[str]
    shares: list[float]
    rest: float
    exact: bool


def token_shares(backbone: Backbone, prompt: Prompt, answer: Answer) -> TokenShares:
    """The shares of an answer's tokens in the reward role's score."""
    head = backbone.heads["reward"]
    encoded = encode_answer(backbone, prompt, answer, head.pooling)
    if head.pooling == "last":
        return _integrated(backbone, encoded)
    per_token = token_scores(backbone, encoded)
    shares = (per_token / (len(per_token) + SHRINK_TOKENS)).tolist()
    texts = token_texts(backbone, encoded.ids[encoded.start : encoded.end])
    return TokenShares(sum(shares), texts, shares, 0.0, exact=True)


def _integrated(backbone: Backbone, encoded: EncodedAnswer) -> TokenShares:
    """Of a `last` head. The stop token, where the score is read, stays what it is."""
    ids = torch.tensor([encoded.ids], device=backbone.device)
    own = slice(encoded.start, max(encoded.start + 1, encoded.end - 1))
    neutral = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    embed, head = backbone.causal.get_input_embeddings(), backbone.heads["reward"]
    blank = ids.clone()
    blank[:, own] = neutral
    start, whole = embed(blank).detach().float(), embed(ids).detach().float()
    points = (torch.arange(STEPS, device=ids.device) + 0.5) / STEPS
    total = torch.zeros_like(whole[0])

    def scores(embedded: torch.Tensor) -> torch.Tensor:
        hidden = backbone.forward.hidden_of_embeddings(embedded.to(backbone.compute_dtype))
        return head(hidden[:, -1])

    with backbone.role("reward"):
        for some in points.split(STEPS_AT_ONCE):
            between = (start + some[:, None, None] * (whole - start)).requires_grad_()
            (gradient,) = torch.autograd.grad(scores(between).sum(), between)
            total += gradient.sum(dim=0)
        with torch.no_grad():
            score = float(scores(whole))
    shares = ((whole - start)[0] * total / STEPS).sum(dim=-1)[own].tolist()
    texts = token_texts(backbone, encoded.ids[own])
    return TokenShares(score, texts, shares, score - sum(shares), exact=False)


def words_of(found: TokenShares) -> list[tuple[str, float]]:
    """Words with the sums of their tokens' shares; joined they are the answer."""
    words: list[tuple[str, float]] = []
    for text, share in zip(found.texts, found.shares, strict=True):
        before = words[-1][0] if words else ""
        blank_between = text[:1].isspace() or before[-1:].isspace()
        if words and not (before.strip() and text and blank_between):
            words[-1] = (before + text, words[-1][1] + share)
        else:
            words.append((text, share))
    return words


def token_texts(backbone: Backbone, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text of all.

    A character of several tokens belongs to the last of them, and the others are empty.
    """

    def decode(some: Sequence[int]) -> str:
        return backbone.tokenizer.decode(some, skip_special_tokens=False)

    near = _decoded(decode, ids, all_before=False)
    # Some tokenizers write a token in another way when they see more than the one before it.
    return near if "".join(near) == decode(ids) else _decoded(decode, ids, all_before=True)


def _decoded(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], all_before: bool
) -> list[str]:
    """What each token adds to the text of all tokens before it, or of the piece before it."""
    texts: list[str] = []
    start, end, before = 0, 0, ""  # the tokens that are decoded before, and their text
    for count in range(1, len(ids) + 1):
        text = decode(ids[start:count])
        if text.endswith("\ufffd") and count < len(ids):  # perhaps not all of a character
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, end = 0 if all_before else end, count
        before = text if all_before else decode(ids[start:end])
    return texts
