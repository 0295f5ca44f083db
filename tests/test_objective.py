"""The mathematics of PPO against numbers worked out by hand and against plain loops."""

import math

import pytest
import torch

from lorarlhf.ppo.objective import (
    explained_variance,
    fit_line,
    gae,
    masked_mean,
    policy_loss,
    shape_rewards,
    token_logprobs,
    value_loss,
    whiten,
)


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]


# ---- means, whitening


def test_masked_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    assert masked_mean(x, x < 100).item() == 3.0
    assert masked_mean(x, torch.zeros_like(x, dtype=torch.bool)).item() == 0.0


def test_whiten_by_hand() -> None:
    x = torch.tensor([[2.0, 4.0, 99.0], [6.0, -99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # mean 4, variance (4 + 0 + 4) / 3
    step = 2 / math.sqrt(8 / 3)
    wanted = torch.tensor([[-step, 0.0, 0.0], [step, 0.0, 0.0]])
    torch.testing.assert_close(whiten(x, mask), wanted)


def test_whitened_values_have_mean_0_and_deviation_1_whatever_the_padding() -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 7 + 3
    mask = mask_of([9, 1, 4, 6, 2])
    white = whiten(x, mask)
    assert abs(white[mask].mean()) < 1e-6
    assert abs(white[mask].std(unbiased=False) - 1) < 1e-5
    assert not white[~mask].any()
    wider = whiten(
        torch.nn.functional.pad(x, (0, 4), value=50.0), torch.nn.functional.pad(mask, (0, 4))
    )
    torch.testing.assert_close(wider[:, :9], white)


def test_constant_advantages_vanish() -> None:
    x = torch.full((3, 4), 0.1) + torch.tensor([1e-8, -1e-8, 0.0])[:, None]
    assert whiten(x, mask_of([4, 2, 3])).abs().max() < 1e-3


# ---- rewards


@pytest.mark.parametrize(
    ("lengths", "places"),
    [([4, 4], [3, 3]), ([2, 4], [1, 3]), ([1, 3], [0, 2]), ([1, 1], [0, 0])],
    ids=["without eos", "one ended early", "an answer of one token", "only such answers"],
)
def test_the_score_lands_on_the_last_real_token(lengths: list[int], places: list[int]) -> None:
    mask = mask_of(lengths)
    zeros = torch.zeros(mask.shape)
    scores = torch.tensor([5.0, -7.0])
    rewards = shape_rewards(scores, zeros, zeros, mask, kl_coef=0.3)
    wanted = torch.zeros(mask.shape)
    wanted[0, places[0]], wanted[1, places[1]] = 5.0, -7.0
    assert torch.equal(rewards, wanted)


def test_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.0, -1.5]])
    ref_logprobs = torch.tensor([[-1.5, -1.0, -3.0], [-0.5, -2.0, -1.0]])
    mask = mask_of([2, 3])
    rewards = shape_rewards(torch.tensor([10.0, 20.0]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    wanted = torch.tensor([[-0.05, 10.1, 0.0], [0.0, -0.1, 20.05]])
    torch.testing.assert_close(rewards, wanted)


# ---- advantages


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, mask_of([3]), gamma=0.5, lam=0.5)
    # delta_2 = 3 - 1.5 = 1.5;  delta_1 = 2 + 0.75 - 1 = 1.75;  delta_0 = 1 + 0.5 - 0.5 = 1
    # A_2 = 1.5;  A_1 = 1.75 + 0.25 * 1.5 = 2.125;  A_0 = 1 + 0.25 * 2.125 = 1.53125
    assert advantages.tolist() == [[1.53125, 2.125, 1.5]]
    assert returns.tolist() == [[2.03125, 3.125, 3.0]]


def test_gae_equals_a_plain_double_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [6, 1, 3, 5]
    mask = mask_of(lengths)
    rewards = torch.randn(mask.shape, generator=generator)  # rubbish after the end, too
    values = torch.randn(mask.shape, generator=generator)
    gamma, lam = 0.97, 0.9
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        for t in range(length):
            total = 0.0
            for k in range(t, length):  # equation 16 of arXiv 1506.02438, term by term
                after = values[row, k + 1].item() if k + 1 < length else 0.0
                delta = rewards[row, k].item() + gamma * after - values[row, k].item()
                total += (gamma * lam) ** (k - t) * delta
            assert abs(advantages[row, t].item() - total) < 1e-5
            assert abs(returns[row, t].item() - total - values[row, t].item()) < 1e-5
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_at_lambda_1_is_the_whole_return() -> None:
    rewards = torch.tensor([[0.0, 0.0, 4.0], [0.0, 3.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 8.0]])
    _, returns = gae(rewards, values, mask_of([3, 2]), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[4.0, 4.0, 4.0], [3.0, 3.0, 0.0]]))


