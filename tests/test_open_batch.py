"""Answers that join and leave a running batch are those that are sampled alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorarlhf import Backbone
from lorarlhf.backbone import sampler
from lorarlhf.backbone.generation import encode_prompts, generate_ids
from lorarlhf.backbone.open_batch import ROOM, OpenAnswer, OpenBatch, nucleus, pick_each
from lorarlhf.backbone.sampler import TRIM_EVERY

QUESTIONS = ["Hi", "Name three quiet hobbies.", "Why is the sky blue, and the sea as well?", "And?"]


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return backbone


def answers(backbone: Backbone, **how: float) -> list[OpenAnswer]:
    prompts = [[{"role": "user", "content": text}] for text in QUESTIONS]
    ids = encode_prompts(backbone, prompts, 512)
    longest = int(how.pop("tokens", 24))
    return [OpenAnswer(one, seed, longest, **how) for seed, one in enumerate(ids)]


def alone(backbone: Backbone, temperature: float, tokens: int = 24) -> list[list[int]]:
    found = []
    for one in answers(backbone):
        found += generate_ids(
            backbone,
            [one.prompt_ids],
            max_new_tokens=tokens,
            temperature=temperature,
            seeds=[one.seed],
        )
    return found


def finish(batch: OpenBatch) -> None:
    while not batch.done:
        batch.step()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_one_alone(backbone: Backbone, temperature: float) -> None:
    """One joins after five tokens, two more after nine; one that is stopped leaves."""
    with backbone.role("policy"):
        wanted = alone(backbone, temperature)
        ours = answers(backbone, temperature=temperature)
        batch = OpenBatch(backbone, ours[:1])
        for group, steps in ((ours[1:2], 5), (ours[2:], 4)):
            for _ in range(steps):
                batch.step()
            other = OpenBatch(backbone, group)
            other.step()
            assert batch.join(other) and other.done
        assert len(batch.answers) == len([one for one in ours if not one.done])
        batch.step()
        ours[2].done = True  # its client went away
        finish(batch)
    assert [one.ids for one in ours[:2] + ours[3:]] == wanted[:2] + wanted[3:]
    assert ours[2].ids == wanted[2][: len(ours[2].ids)]


def test_a_batch_of_different_ways_to_sample(backbone: Backbone) -> None:
    with backbone.role("policy"):
        greedy, warm = alone(backbone, 0.0), alone(backbone, 1.0)
        ours = answers(backbone)
        ours[0].temperature = ours[2].temperature = 0.0
        ours[1].max_new_tokens = 3
        batch = OpenBatch(backbone, ours)
        finish(batch)
    assert ours[0].ids == greedy[0] and ours[2].ids == greedy[2]
    assert ours[1].ids == warm[1][:3] and ours[3].ids == warm[3]


def test_columns_that_no_row_uses_go(backbone: Backbone) -> None:
    """A batch that others join all the time gets no wider than its longest answer."""
    with backbone.role("base"):
        first = answers(backbone, tokens=60)[1]
        batch = OpenBatch(backbone, [first])
        for _ in range(30):
            batch.step()
        later = answers(backbone, tokens=60)[0]
        other = OpenBatch(backbone, [later])
        other.step()
        assert batch.join(other)
        first.done = True
        batch.leave()
        assert batch._mask.shape[1] == len(later.prompt_ids)
        finish(batch)


def test_answers_longer_than_the_first_room(backbone: Backbone) -> None:
    with backbone.role("base"):
        (wanted,) = alone(backbone, 0.0, ROOM + 20)[:1]
        one = answers(backbone, temperature=0.0, tokens=ROOM + 20)[0]
        finish(OpenBatch(backbone, [one]))
    assert one.ids == wanted


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_windows_are_not_joined(make_base: Callable[..., Path], family: str) -> None:
    base = make_base(family=family, sliding_window=16)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    with backbone.role("base"):
        wanted = alone(backbone, 1.0)
        ours = answers(backbone)
        batches = [OpenBatch(backbone, ours[:2]), OpenBatch(backbone, ours[2:])]
        for batch in batches:
            batch.step()
        assert not batches[0].join(batches[1])
        for batch in batches:
            finish(batch)
    assert [one.ids for one in ours] == wanted


def test_the_nucleus_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    for top_p, sizes in ((0.4, 1), (0.5001, 2), (0.8001, 3), (0.999, 4)):
        kept = nucleus(logits, 1.0, top_p).isfinite()
        assert kept.sum(dim=1).tolist() == [sizes, sizes], top_p
        assert kept[0, 0] and kept[1, 3]
    # At a temperature of 2 the largest share is 0.41, so that two are needed for a half.
    assert nucleus(logits, 2.0, 0.5).isfinite().sum(dim=1).tolist() == [2, 2]


def test_draws_pick_within_the_nucleus() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(200, 1)
    draws = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    one = OpenAnswer([1], 0, 1, top_p=0.75)
    counts = pick_each(logits, draws, [one] * 200).bincount(minlength=4).tolist()
    assert counts[2:] == [0, 0]
    assert abs(counts[0] - 125) <= 1  # 0.5 / 0.8 of 200


def test_a_batch_gives_back_the_memory_of_its_steps(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(sampler, "give_back_memory", lambda: trimmed.append(1))
    with backbone.role("base"):
        batch = OpenBatch(backbone, answers(backbone, temperature=0.0, tokens=80)[:1])
        steps = 0
        while not batch.done:
            batch.step()
            steps += 1
    assert steps >= TRIM_EVERY and len(trimmed) == steps // TRIM_EVERY
