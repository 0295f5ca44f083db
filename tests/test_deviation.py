"""The deviation of every score, and what pessimism does with it in PPO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import completion
from lorarlhf.backbone.roles import SHRINK_TOKENS
from lorarlhf.ppo.micro_batches import make_micro_batches
from lorarlhf.ppo.rollout import Answers, reward_scores
from lorarlhf.ppo.scores import Rewards
from lorarlhf.rewards.deviation import ScoreDeviation, score_with_deviations
from lorarlhf.rewards.features import answer_features
from lorarlhf.rewards.posterior import Posterior
from lorarlhf.rewards.role import score_answers
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from tests.ppo_runs import PROMPTS, Make, rows_of
from tests.ppo_runs import make as make  # a fixture
from tests.test_posterior import WIDTH, made

TEXTS = ["A cod.", "I do not know that, sorry", "No", "Wax of bees", ""]
ASKED = PROMPTS[: len(TEXTS)]


def votes_on(backbone: Backbone) -> VoteFit:
    """Eight votes on short answers, in the features of a base."""
    words = ["yes", "no", "a little tea", "what?", "it is late", "never", "perhaps a fish", "wax"]
    found = VoteFit()
    plus, minus = (answer_features(backbone, PROMPTS[:8], part) for part in (words, words[::-1]))
    found.add_all(plus, minus, [str(place % 4) for place in range(8)])
    return found


@pytest.fixture
def votes(tiny: Backbone) -> VoteFit:
    """The votes of the tiny base's reward role, which has their fit."""
    found = votes_on(tiny)
    fit = found.fit()
    tiny.add_role("reward")
    tiny.heads["reward"].full_weight = torch.tensor(fit.weight)
    tiny.heads["reward"].bias.data.fill_(fit.bias)
    return found


def rolled(backbone: Backbone) -> Answers:
    """The texts as a rollout's answers; every other one has ended."""
    (stop,) = backbone.stop_ids
    ids = [backbone.tokenizer(text)["input_ids"] for text in TEXTS[:4]]
    done = [completion(backbone, row + [stop] * (n % 2)) for n, row in enumerate(ids)]
    encoded = [backbone.encode(prompt) for prompt in ASKED[:4]]
    rows = [{"prompt": prompt} for prompt in ASKED[:4]]
    return Answers(rows, done, [make_micro_batches(backbone, encoded, done, size=3)])


# ---- the numbers


@pytest.mark.parametrize("count", [4, 40])  # fewer votes than columns, and more
@pytest.mark.parametrize("with_axes", [True, False])
def test_the_folded_posterior_is_the_posterior(count: int, with_axes: bool) -> None:
    better, worse, axes = made(count)
    fit = VoteFit(axes if with_axes else None)
    fit.add_all(better, worse, list(range(count)))
    posterior = fit.posterior()
    assert fit._blend is not None and len(fit._blend.priors) > 1
    asked = np.random.default_rng(1).normal(size=(7, WIDTH)) * 3
    offset, factor = posterior.folded()
    assert factor.shape == (WIDTH, WIDTH)
    found = np.linalg.norm((asked.astype(np.float32) - offset) @ factor.T, axis=1)
    np.testing.assert_allclose(found, posterior.scores(asked)[1], rtol=1e-5)


def test_a_deviation_by_hand() -> None:
    """|(2 * 1, 3 * 2)| = 40 ** 0.5, times the shrinkage of an answer of 16 tokens: one half."""
    doubt = ScoreDeviation(torch.tensor([1.0, -1.0]), torch.diag(torch.tensor([2.0, 3.0])))
    found = doubt(torch.tensor([[2.0, 1.0], [1.0, -1.0]]), torch.tensor([SHRINK_TOKENS, 5]))
    assert found.tolist() == pytest.approx([40**0.5 / 2, 0.0])


def wanted(backbone: Backbone, posterior: Posterior, texts: list[str]) -> list[float]:
    """The posterior's own deviations, shrunk for short answers as their scores are."""
    _, deviations = posterior.scores(answer_features(backbone, ASKED[: len(texts)], texts))
    counts = np.array([max(1, len(backbone.tokenizer(text)["input_ids"])) for text in texts])
    return list(deviations * counts / (counts + SHRINK_TOKENS))


@pytest.mark.parametrize("trained", [False, True])
def test_rollouts_and_texts_have_the_posterior_s_deviations(
    tiny: Backbone, votes: VoteFit, randomise: Callable[..., None], trained: bool
) -> None:
    posterior = votes.posterior()
    doubt = ScoreDeviation.of(posterior)
    if trained:  # on top of the fit: other scores, and the doubt of the fit
        untrained = reward_scores(tiny, rolled(tiny))[0]
        randomise(tiny, "reward")
    answers = rolled(tiny)
    runs: list[int] = []
    hook = tiny.decoder.layers[-1].register_forward_hook(lambda *_: runs.append(1))
    scores, deviations = reward_scores(tiny, answers, doubt)
    hook.remove()
    assert len(runs) == len(answers.micro_batches) * (2 if trained else 1)
    assert torch.equal(scores, reward_scores(tiny, answers)[0])
    assert trained != torch.allclose(scores, untrained if trained else scores)
    assert deviations.tolist() == pytest.approx(wanted(tiny, posterior, TEXTS[:4]), rel=1e-3)
    raw, unsure = score_with_deviations(tiny, ASKED, TEXTS, doubt)
    assert raw == pytest.approx(score_answers(tiny, ASKED, TEXTS), rel=1e-4, abs=1e-5)
    assert unsure == pytest.approx(wanted(tiny, posterior, TEXTS), rel=1e-3)
    assert min(unsure) > 0