def test_gae_ignores_extra_padding() -> None:
    generator = torch.Generator().manual_seed(2)
    mask = mask_of([4, 2])
    rewards = torch.randn(2, 4, generator=generator) * mask
    values = torch.randn(2, 4, generator=generator)
    narrow = gae(rewards, values, mask, 1.0, 0.95)
    pad = (0, 3)
    wide = gae(
        torch.nn.functional.pad(rewards, pad),
        torch.nn.functional.pad(values, pad, value=5.0),
        torch.nn.functional.pad(mask, pad),
        1.0,
        0.95,
    )
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b[:, :4])


# ---- losses


def test_policy_loss_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = ratio.log().requires_grad_()
    loss, stats = policy_loss(logprobs, torch.zeros(5), advantages, clip_range=0.2)
    # -2;  -min(1.5, 1.2);  max(1.5, 1.2);  -min(0.5, 0.8);  max(0.5, 0.8)
    assert loss.item() == pytest.approx(-2 - 1.2 + 1.5 - 0.5 + 0.8)
    assert stats["clip_fraction"].item() == 2
    assert stats["ratio"].item() == pytest.approx(5.0)
    k3 = [r - 1 - math.log(r) for r in ratio.tolist()]
    assert stats["approx_kl"].item() == pytest.approx(sum(k3))
    loss.backward()
    # -advantage * ratio where the clip does not hold, 0 where it does
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.0, 0.0, 1.5, -0.5, 0.0]))


def test_value_loss_by_hand() -> None:
    values = torch.tensor([1.0, 1.5, 0.0, 0.1], requires_grad=True)
    old_values = torch.tensor([1.0, 1.0, 1.0, 0.0])
    returns = torch.tensor([2.0, 2.0, 0.0, 0.3])
    loss, clipped = value_loss(values, old_values, returns, clip_range=0.2)
    # plain: 1, 0.25, 0, 0.04;  with the clip: 1, (1.2 - 2)^2 = 0.64, (0.8 - 0)^2 = 0.64, 0.04
    assert loss.item() == pytest.approx(0.5 * (1 + 0.64 + 0.64 + 0.04))
    assert clipped.item() == 2
    loss.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([-1.0, 0.0, 0.0, -0.2]))


def test_fit_line_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.tensor([[0.0, 1.0, 50.0], [2.0, 70.0, 0.0]])
    y = torch.tensor([[1.0, 1.0, 90.0], [2.0, 10.0, 0.0]])
    # centred x: -1, 0, 1; y: 1, 1, 2 -> slope (1 * 1 + 1 * 0) / 2, shift 4/3 - 1/2
    slope, shift = fit_line(x, y, mask)
    assert (slope.item(), shift.item()) == pytest.approx((0.5, 5 / 6))
    assert fit_line(x, -y, mask)[0] == 0  # never turned round
    slope, shift = fit_line(x, -y, mask, low=0.25)
    assert (slope.item(), shift.item()) == pytest.approx((0.25, -4 / 3 - 0.25))
    assert fit_line(x, 9 * y, mask)[0] == 1  # never blown up
    slope, shift = fit_line(torch.ones_like(x), y, mask)
    assert (slope.item(), shift.item()) == pytest.approx((0, 4 / 3))


