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
    WORTH,
    Capture,
    GraphSampler,
    captured,
    sampler_for,
)
from lorarlhf.backbone.limits import bucket_for
from lorarlhf.backbone.sampler import Sampler

PROMPTS = [[40, 41, 42, 50 + n, *range(60, 60 + n % 5)] for n in range(11)]
ENDS = [*range(5, 384, 24)]  # with these, answers end at many lengths


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(graph_sampler, "_failures", found)
    return found


def answers(kind: type[Sampler], backbone: Backbone, **more: Any) -> list[list[int]]:
    named: dict[str, Any] = {"max_new_tokens": 90, "temperature": 1.3} | more
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


@pytest.mark.parametrize("most", [1, 2, WORTH, WORTH + 1, WORTH + READ_EVERY + 2])
def test_answers_end_at_their_limit(tiny: Backbone, most: int) -> None:
    fixed = answers(GraphSampler, tiny, max_new_tokens=most)
    assert fixed == answers(Sampler, tiny, max_new_tokens=most)
    assert max(map(len, fixed)) == most


def test_the_batch_shrinks_by_buckets(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few graphs are made, and the rows that only fill up a bucket give no answers."""
    monkeypatch.setattr(Backbone, "stop_ids", ENDS)
    rows: list[int] = []
    advance = graph_sampler._FixedBatch.advance

    def counted(batch: Any) -> None:
        rows.append(batch.rows)
        advance(batch)

    monkeypatch.setattr(graph_sampler._FixedBatch, "advance", counted)
    ids = answers(GraphSampler, tiny)
    assert rows == sorted(rows, reverse=True) and set(rows) <= {1, 2, 4, 8, 16}
    assert len(set(rows)) > 1 and len(rows) <= 89
    assert ids == answers(Sampler, tiny)


def test_a_window_is_sampled_as_before(make_base: Callable[..., Path]) -> None:
    base = make_base(family="gemma2", sliding_window=6)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    assert answers(GraphSampler, backbone) == answers(Sampler, backbone)


def test_a_family_with_other_attention_is_sampled_as_before(make_base: Callable[..., Path]) -> None:
    """Its attention would add a mask of true and false as numbers."""
    backbone = Backbone.load(str(make_base()), bits=16, compute_dtype="float32", lora_rank=4)
    backbone.causal.set_attn_implementation("eager")
    backbone.forward.packs = False
    assert answers(GraphSampler, backbone) == answers(Sampler, backbone)


def test_only_a_card_gets_graphs(
    tiny: Backbone, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampler_for(tiny) is Sampler
    monkeypatch.setattr(tiny, "device", torch.device("cuda"))
    assert sampler_for(tiny) is GraphSampler
    config = tiny.causal.config.get_text_config()
    for name, value in {
        "num_local_experts": 8,
        "rope_parameters": {"rope_type": "dynamic"},
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value, raising=False)
            assert sampler_for(tiny) is Sampler
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "bits", 8)
        assert sampler_for(tiny) is Sampler
    assert sampler_for(tiny) is GraphSampler
    failures.append("a capture failed")
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


def sampling_with(capture: Capture) -> type[Sampler]:
    """A sampler as on a card on which captures are done by this function."""

    class Captures(GraphSampler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._capture = capture

    return Captures


def test_each_bucket_has_a_graph(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "stop_ids", ENDS)
    graphs: list[int] = []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        graphs.append(0)
        step()  # the warm-up changes the state, which is put back

        def replay() -> None:
            graphs[-1] += 1
            step()

        return replay

    assert answers(sampling_with(capture), tiny) == answers(Sampler, tiny)
    assert len(graphs) > 1 and all(count > graph_sampler.CHECKED for count in graphs)
    assert sum(graphs) <= 89 + len(graphs) * graph_sampler.CHECKED


def test_a_graph_that_gives_other_tokens_is_not_used(
    tiny: Backbone, failures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that always writes to the same place of the cache."""
    captures: list[int] = []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        captures.append(1)
        return lambda: None

    for _ in range(2):
        assert answers(sampling_with(capture), tiny) == answers(Sampler, tiny)
    told = "without a CUDA graph, more slowly (the graph gave other tokens than the code"
    assert capsys.readouterr().err.count(told) == len(captures) == len(failures) == 1


def test_a_capture_that_fails_is_tried_and_told_once(
    tiny: Backbone, failures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    captures: list[int] = []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        captures.append(1)
        step()
        try:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        finally:
            raise RuntimeError("")

    for _ in range(2):
        assert answers(sampling_with(capture), tiny) == answers(Sampler, tiny)
    told = "RuntimeError: operation not permitted when stream is capturing"
    assert capsys.readouterr().err.count(told) == len(captures) == len(failures) == 1


def test_the_state_is_put_back() -> None:
    count = torch.zeros(1)

    def step() -> None:
        count.add_(1)

    run = captured(step, [count], lambda step: step)
    assert count.item() == 0
    run()
    assert count.item() == 1
