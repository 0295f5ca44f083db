"""Pooled states on the disk: read once, whatever happens to the process or to the files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.rewards import state_cache
from lorarlhf.rewards.role import EncodedAnswer, pooled_states
from lorarlhf.rewards.state_cache import KEY_BYTES, cached_states

COUNT = 40


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    return tmp_path / "hidden_states"


def answers(count: int = COUNT, first: int = 0) -> list[EncodedAnswer]:
    """Different answers of 2 to 8 tokens behind a prompt of three."""
    made = []
    for number in range(first, first + count):
        own = [5 + number, *range(10, 11 + number % 7)]
        made.append(EncodedAnswer([1, 2, 3, *own], 3, 3 + len(own)))
    return made


class Read:
    """Counts the answers that a forward has read, and may fail after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_after: int | None = None) -> None:
        self.count, real = 0, state_cache.pooled_batches

        def batches(backbone: Backbone, some: Any, pooling: str) -> Any:
            for rows, states in real(backbone, some, pooling, 4):
                if fails_after is not None and self.count >= fails_after:
                    raise KeyboardInterrupt
                self.count += len(rows)
                yield rows, states

        monkeypatch.setattr(state_cache, "pooled_batches", batches)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_second_run_reads_only_what_is_new(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    read = Read(monkeypatch)
    steps: list[int] = []
    first = cached_states(tiny, answers(), pooling)
    again = cached_states(tiny, [*answers(4, first=100), *answers()], pooling, steps.append)
    assert read.count == COUNT + 4 and steps == [COUNT, 4]
    assert first.dtype == np.float32 and np.array_equal(first, again[4:])
    np.testing.assert_allclose(first, pooled_states(tiny, answers(), pooling), atol=1e-5)


def test_an_answer_in_several_pairs_is_read_once(
    tiny: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Read(monkeypatch)
    steps: list[int] = []
    found = cached_states(tiny, answers(3) * 5, progress=steps.append)
    assert read.count == 3 and sum(steps) == 15
    np.testing.assert_allclose(found, np.tile(pooled_states(tiny, answers(3)), (5, 1)), atol=1e-5)
    (file,) = folder.glob("*.bin")
    assert file.stat().st_size == 3 * (2 * tiny.hidden_size * 4 + KEY_BYTES)


def test_a_span_and_a_pooling_are_part_of_the_content(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Read(monkeypatch)
    (one,) = answers(1)
    for answer, pooling in (
        (one, "mean"),
        (EncodedAnswer(one.ids, one.start, one.end - 1), "mean"),
        (one, "last"),
    ):
        found = cached_states(tiny, [answer], pooling)
        np.testing.assert_allclose(found, pooled_states(tiny, [answer], pooling), atol=1e-5)
    assert read.count == 3


def test_it_goes_on_where_it_was_stopped(
    tiny: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped = Read(patch, fails_after=20)
        with pytest.raises(KeyboardInterrupt):
            cached_states(tiny, answers())
    (file,) = folder.glob("*.bin")
    width = 2 * tiny.hidden_size * 4 + KEY_BYTES
    assert stopped.count == 20 and file.stat().st_size == 20 * width
    file.write_bytes(file.read_bytes()[: -width // 2])  # a kill in the middle of a row
    read = Read(monkeypatch)
    found = cached_states(tiny, answers())
    assert read.count == COUNT - 19
    np.testing.assert_allclose(found, pooled_states(tiny, answers()), atol=1e-5)


def test_a_base_with_other_weights_and_the_same_embeddings_shares_nothing(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cached_states(tiny, answers())
    with torch.no_grad():
        weight = tiny.decoder.layers[0].mlp.down_proj.weight
        weight.mul_(1.5)
    try:
        read = Read(monkeypatch)
        assert not np.allclose(cached_states(tiny, answers()), before) and read.count == COUNT
    finally:
        with torch.no_grad():
            weight.div_(1.5)


def test_a_disk_that_takes_nothing_stops_nothing(
    tiny: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a file where the folder would be")
    read = Read(monkeypatch)
    for _ in range(2):
        found = cached_states(tiny, answers())
    assert read.count == 2 * COUNT
    np.testing.assert_allclose(found, pooled_states(tiny, answers()), atol=1e-5)


def test_the_oldest_files_make_room(
    tiny: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        (folder / f"{name}.bin").write_bytes(bytes(100))
        os.utime(folder / f"{name}.bin", (1e9 - age, 1e9 - age))
    (folder / "gone.bin").symlink_to(folder / "nowhere")
    monkeypatch.setattr(state_cache, "LIMIT_BYTES", 250)
    cached_states(tiny, answers(2))
    left = {file.name for file in folder.iterdir() if file.exists()}
    assert {"new.bin", "middle.bin"} < left and "old.bin" not in left and len(left) == 3
