"""Naming and loading a base: what is no model or damaged is refused, and says what to do."""

import json
import shutil
from pathlib import Path

import pytest

from lorarlhf.backbone import fetch
from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError

# ---- folders and names


def test_a_folder_and_a_hub_name_are_handed_on(tiny_base: Path) -> None:
    assert fetch.find_base(str(tiny_base)) == str(tiny_base.resolve())
    assert fetch.find_base("someone/some-model") == "someone/some-model"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json"):
        fetch.find_base(str(tmp_path))


def test_what_is_named_instead_of_a_model_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "my models").mkdir()
    gguf, weights = tmp_path / "my models/tiny.Q4_0.gguf", tmp_path / "model.safetensors"
    gguf.touch()
    weights.touch()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"a GGUF file. Name that file: --base {gguf}"):
        fetch.find_base(str(gguf.parent))
    with pytest.raises(UserError, match="tiny.Q4_0.gguf is empty"):
        fetch.find_base(str(gguf))
    with pytest.raises(UserError, match="There is no model file .*nowhere.gguf"):
        fetch.find_base("nowhere.gguf")
    with pytest.raises(UserError, match=f"is a file, .* the folder that it is in: {tmp_path}"):
        fetch.find_base(str(weights))
    with pytest.raises(UserError, match="is an adapter, not a model. Name it with --init"):
        fetch.find_base(str(tmp_path / "adapter"))


@pytest.mark.parametrize("path", ["./nowhere", "../nowhere", "~/no/where", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="There is no model folder .*smollm2-135m"):
        fetch.find_base(path)


def test_a_name_that_is_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="no-one/no-such-model is neither in the local"):
        Backbone.load("no-one/no-such-model")


# ---- loading


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copied"))


def test_a_model_that_does_not_write_text_is_refused(copied: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForMaskedLM(config).save_pretrained(copied)
    with pytest.raises(UserError, match="not a causal language model .*BertForMaskedLM"):
        Backbone.load(str(copied))


def test_an_encoder_decoder_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (copied / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(UserError, match="not a causal language model"):
        Backbone.load(str(copied))


@pytest.mark.parametrize("kept", [0, 5, 300, 20_000])
def test_truncated_weights_are_refused(copied: Path, kept: int) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match="copied"):
        Backbone.load(str(copied), bits=16)


def test_missing_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match="copied can't be loaded"):
        Backbone.load(str(copied), bits=16)


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_broken_config_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    with pytest.raises(UserError, match="copied"):
        Backbone.load(str(copied))


def test_a_missing_tokenizer_is_refused(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="copied can't be loaded"):
        Backbone.load(str(copied), bits=16)


def test_unknown_bits_are_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="bits is 4, 8 or 16, not 5"):
        Backbone.load(str(tiny_base), bits=5)