def test_the_score_minus_two_deviations(tiny: Backbone, votes: VoteFit) -> None:
    doubt, answers = ScoreDeviation.of(votes.posterior()), rolled(tiny)
    tiny.heads["reward"].score_mean.fill_(0.5)
    tiny.heads["reward"].score_std.fill_(2.0)
    raw, deviations = reward_scores(tiny, answers, doubt)
    alone = Rewards(tiny, ["reward"], pessimism=2.0, deviation=doubt).score(answers, [0, 3], None)
    assert alone.sums == pytest.approx((raw - 2 * deviations)[[0, 3]].tolist())
    assert alone.deviations == deviations[[0, 3]].tolist()

    def ones(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    both = Rewards(tiny, ["reward", ones], [1.0, 10.0], 2.0, doubt).score(answers, [1], None)
    scaled = ((raw - 2 * deviations)[1] - 0.5) / 2
    assert both.sums == pytest.approx([scaled.item() + 10])
    off = Rewards(tiny, ["reward"], deviation=doubt).score(answers, range(4), None)
    assert off.sums == raw.tolist() and off.deviations == []


# ---- in use


def test_ppo_logs_it_and_resumes(tiny_base: Path, make: Make) -> None:
    from tests.ppo_runs import load

    def trainer(folder: str, updates: int, pessimism: float) -> Any:
        backbone = load(tiny_base)
        found = votes_on(backbone)
        backbone.add_role("reward")
        backbone.heads["reward"].full_weight = torch.tensor(found.fit().weight)
        return make(
            backbone,
            reward_funcs=None,
            folder=folder,
            updates=updates,
            deviation=ScoreDeviation.of(found.posterior()),
            reward_pessimism=pessimism,
            eval_dataset=[{"prompt": "Tea?"}, {"prompt": "Now?"}],
            eval_steps=2,
            save_steps=1,
        )

    off, on, part = trainer("off", 1, 0.0), trainer("on", 3, 1.5), trainer("parts", 1, 1.5)
    off.train()
    on.train()
    plain = next(row for row in rows_of(off) if "kl" in row)
    row = next(row for row in rows_of(on) if "kl" in row)
    assert not any("deviation" in name for name in plain)
    assert row["reward_deviation"] > 0
    # The same answers in the first update.
    assert row["score"] == pytest.approx(plain["score"] - 1.5 * row["reward_deviation"], abs=1e-5)
    assert any(found.get("eval_reward_deviation", 0) > 0 for found in rows_of(on))
    part.train()
    again = trainer("parts", 3, 1.5)
    again.train(resume_from_checkpoint=True)
    trained = [row for row in rows_of(again) if "kl" in row]
    assert trained == [row for row in rows_of(on) if "kl" in row]


def test_pessimism_needs_a_deviation(tiny: Backbone, votes: VoteFit, make: Make) -> None:
    with pytest.raises(ValueError, match="needs the reward role and its ScoreDeviation"):
        make(tiny, reward_funcs=None, reward_pessimism=1.0)
    doubt = ScoreDeviation.of(votes.posterior())
    with pytest.raises(ValueError, match="needs the reward role and its ScoreDeviation"):
        make(tiny, reward_pessimism=1.0, deviation=doubt)  # a function alone
    with pytest.raises(ValueError, match="reward_pessimism is 0 or more"):
        make(tiny, reward_funcs=None, reward_pessimism=-1.0, deviation=doubt)


def test_what_has_no_deviation_is_refused(tiny: Backbone, votes: VoteFit, tmp_path: Path) -> None:
    path = tmp_path / "votes.safetensors"
    with pytest.raises(UserError, match=r"there is no .*votes\.safetensors"):
        ScoreDeviation.load(path, tiny)
    votes.save(path)
    found = ScoreDeviation.load(path, tiny)
    torch.testing.assert_close(found.factor, ScoreDeviation.of(votes.posterior()).factor)
    narrow = VoteFit()
    narrow.add_all(votes.chosen[:, :5].copy(), votes.rejected[:, :5].copy(), votes.groups)
    narrow.save(path)
    with pytest.raises(UserError, match="have 5 features an answer, and this base"):
        ScoreDeviation.load(path, tiny)
    tiny.add_role("reward", pooling="last")
    with pytest.raises(UserError, match="with pooling mean, and this one has last"):
        ScoreDeviation.load(path, tiny)
