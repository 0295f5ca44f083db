"""Best of n: what is sampled, what is picked, and how far it can move away."""

import math

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.rewards.best_of import best_of, best_places, best_stream, kl_bound

PROMPTS = ["Why?", "How are you today?"]
HOW = {"role": "base", "max_new_tokens": 6, "seed": 3}


@pytest.fixture
def backbone(tiny: Backbone) -> Backbone:
    tiny.add_role("reward")
    head = tiny.heads["reward"]
    head.full_weight = torch.randn(
        len(head.full_weight), generator=torch.Generator().manual_seed(0)
    )
    return tiny


def test_the_answers_are_those_of_generate(backbone: Backbone) -> None:
    found = best_of(backbone, PROMPTS, 3, **HOW)
    plain = generate(backbone, [prompt for prompt in PROMPTS for _ in range(3)], **HOW)
    assert [answer for one in found for answer in one.answers] == plain
    for one in found:
        assert one.scores[one.best] == max(one.scores) and one.answer is one.answers[one.best]
    assert len({answer.text for answer in found[0].answers}) == 3
    assert list(best_stream(backbone, PROMPTS[0], 3, **HOW)) == [
        best_of(backbone, PROMPTS[:1], 3, **HOW)[0].answer.text
    ]


def test_more_answers_have_a_higher_best(backbone: Backbone) -> None:
    few, many = (best_of(backbone, PROMPTS, count, **HOW) for count in (1, 8))
    assert sum(max(one.scores) for one in many) > sum(max(one.scores) for one in few)
    with pytest.raises(ValueError, match="one answer or more"):
        best_of(backbone, PROMPTS, 0, **HOW)


def test_the_first_of_the_best_scores_is_picked() -> None:
    assert best_places([1.0, 3.0, 3.0, 0.5, -1.0, -2.0], 3) == [1, 0]
    assert best_places([], 4) == []


def test_the_bound_is_that_of_a_choice_among_many() -> None:
    """KL of the best of n among many equally likely answers: it comes near the bound from below."""
    for count in (1, 2, 4, 16):
        size = 20_000
        places = torch.arange(1, size + 1, dtype=torch.float64)
        chance = ((places / size) ** count) - (((places - 1) / size) ** count)
        kl = float((chance * (chance * size).log()).sum())
        assert kl <= kl_bound(count) + 1e-9
        assert kl == pytest.approx(kl_bound(count), abs=1e-3)
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
