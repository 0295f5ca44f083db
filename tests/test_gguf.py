"""A GGUF file as a base: converted once and whole, with the logits of the model in it."""

import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorarlhf.backbone import base_cache, gguf_base, gguf_weights
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.backbone.convert import convert
from lorarlhf.backbone.fetch import find_base
from lorarlhf.backbone.gguf_file import WELL_TRIED, families, read_gguf
from lorarlhf.backbone.shape import Shape, read_shape
from lorarlhf.cli.main import main
from lorarlhf.runtime.errors import UserError
from tests.gguf_models import FAMILIES, SIZES, tiny_model, write_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "bases"


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Convert without a process of its own, which takes seconds to start; returns what was."""
    done: list[Path] = []

    def fake(file: Path, folder: Path, advance: Any) -> Path:
        done.append(file)
        convert(file, folder)
        return folder

    monkeypatch.setattr(gguf_base, "convert", fake)
    return done


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def same_as(model: Any, folder: Path) -> None:
    """Check that a converted folder has the weights and the logits of a model."""
    made: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    weights, own = made.state_dict(), model.state_dict()
    assert weights.keys() == own.keys()
    for name, weight in own.items():
        assert torch.equal(weights[name], weight), name
    ids = torch.arange(5, 69)[None]
    torch.testing.assert_close(logits(made, ids), logits(model, ids), rtol=0, atol=1e-5)


# ---- families


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_file_is_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    convert(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "made")
    same_as(model, tmp_path / "made")
    backbone = Backbone.load(str(tmp_path / "made"), bits=16, compute_dtype="float32")
    rows = SIZES["vocab_size"]
    assert backbone.pad_id < rows and max(backbone.stop_ids) < rows
    assert backbone.tokenizer.pad_token == "<|endoftext|>"
    assert backbone.tokenizer.decode(backbone.encode([{"role": "user", "content": "he"}])).count(
        "<|im_end|>"
    )


def test_transformers_reads_the_families_that_the_documentation_names() -> None:
    known = families()
    assert set(WELL_TRIED) <= set(known) and "t5" not in known
    page = (Path(__file__).parents[1] / "docs/installation.md").read_text(encoding="utf-8")
    assert all(name in page for name in WELL_TRIED)


def test_a_file_whose_name_is_mistral_is_read(tmp_path: Path) -> None:
    model = tiny_model("llama")
    convert(write_gguf(model, tmp_path / "a.gguf", name="mistral"), tmp_path / "made")
    same_as(model, tmp_path / "made")


def test_a_blob_of_ollama_is_known_by_its_beginning(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    file = write_gguf(tiny_model("qwen2"), tmp_path / "sha256-0badc0de")
    same_as(tiny_model("qwen2"), Path(find_base(str(file))))


def test_large_models_are_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_weights, "SHARD", 30_000)
    model = tiny_model("gemma2")
    convert(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "made").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    same_as(model, tmp_path / "made")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    lacking = tiny_model("qwen2", num_hidden_layers=1)
    model.state_dict = lacking.state_dict  # and the header says two layers
    with pytest.raises(
        UserError, match=r"lacks 12 of the model's weights, such as model\.layers\.1"
    ):
        convert(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "made")


def test_other_families_are_written_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorarlhf.backbone.convert.ONE_BY_ONE", ())
    model = tiny_model("qwen3")
    convert(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "made")
    same_as(model, tmp_path / "made")


def llama3_factors(width: int, base: float, factor: float) -> np.ndarray:
    """What llama.cpp's converter writes as `rope_freqs.weight`."""
    found = []
    for n in range(0, width, 2):
        wave = 2 * np.pi * base ** (n / width)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


STRETCHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama 3": (
        "llama",
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"tensors": {"rope_freqs.weight": llama3_factors(16, 500_000.0, 8.0)}},
    ),
    "yarn": (
        "qwen2",
        {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        {"more": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}},
    ),
    "phi 3": (
        "phi3",
        {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "long_factor": [1.0 + n for n in range(8)],
            "short_factor": [1.0 + n / 8 for n in range(8)],
            "original_max_position_embeddings": 128,
        },
        {
            "tensors": {
                "rope_factors_long.weight": np.array([1.0 + n for n in range(8)]),
                "rope_factors_short.weight": np.array([1.0 + n / 8 for n in range(8)]),
            }
        },
    ),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_stretched_rotary_embeddings_stay_stretched(name: str, tmp_path: Path) -> None:
    family, ropes, written = STRETCHED[name]
    more = {"original_max_position_embeddings": 128} if family == "phi3" else {}
    model = tiny_model(family, rope_parameters=ropes, **more)
    plain = tiny_model(family, **more)
    ids = torch.arange(5, 69)[None]
    assert (logits(model, ids) - logits(plain, ids)).abs().max() > 1e-4  # it makes a difference
    if family != "llama":
        key = "rope.scaling.original_context_length"
        written = written | {"more": {**written.get("more", {}), key: 128}}
    convert(write_gguf(model, tmp_path / "a.gguf", **written), tmp_path / "made")
    same_as(model, tmp_path / "made")


def test_gemma_3_stretches_its_layers_without_a_window(tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    kinds = ["sliding_attention", "full_attention"]
    model = tiny_model("gemma3_text", rope_parameters=ropes, layer_types=kinds)
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    made = tmp_path / "made"
    convert(write_gguf(model, tmp_path / "a.gguf", more=scaling), made)
    config = json.loads((made / "config.json").read_text())
    assert config["rope_parameters"] == ropes
    config["layer_types"] = kinds  # two layers are too few for one in six without a window
    (made / "config.json").write_text(json.dumps(config))
    same_as(model, made)


def test_stretching_that_is_not_known_is_refused(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 3, 8)}
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf", tensors=factors)
    with pytest.raises(UserError, match="factors of their own, which .* safetensors"):
        convert(file, tmp_path / "made")


# ---- once, and whole


