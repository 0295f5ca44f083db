"""Pooled features against one plain forward at a time, and the style axes with their cache."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.storage import fingerprint
from lorarlhf.data.readers import bundled
from lorarlhf.rewards import axes as axes_module
from lorarlhf.rewards.axes import read_axes, style_axes
from lorarlhf.rewards.features import answer_features
from lorarlhf.runtime.errors import UserError

PROMPTS = [[{"role": "user", "content": text}] for text in ("Why is the sky blue?", "Hi", "Sing.")]
ANSWERS = ["Because of the air.", "Hello there, how are you today?", "La"]


def plain_states(backbone: Backbone, prompt: list, answer: str) -> tuple[np.ndarray, int]:
    """[trunk, final] states (T, 2H) of prompt and answer alone, and where the answer begins."""
    before = backbone.encode(prompt)
    own = backbone.tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + own])
    with torch.no_grad(), backbone.role("base"):
        hidden = backbone.forward.hidden(ids, torch.ones_like(ids))[0].float()
        trunk = backbone.forward.trunk(ids, torch.ones_like(ids))[0].float()
    trunk = trunk / trunk.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.cat([trunk, hidden], dim=-1).numpy(), len(before)


def test_mean_is_over_the_answer_tokens_and_batches_do_not_matter(tiny: Backbone) -> None:
    features = answer_features(tiny, PROMPTS, ANSWERS, batch_size=2)
    assert features.shape == (3, 2 * tiny.hidden_size) and features.dtype == np.float32
    for row, prompt, answer in zip(features, PROMPTS, ANSWERS, strict=True):
        states, start = plain_states(tiny, prompt, answer)
        np.testing.assert_allclose(row, states[start:].mean(axis=0), rtol=1e-4, atol=1e-5)
    one = answer_features(tiny, PROMPTS, ANSWERS, batch_size=1)
    np.testing.assert_allclose(one, features, rtol=1e-4, atol=1e-5)


def test_adapters_do_not_change_the_features(tiny: Backbone) -> None:
    before = answer_features(tiny, PROMPTS, ANSWERS)
    for name, weight in tiny.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    np.testing.assert_array_equal(answer_features(tiny, PROMPTS, ANSWERS), before)


def test_an_empty_answer_has_finite_features(tiny: Backbone) -> None:
    assert np.isfinite(answer_features(tiny, PROMPTS[:2], ["", "Yes."])).all()


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "bank.jsonl"
    rows = [
        {"axis": "glad / sad", "positive": "I am glad.", "negative": "I am sad."},
        {"axis": "long / short", "positive": "It is a very long way.", "negative": "It is far."},
        {"axis": "glad / sad", "positive": "What joy!", "negative": "What grief!"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_axis_is_the_mean_difference_of_its_sides(tiny: Backbone, bank: Path) -> None:
    names, directions = style_axes(tiny, bank)
    assert names == ["glad / sad", "long / short"]
    assert directions.shape == (2, 2 * tiny.hidden_size) and directions.dtype == np.float32
    sides = ["I am glad.", "I am sad.", "What joy!", "What grief!"]
    a, b, c, d = answer_features(tiny, [axes_module.NEUTRAL_PROMPT] * 4, sides)
    np.testing.assert_allclose(directions[0], (a - b + c - d) / 2, rtol=1e-4, atol=1e-5)


def test_axes_belong_to_the_layer_where_the_adapters_begin(
    tiny: Backbone, tiny_base: Path, bank: Path
) -> None:
    _, first = style_axes(tiny, bank)
    settings = {"bits": 16, "compute_dtype": "float32", "lora_rank": 4}
    deeper = Backbone.load(str(tiny_base), adapter_layers=1, **settings)
    _, second = style_axes(deeper, bank)
    size = tiny.hidden_size
    np.testing.assert_allclose(first[:, size:], second[:, size:], rtol=1e-4, atol=1e-5)
    assert not np.allclose(first[:, :size], second[:, :size], rtol=1e-2)


def test_axes_are_computed_once_and_again_for_another_bank(
    tiny: Backbone, bank: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    _, first = style_axes(tiny, bank, log=said.append)
    _, again = style_axes(tiny, bank, log=said.append)
    assert len(said) == 1
    np.testing.assert_array_equal(first, again)
    (entry,) = (tmp_path / "cache" / "axes").iterdir()
    entry.write_bytes(entry.read_bytes()[:40])  # a damaged entry is made anew
    np.testing.assert_array_equal(style_axes(tiny, bank, log=said.append)[1], first)
    assert len(said) == 2
    bank.write_text(bank.read_text("utf-8").replace("glad", "merry"), encoding="utf-8")
    assert not np.array_equal(style_axes(tiny, bank, log=said.append)[1], first)
    assert len(said) == 3


@pytest.mark.parametrize("kind", ["the folder is a file", "safetensors can't write"])
def test_without_a_cache_the_axes_are_computed_and_it_is_said(
    kind: str,
    tiny: Backbone,
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = style_axes(tiny, bank)[1]
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "other"))
    if kind == "the folder is a file":
        (tmp_path / "other").touch()
    else:  # as in a folder of somebody else
        name = f".{fingerprint(tiny)}-{tiny.split}.safetensors.{os.getpid()}"
        (tmp_path / "other/axes" / name).mkdir(parents=True)
    np.testing.assert_array_equal(style_axes(tiny, bank)[1], expected)
    said = capsys.readouterr().err
    assert f"can't be kept in the cache folder {tmp_path}/other/axes" in said
    assert "Set LORARLHF_CACHE" in said


def test_a_broken_bank_names_the_line(bank: Path) -> None:
    with bank.open("a", encoding="utf-8") as file:
        file.write('{"axis": "glad / sad", "positive": "Yes"}\n')
    with pytest.raises(UserError, match='line 4: the field "negative"'):
        read_axes(bank)


def test_the_bundled_bank_is_balanced_and_has_no_repeats() -> None:
    rows = read_axes(bundled("style_axes.jsonl"))
    counts = {name: sum(axis == name for axis, _, _ in rows) for name, _, _ in rows}
    assert 16 <= len(counts) <= 24 and all(10 <= count <= 14 for count in counts.values())
    texts = [text for _, *sides in rows for text in sides]
    assert len(set(texts)) == len(texts)