def test_explained_variance() -> None:
    mask = mask_of([2, 2])
    returns = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(returns + 4, returns, mask) == pytest.approx(1.0)  # a constant shift
    assert explained_variance(torch.zeros(2, 2), returns, mask) == 0.0
    # residuals 0, 0, 0, 2: variance 0.75 of a total of 5
    values = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert explained_variance(values, returns, mask) == pytest.approx(0.85)
    assert explained_variance(values, torch.ones(2, 2), mask) == 0.0  # nothing to explain
    ends = torch.nn.functional.pad(returns, (0, 1), value=77.0), mask_of([2, 2, 3])[:2]
    padded = torch.nn.functional.pad(values, (0, 1))
    assert explained_variance(padded, *ends) == pytest.approx(0.85)


# ---- log-probabilities of tokens


def plain_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `token_logprobs` means, with autograd doing the rest."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


def example(rows: int = 11, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, 8, generator=generator).to(dtype)
    weight = torch.randn(29, 8, generator=generator).to(dtype)
    targets = torch.randint(0, 29, (rows,), generator=generator)
    return hidden, weight, targets, torch.randn(rows, generator=generator)


SETTINGS = [(1.0, None), (0.7, None), (1.3, 4.0), (1.0, 30.0)]


@pytest.mark.parametrize(("temperature", "softcap"), SETTINGS)
def test_logprobs_and_their_gradient_equal_autograds_in_float64(
    temperature: float, softcap: float | None
) -> None:
    hidden, weight, targets, weights = example()
    ours = hidden.clone().requires_grad_()
    logprobs, entropy = token_logprobs(ours, weight, targets, temperature, softcap, chunk=4)
    (logprobs * weights).sum().backward()
    exact = hidden.double().requires_grad_()
    wanted, wanted_entropy = plain_logprobs(exact, weight.double(), targets, temperature, softcap)
    (wanted * weights).sum().backward()
    assert ours.grad is not None and exact.grad is not None
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted_entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "softcap"), SETTINGS)
def test_logprobs_without_a_gradient_are_the_same(
    temperature: float, softcap: float | None
) -> None:
    hidden, weight, targets, _ = example()
    with_grad = token_logprobs(hidden.requires_grad_(), weight, targets, temperature, softcap)
    with torch.no_grad():
        without = token_logprobs(hidden, weight, targets, temperature, softcap)
    for a, b in zip(with_grad, without, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_chunk_size_changes_nothing(softcap: float | None) -> None:
    results = []
    for chunk in (1, 3, 11, 256):
        hidden, weight, targets, weights = example()
        hidden.requires_grad_()
        logprobs, entropy = token_logprobs(hidden, weight, targets, 0.9, softcap, chunk)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), entropy, hidden.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_numbers_come_in_float32_and_the_gradient_in_bfloat16() -> None:
    hidden, weight, targets, _ = example(dtype=torch.bfloat16)
    hidden.requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    exact = hidden.detach().double().requires_grad_()
    wanted, _ = plain_logprobs(exact, weight.double(), targets, 1.0, None)
    wanted.sum().backward()
    assert hidden.grad is not None and exact.grad is not None
    torch.testing.assert_close(logprobs.double(), wanted, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=5e-2, atol=5e-2)


def test_a_certain_token_has_logprob_0_and_no_entropy() -> None:
    weight = torch.tensor([[1000.0], [0.0], [-1000.0]])
    logprobs, entropy = token_logprobs(torch.tensor([[1.0], [1.0]]), weight, torch.tensor([0, 1]))
    assert logprobs.tolist() == [0.0, -1000.0]
    assert entropy.tolist() == [0.0, 0.0]


def test_entropy_takes_no_gradient() -> None:
    hidden, weight, targets, _ = example()
    _, entropy = token_logprobs(hidden.requires_grad_(), weight, targets)
    assert not entropy.requires_grad
