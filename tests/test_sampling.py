"""Tokens are drawn where their numbers fall, the cache holds what transformers' own holds, and an
answer is the same alone and in company, whatever is shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.limits import SOFTMAX_ENTRIES
from lorarlhf.backbone.sampler import PreallocatedLayer, Sampler, pick, row_seeds

BEGIN = [40, 41, 42, 43, 44, 45]
ROOM = 64
PROMPTS = [[*BEGIN, 50], [*BEGIN, 51, 52, 53], [*BEGIN, 54, 55]]


def test_a_draw_takes_the_token_in_which_it_ends() -> None:
    logits = torch.tensor([0.2, 0.5, 0.0, 0.3]).log().expand(6, -1)
    draws = torch.tensor([0.0, 0.199, 0.201, 0.699, 0.701, 1 - 1e-12], dtype=torch.float64)
    assert pick(logits, draws, 1.0).tolist() == [0, 0, 1, 1, 3, 3]
    assert pick(logits, draws, 0.0).tolist() == [1] * 6
    # At temperature 2 the shares are those of the square roots: 0.26, 0.42, 0, 0.32.
    assert pick(logits, draws, 2.0).tolist() == [0, 0, 0, 3, 3, 3]


def test_rare_tokens_are_drawn_among_many() -> None:
    """Added up in float32, the last of 50,000 words would be rounded away."""
    logits = torch.zeros(1, 50_000)
    last = torch.tensor([1 - 1e-6], dtype=torch.float64)
    assert pick(logits, last, 1.0).item() == 49_999
    middle = torch.tensor([0.5 + 1e-9], dtype=torch.float64)
    assert pick(logits, middle, 1.0).item() == 25_000


def test_many_rows_are_picked_as_each_alone() -> None:
    """More entries than are turned into probabilities at once, the last rows fewer."""
    logits = torch.randn(45, 50_000, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(45, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert logits.numel() > 2 * SOFTMAX_ENTRIES["cpu"]
    alone = [pick(logits[i : i + 1], draws[i : i + 1], 0.7).item() for i in range(45)]
    assert pick(logits, draws, 0.7).tolist() == alone
    assert pick(logits[:0], draws[:0], 0.7).tolist() == []


def test_seeds_of_rows_are_their_own() -> None:
    assert row_seeds(3, [0, 1, 5]) == [*row_seeds(3, [0, 1]), *row_seeds(3, [5])]
    assert len({*row_seeds(0, range(100)), *row_seeds(1, range(100))}) == 200


def test_the_cache_holds_what_transformers_holds() -> None:
    torch.manual_seed(0)
    ours, theirs = PreallocatedLayer(capacity=ROOM), DynamicLayer()
    rows = 1
    for step, length in enumerate([5, 1, 1, ROOM - 3, 1, 1, 2 * ROOM, 1]):
        if step == 2:
            rows = 3
            for layer in (ours, theirs):
                layer.batch_repeat_interleave(rows)
        if step == 4:
            rows = 2
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([0, 2]))
        new = torch.randn(2, rows, 2, length, 4)
        place = ours._buffers[0].data_ptr() if ours._buffers else None
        for got, wanted in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(got, wanted)
        if place is not None and ours.get_seq_length() <= ROOM:  # nothing was copied
            assert ours._buffers[0].data_ptr() == place
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "qwen3"])
def test_an_answer_is_the_same_alone_and_in_company(
    make_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Shared beginnings and rows that leave the batch change nothing; nor do sliding windows,
    beyond which answers go."""
    changes: dict[str, Any] = {"sliding_window": 6} if family.startswith("gemma") else {}
    base = make_base(family=family, **changes)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)

    def answers(prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        kind: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.3}
        sampler = Sampler(backbone, prompts, seeds=seeds, **kind)
        with backbone.role("policy"):
            while not sampler.done:
                sampler.step()
        return sampler.ids

    seeds = [3, 4, 5]
    together = answers(PROMPTS, seeds)
    assert [len(ids) for ids in together] == [20] * 3
    alone = [answers([p], [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    third = together[1][4]  # the second answer ends early, the others go on
    monkeypatch.setattr(Backbone, "stop_ids", [*backbone.stop_ids, third])
    ended = answers(PROMPTS, seeds)
    for whole, part in zip(together, ended, strict=True):
        assert part == whole[: whole.index(third) + 1] if third in whole else part == whole


def test_the_beginning_runs_once(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    forward = tiny.causal.forward

    def counted(input_ids: torch.Tensor, **named: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **named)

    monkeypatch.setattr(tiny.causal, "forward", counted)
    monkeypatch.setattr(Backbone, "stop_ids", [100_000])
    sampler = Sampler(tiny, PROMPTS, seeds=[1, 2, 3], max_new_tokens=3, temperature=1.0)
    while not sampler.done:
        sampler.step()
    assert shapes == [(1, 6), (3, 3), (3, 1), (3, 1)]


def test_as_many_seeds_as_prompts(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match="3 prompts, but 1 seeds"):
        Sampler(tiny, PROMPTS, seeds=[1], max_new_tokens=3, temperature=1.0)