def test_a_file_is_converted_once_and_known_by_its_content(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, said = in_this_process(monkeypatch), list[str]()
    kind = gguf.GGMLQuantizationType.Q8_0
    model = tiny_model("llama", intermediate_size=128)
    file = write_gguf(model, tmp_path / "tiny.Q8_0.gguf", kind=kind, template=None)
    folder = Path(find_base(str(file), said.append))
    assert folder.parent == cache and done == [file] and [p.name for p in cache.glob(".*")] == []
    assert "Converting tiny.Q8_0.gguf to safetensors: once" in said[0]
    assert "have 8.6 bits each on average" in said[1] and "In 4 bit (NF4) they are" in said[1]
    assert "has no chat template" in said[2] and "--set chat_template=FILE" in said[2]
    assert Path(find_base(str(file), said.append)) == folder and len(said) == 3
    moved = Path(shutil.copy(file, tmp_path / "another name.gguf"))
    assert Path(find_base(str(moved), said.append)) == folder and len(done) == 1
    file.write_bytes(write_gguf(tiny_model("qwen2"), tmp_path / "b.gguf").read_bytes())
    assert Path(find_base(str(file), said.append)) != folder and len(done) == 2
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # half written
    assert Path(find_base(str(moved), said.append)) == folder and len(done) == 3
    assert read_shape(str(moved)).hidden == SIZES["hidden_size"]


@pytest.mark.slow
def test_the_command_shows_progress_and_leaves_nothing_behind_when_it_is_stopped(
    cache: Path, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    steps: list[float] = []
    base_cache.convert(file, tmp_path / "made", steps.append)
    same_as(tiny_model("llama"), tmp_path / "made")
    assert steps == sorted(steps) and steps[-1] > 0.8
    code = f"from lorarlhf.backbone.fetch import find_base; print(find_base({str(file)!r}))"
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    assert child.stderr is not None
    for line in child.stderr:
        if "Converting" in line:
            break
    child.send_signal(signal.SIGINT)
    assert child.wait(30) != 0
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_a_failed_conversion_says_why(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="no.gguf is damaged or was cut off: .* 4 bytes"):
        base_cache.convert(tmp_path / "no.gguf", tmp_path / "made", lambda share: None)
    with pytest.raises(UserError, match="could not be converted .*doctor"):
        base_cache.convert(
            write_gguf(tiny_model("llama"), tmp_path / "a.gguf"), Path("/dev/null/x")
        )


def test_a_converter_that_is_killed_speaks_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_cache, "_watched", lambda command, advance: (-9, ""))
    with pytest.raises(UserError, match="signal 9., most likely for want of memory"):
        base_cache.convert(tmp_path / "a.gguf", tmp_path / "made", lambda share: None)


def test_without_room_on_the_disk_nothing_is_converted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(monkeypatch)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(UserError, match="needs 100 MB free in .*LORARLHF_CACHE to another disk"):
        find_base(str(write_gguf(tiny_model("llama"), tmp_path / "a.gguf")))
    assert done == []


# ---- what is no model


def test_files_that_are_no_whole_model_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(tiny_model("llama"), tmp_path / "whole.gguf")
    content = whole.read_bytes()
    for name, text, said in (
        ("cut.gguf", content[:-1000], "is damaged or was cut off"),
        ("header.gguf", content[:2000], "is damaged or was cut off"),
        ("begin.gguf", content[:20], "is damaged or was cut off"),
        ("other.gguf", b"PK\x03\x04" + content, "is not a GGUF file: it has b'PK"),
        ("page.gguf", b"<!doctype html><html>", "it has a web page"),
        ("lfs.gguf", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("m-00002-of-00003.gguf", content, r"part 2 of 3 .*--merge m-00001-of-00003.gguf m.gguf"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=said):
            find_base(str(tmp_path / name))
    old = bytearray(content)
    old[4:8] = (1).to_bytes(4, "little")
    (tmp_path / "old.gguf").write_bytes(old)
    with pytest.raises(UserError, match="has a version of GGUF that can't be read"):
        find_base(str(tmp_path / "old.gguf"))


@pytest.mark.parametrize(
    ("arch", "kind", "weights", "said"),
    [
        ("clip", "mmproj", True, "reads pictures .mmproj.. Name the file of the model itself"),
        ("llama", "adapter", True, "is an adapter. Name the GGUF file of the model"),
        ("llama", "model", False, "a vocabulary without weights"),
        ("rwkv7", "model", True, 'family "rwkv7", which transformers .* It reads .*gemma2.*qwen3'),
    ],
)
def test_other_contents_are_refused(
    arch: str, kind: str, weights: bool, said: str, cache: Path, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), arch)
    writer.add_type(kind)
    writer.add_key_value(
        "general.base_model.0.repo_url", "https://example.org/m", gguf.GGUFValueType.STRING
    )
    if weights:
        writer.add_tensor("a.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=said):
        find_base(str(tmp_path / "a.gguf"))


# ---- commands


def test_new_tells_what_a_file_costs_and_estimate_converts_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_gguf(tiny_model("qwen3"), tmp_path / "tiny.gguf", template=None)
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    words = ["new", "mine", "--base", "tiny.gguf", "--chat-template", "chat.jinja"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "It is converted when it is first used" in out and "has no chat template" in out
    text = (tmp_path / "mine/project.yaml").read_text()
    assert f'base: "{file}"' in text and f'chat_template: "{tmp_path}/chat.jinja"' in text
    shape = read_shape("tiny.gguf")
    assert shape == Shape.of(tiny_model("qwen3").config.to_dict())
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]
    (tmp_path / "no.gguf").write_bytes(b"no")
    assert main(["new", "other", "--base", "no.gguf"]) != 0
    assert "is not a GGUF file" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main(["new", "other", "--chat-template", "nowhere"]) != 0
    assert "There is no chat template file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_kind_of_quantisation_is_read(tmp_path: Path) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf")
    about = read_gguf(file)
    assert (about.architecture, about.template) == ("llama", True) and about.bits > 15.9
    assert "hardly anything is lost" in about.cost()
