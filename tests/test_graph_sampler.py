"""Sampling in fixed shapes gives the answers of plain sampling, and a graph is checked before it is
used. The capture itself needs a card; here the steps run as they are, or as made-up graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import graph_sampler
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate_ids
from lorarlhf.backbone.graph_sampler import (
    READ_EVERY,
    GraphSampler,
    bucket_for,
    captured,
    sampler_for,
)
from lorarlhf.backbone.sampler import Sampler

PROMPTS = [[40, 41, 42, 50 + n, *range(60, 60 + n % 5)] for n in range(11)]
ENDS = [*range(5, 384, 24)]  # with these, answers end at many lengths


def answers(kind: type[Sampler], backbone: Backbone, **more: Any) -> list[list[int]]:
    named: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.3} | more
    sampler = kind(backbone, PROMPTS, seeds=range(len(PROMPTS)), **named)
    with backbone.role("policy"):
        while not sampler.done:
            sampler.step()
    return sampler.ids


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "phi3"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_the_answers_are_those_of_plain_sampling(
    make_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    temperature: float,
) -> None:
    base = make_base(family=family)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    monkeypatch.setattr(Backbone, "stop_ids", ENDS)
    plain = answers(Sampler, backbone, temperature=temperature)
    assert answers(GraphSampler, backbone, temperature=temperature) == plain
    if temperature:
        assert len({len(ids) for ids in plain}) > 3 and max(map(len, plain)) > READ_EVERY + 1


@pytest.mark.parametrize("most", [1, 2, READ_EVERY + 1, READ_EVERY + 2])
def test_answers_end_at_their_limit(tiny: Backbone, most: int) -> None:
    fixed = answers(GraphSampler, tiny, max_new_tokens=most)
    assert fixed == answers(Sampler, tiny, max_new_tokens=most)
    assert max(map(len, fixed)) == most


def test_the_batch_shrinks_by_buckets(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few graphs are made, and rows that fill a bucket are nobody's."""
    monkeypatch.setattr(Backbone, "stop_ids", ENDS)
    rows: list[int] = []
    advance = graph_sampler._FixedBatch.advance

    def counted(batch: Any) -> None:
        rows.append(batch.rows)
        advance(batch)

    monkeypatch.setattr(graph_sampler._FixedBatch, "advance", counted)
    ids = answers(GraphSampler, tiny)
    assert rows == sorted(rows, reverse=True) and set(rows) <= {1, 2, 4, 8, 16}
    assert len(set(rows)) > 1 and len(rows) <= 39
    assert ids == answers(Sampler, tiny)


def test_a_window_is_sampled_as_before(make_base: Callable[..., Path]) -> None:
    base = make_base(family="gemma2", sliding_window=6)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    assert answers(GraphSampler, backbone) == answers(Sampler, backbone)


def test_only_a_card_gets_graphs(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampler_for(tiny) is Sampler
    monkeypatch.setattr(tiny, "device", torch.device("cuda"))
    assert sampler_for(tiny) is GraphSampler
    monkeypatch.setattr(tiny, "bits", 8)
    assert sampler_for(tiny) is Sampler


def test_whole_answers_take_it(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters cast ahead of time, as on a card."""
    plain = generate_ids(tiny, PROMPTS, max_new_tokens=20)
    monkeypatch.setattr("lorarlhf.backbone.generation.sampler_for", lambda backbone: GraphSampler)
    assert generate_ids(tiny, PROMPTS, max_new_tokens=20) == plain


def test_buckets() -> None:
    assert [bucket_for(rows) for rows in (1, 2, 3, 8, 9, 32, 33, 64, 65)] == [
        *(1, 2, 4, 8, 16, 32, 64, 64, 96)
    ]


# ---- a graph is used only if it does what the code does


def counting() -> tuple[torch.Tensor, Callable[[], None]]:
    count = torch.zeros(1)

    def step() -> None:
        count.add_(1)

    return count, step


def test_a_graph_that_does_the_same_is_used() -> None:
    count, step = counting()
    graph: list[int] = []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        step()  # the warm-up changes the state, which is put back
        return lambda: (graph.append(1), step())[0]  # type: ignore[func-returns-value]

    run = captured(step, [count], capture)
    assert count.item() == 0
    run()
    assert count.item() == 1 and len(graph) == graph_sampler.CHECKED + 1


def test_a_graph_that_stands_still_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one whose place in the cache is a number of the host."""
    monkeypatch.setattr(graph_sampler, "_told", [])
    count, step = counting()
    assert captured(step, [count], lambda step: lambda: count.fill_(1)) is step  # type: ignore
    assert count.item() == 0
    assert "without a CUDA graph, more slowly: its answers differ." in capsys.readouterr().err


def test_a_capture_that_fails_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph_sampler, "_told", [])
    count, step = counting()

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    for _ in range(2):
        assert captured(step, [count], capture) is step
    assert count.item() == 0
    told = capsys.readouterr().err
    assert told.count("operation not permitted when stream is capturing.") == 1
