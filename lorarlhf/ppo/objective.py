"""The mathematics of PPO: tensors in, tensors out, float32, no model.

Shapes: B sequences, C completion tokens (padded right), N valid answer tokens, H hidden, V
vocabulary. Masks (B, C) are true on answer tokens, the stop token included.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from lorarlhf.backbone.limits import LOGIT_ROWS, softmax_rows

Products: TypeAlias = tuple[
    Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]
]


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target], a few rows at a time, never (N, V) at once.

    A token's log-probability depends on its own hidden state only, so its gradient
    (W[target] - softmax @ W) / temperature is an (N, H) tensor. The forward computes and saves it,
    and the backward multiplies it by the incoming gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        products: Products | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_slope = ctx.needs_input_grad[0]
        pieces = [
            _chunk(
                hidden[i : i + chunk],
                weight,
                targets[i : i + chunk],
                temperature,
                softcap,
                wants_slope,
                products,
            )
            for i in range(0, len(hidden), chunk)
        ]
        logprobs = torch.cat([piece[0] for piece in pieces])
        entropy = torch.cat([piece[1] for piece in pieces])
        if wants_slope:
            ctx.save_for_backward(torch.cat([piece[2] for piece in pieces if piece[2] is not None]))
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _entropy_grad: torch.Tensor) -> tuple:
        (slope,) = ctx.saved_tensors
        return (grad[:, None] * slope).to(slope.dtype), None, None, None, None, None, None


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None,
    wants_slope: bool,
    products: Products | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (n,), entropies (n,) and, where wanted, their gradients (n, H) in `hidden`.

    The matrix products take all rows. The steps between them take a few rows at a time, small
    enough for a CPU's cache, and overwrite the logits.
    """
    forward, backward = products or (lambda x: x @ weight.T, lambda grad: grad @ weight)
    logits = forward(hidden)  # (n, V): one product, no copy of W
    rows = softmax_rows(logits.shape[1], hidden.device.type)
    kept = []
    for i in range(0, len(logits), rows):
        part = logits[i : i + rows]
        x = part.float()
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        x /= temperature
        own = x.gather(1, targets[i : i + rows, None]).squeeze(1)
        top = x.amax(dim=1, keepdim=True)
        x -= top
        e = x.exp()
        total = e.sum(dim=1)
        entropy = total.log() - torch.linalg.vecdot(e, x) / total
        kept.append((own - top.squeeze(1) - total.log(), entropy, own, total))
        if wants_slope:
            if softcap is not None:  # derivative of the cap
                e *= 1 - ((x + top) * (temperature / softcap)) ** 2
            part.copy_(e)
    logprobs, entropies, own, total = (torch.cat(part) for part in zip(*kept, strict=True))
    if not wants_slope:
        return logprobs, entropies, None
    at_target = weight[targets].float()
    if softcap is not None:
        at_target *= (1 - (own * (temperature / softcap)) ** 2)[:, None]
    slope = at_target - backward(logits).float() / total[:, None]
    return logprobs, entropies, slope / temperature


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = LOGIT_ROWS,
    products: Products | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy of each distribution.

    Args:
        hidden: (N, H) final hidden states at the positions that predict the targets.
        weight: (V, H) of the LM head, frozen.
        targets: (N,) token ids.
        temperature: divides the logits, as in sampling.
        softcap: the family's cap on logits (Gemma 2), or None.
        chunk: rows of logits in memory at a time.
        products: computes `x W^T` and `g W`, where the weight is kept in a faster form as well.

    Returns:
        float32 log-probabilities (N,), differentiable in `hidden`, and entropies (N,) in nats.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, softcap, chunk, products)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the true entries of `mask`; 0 if there are none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def whiten(x: torch.Tensor, mask: torch.Tensor, keep_mean: bool = False) -> torch.Tensor:
    """Mean 0 and deviation 1 over the valid entries; zeros elsewhere (arXiv 2403.17031, detail 18).

    A tensor that is constant up to rounding errors becomes zeros, and the errors are not amplified.
    With `keep_mean` only the deviation changes (for rewards, as in the code of arXiv 1909.08593).
    """
    mean = masked_mean(x, mask)
    centred = (x - mean) * mask
    variance = masked_mean(centred**2, mask)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return whitened + mean * mask if keep_mean else whitened


def shape_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """Per-token rewards (B, C): -kl_coef * (logp - ref_logp), and the score on the last real token.

    (arXiv 1909.08593, equation 2, with the k1 estimator per token.)
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    lengths = mask.long().sum(dim=1)
    rows = torch.nonzero(lengths, as_tuple=True)[0]
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16) -> advantages, returns.

    All (B, C). After an answer's last token the value and the advantage are 0.
    """
    device = values.device
    # On the CPU, because a card would start several kernels for every token of the longest answer.
    rewards, values, mask = rewards.cpu(), values.cpu(), mask.cpu().to(values.dtype)
    values = values * mask
    advantages = torch.zeros_like(values)
    carried = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = (delta + gamma * lam * carried) * mask[:, t]
        advantages[:, t] = carried
        next_value = values[:, t]
    return advantages.to(device), ((advantages + values) * mask).to(device)


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate, *summed* over the tokens given (arXiv 1707.06347, equation 7).

    The caller divides by the number of valid tokens of the whole minibatch, so that micro-batches
    of any size give the same step. All arguments (N,).

    Returns:
        the sum, and sums of `clip_fraction` (1 for a clipped token), `approx_kl` (k3:
        ratio - 1 - log ratio) and `ratio`.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    with torch.no_grad():
        stats = {
            "clip_fraction": (clipped > plain).float().sum(),
            "approx_kl": (ratio - 1 - log_ratio).sum(),
            "ratio": ratio.sum(),
        }
    return torch.max(plain, clipped).sum(), stats


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped squared error, halved and summed (arXiv 2403.17031, detail 17). Arguments (N,).

    Returns:
        the sum, and the number of tokens where the clipped term was the larger one.
    """
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.max(plain, clipped).sum(), (clipped > plain).float().sum().detach()


def fit_line(
    x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, low: float = 0.0, high: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares slope and shift of y = slope * x + shift over the valid tokens, all (B, C).

    The slope is clamped to `low` ... `high`. Where x is constant it is `low`.
    """
    mean_x, mean_y = masked_mean(x, mask), masked_mean(y, mask)
    variance = masked_mean((x - mean_x) ** 2, mask)
    slope = masked_mean((x - mean_x) * (y - mean_y), mask) / variance.clamp(min=1e-12)
    slope = slope.clamp(low, high)
    return slope, mean_y - slope * mean_x


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over valid tokens; a constant gives 0."""
    valid = mask.bool()
    total = returns[valid].var(unbiased=False)
    if total < 1e-12:
        return 0.0
    return (1 - (returns - values)[valid].var(unbiased=False) / total).item()


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's correlation of two vectors (B,); 0 if one of them is constant."""
    a, b = x.float() - x.float().mean(), y.float() - y.float().mean()
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size > 1e-9 else 0.0
