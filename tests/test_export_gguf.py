"""GGUF files and Modelfiles in a real llama.cpp: the same answers, and the three known mistakes."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.export import converter, ollama
from lorarlhf.export.converter import SAMPLES
from lorarlhf.export.engines import LLAMA, ask, last_words
from lorarlhf.export.exporting import Exported, Wish, export
from lorarlhf.export.gguf_file import GGUFFile, check_gguf, quantise, writes_bos
from lorarlhf.export.original import Original
from lorarlhf.runtime.errors import UserError
from tests.export_runs import OTHER_TEMPLATE, TEMPLATE, load, original, policy, write_base
from tests.export_runs import ask as ask_policy

__all__ = ["original", "policy"]  # fixtures


@pytest.fixture(scope="module")
def exported(
    policy: Backbone, original: Original, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """The tiny policy for Ollama, in 16 bit. The converter does not know its tokenizer."""
    to = tmp_path_factory.mktemp("export") / "ollama"
    wish = Wish("ollama", to, "f16", name="tiny", system="Be kind.")
    return export(policy, original, wish)


def file_of(exported: Exported) -> GGUFFile:
    assert exported.folder is not None, exported.checked.problems
    return GGUFFile(exported.folder / "tiny-F16.gguf", "f16")


def changed(file: GGUFFile, folder: Path, **changes: Any) -> GGUFFile:
    """A copy with other metadata; keys with __ for a dot, and None to leave one out."""
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    logging.getLogger("gguf-new-metadata").setLevel(logging.ERROR)
    reader = gguf.GGUFReader(file.path)
    out = folder / "changed.gguf"
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, arch=arch, endianess=reader.endianess)
    wanted = {f"tokenizer.{name.replace('__', '.')}": value for name, value in changes.items()}
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}
    kinds |= {bool: gguf.GGUFValueType.BOOL}
    new = {n: MetadataDetails(kinds[type(v)], v) for n, v in wanted.items() if v is not None}
    copy_with_new_metadata(reader, writer, new, [n for n, v in wanted.items() if v is None])
    return replace(file, path=out)


def test_the_policy_says_the_same_in_llama_cpp(exported: Exported, original: Original) -> None:
    assert exported.checked.holds, exported.checked.problems
    found = exported.checked.difference
    assert found is not None and found.kl < 0.01 and found.agreement > 0.9
    ours = [answer.text for answer in original.answers]
    assert sum(a == b for a, b in zip(exported.checked.answers, ours, strict=True)) >= 2
    assert exported.record["split"] in ("gpt-2", "default")
    assert exported.folder is not None
    assert sorted(os.listdir(exported.folder)) == ["Modelfile", "export.json", "tiny-F16.gguf"]


def test_the_file_says_how_a_conversation_is_written(exported: Exported, policy: Backbone) -> None:
    fields = gguf.GGUFReader(file_of(exported).path).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.ggml.eot_token_id"].contents() == policy.stop_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert writes_bos(policy)


def test_texts_are_read_as_the_same_tokens(exported: Exported, policy: Backbone) -> None:
    job = {"kind": "tokens", "models": [str(file_of(exported).path)], "texts": list(SAMPLES)}
    (told,) = ask(LLAMA, job | {"stop_ids": policy.stop_ids, "add_special": True})["models"]
    bos = [policy.tokenizer.bos_token_id]
    assert told["tokens"] == [bos + policy.encoder.tokenize(text) for text in SAMPLES]
    assert told["special"] == {"ending": policy.stop_ids, "add_bos": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chat_template": OTHER_TEMPLATE}, "wrong chat template: 3 of 3 prompts are rendered"),
        ({"chat_template": "{{ bos_token }}" + TEMPLATE}, "doubled BOS: 3 of 3 prompts begin with"),
        (
            {"ggml__eot_token_id": None, "ggml__eos_token_id": 0},
            "lost stop token: llama.cpp does not end an answer at <over>",
        ),
    ],
)
def test_the_known_ways_to_break_a_gguf_file_are_caught(
    changes: dict[str, Any],
    said: str,
    exported: Exported,
    policy: Backbone,
    original: Original,
    tmp_path: Path,
) -> None:
    checked = check_gguf(policy, original, changed(file_of(exported), tmp_path, **changes))
    assert [problem[: len(said)] for problem in checked.problems] == [said]
    assert "Not as trained" in checked.in_words()


def test_damaged_weights_are_caught_by_the_numbers(
    exported: Exported, policy: Backbone, original: Original, tmp_path: Path
) -> None:
    file = replace(file_of(exported), path=tmp_path / "damaged.gguf")
    shutil.copyfile(file_of(exported).path, file.path)
    reader = gguf.GGUFReader(file.path, "r+")
    next(t for t in reader.tensors if t.name == "blk.3.ffn_down.weight").data[:] = 0
    reader.data.flush()
    problems = check_gguf(policy, original, file).problems
    assert problems and problems[0].startswith("the KL is ")


@pytest.mark.parametrize("quant", ["q4_k_m"])
def test_a_file_is_quantised_by_llama_cpp_itself(
    quant: str, exported: Exported, policy: Backbone, original: Original, tmp_path: Path
) -> None:
    small = GGUFFile(tmp_path / "small.gguf", quant)
    quantise(file_of(exported).path, small)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(small.path).tensors}
    assert "F16" not in kinds and len(kinds) > 1
    assert small.path.stat().st_size < 0.75 * file_of(exported).path.stat().st_size
    found = check_gguf(policy, original, small).difference
    assert found is not None and 0 < found.kl < 3


def test_a_quantiser_of_the_users_own_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "llama-quantize"
    own.write_text(
        '#!/bin/sh\n[ "$3" = Q4_K_M ] || { echo "no such type" >&2; exit 1; }\ncp "$1" "$2"\n'
    )
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "in.gguf").write_bytes(b"weights")
    quantise(tmp_path / "in.gguf", GGUFFile(tmp_path / "out.gguf", "q4_k_m"))
    assert (tmp_path / "out.gguf").read_bytes() == b"weights"
    with pytest.raises(UserError, match="no such type"):
        quantise(tmp_path / "in.gguf", GGUFFile(tmp_path / "out.gguf", "q5"))


def test_llama_cpp_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF no")
    job = {"kind": "examine", "model": str(tmp_path / "no.gguf"), "stop_ids": [], "places": []}
    with pytest.raises(UserError, match=r"^llama\.cpp could not run the export: \S.*\.$"):
        ask(LLAMA, job)
    assert last_words(tmp_path / "no.gguf") == "GGUF no."


def test_a_chat_template_that_llama_cpp_can_not_read_is_named(
    exported: Exported, policy: Backbone, original: Original, tmp_path: Path
) -> None:
    """Jinja has `+%}`, and llama.cpp's own reader of templates has not."""
    file = changed(file_of(exported), tmp_path, chat_template="{% set x = 1 +%}" + TEMPLATE)
    with pytest.raises(UserError, match=r"llama\.cpp's server could not run .*: error: .*%}"):
        check_gguf(policy, original, file)


def test_a_tokenizer_that_llama_cpp_has_no_way_for_is_refused(
    exported: Exported, tmp_path: Path
) -> None:
    shutil.copyfile(file_of(exported).path, tmp_path / "gpt-2.gguf")
    with pytest.raises(UserError, match="no way to split texts as this base's tokenizer does"):
        converter._find_split([tmp_path / "gpt-2.gguf"], lambda text: [1, 2, 3])


def test_thoughts_that_were_off_in_training_are_off_in_llama_cpp(
    make_base: Callable[..., Path], randomise: Callable[..., None], tmp_path: Path
) -> None:
    """llama.cpp's server asks templates for thoughts; the tiny base's default is to have them."""
    thoughts = "{% if enable_thinking %}<think>{% endif %}"
    base = write_base(make_base)
    (base / "chat_template.jinja").write_text(
        TEMPLATE.replace("[assistant]\n", f"[assistant]\n{thoughts}")
    )
    backbone = load(base)
    randomise(backbone, "policy", seed=3)
    found = export(backbone, ask_policy(backbone), Wish("gguf", tmp_path / "out", "f16"))
    assert found.checked.holds, found.checked.problems
    file = next((tmp_path / "out").glob("*.gguf"))
    written = gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents()
    assert written.startswith("{% set enable_thinking = false %}{{ bos_token }}")


# ---- Ollama


def test_the_modelfile_holds_template_stops_system_prompt_and_temperature(
    exported: Exported,
) -> None:
    assert exported.folder is not None
    told = ollama.parse(exported.folder / "Modelfile")
    assert told["from"] == "./tiny-F16.gguf"
    assert (told["stops"], told["system"]) == (["<over>"], "Be kind.")
    assert told["temperature"] == 0.7
    assert told["template"] == (
        "{{ if .System }}[system]\n{{ .System }}<over>\n{{ else }}{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}[user]\n{{ .Content }}<over>\n'
        '{{ else if eq .Role "assistant" }}[assistant]\n{{ .Content }}<over>\n'
        "{{ end }}{{ end }}[assistant]\n"
    )


MODELFILE_MISTAKES = [
    ("[user]", "### user:", "wrong chat template: a conversation of 1 turns without a system"),
    ('TEMPLATE """', 'TEMPLATE """<|im_start|>', "doubled BOS: the template begins with <|im_sta"),
]


@pytest.mark.parametrize(("old", "new", "said"), MODELFILE_MISTAKES)
def test_a_wrong_modelfile_is_caught(
    old: str, new: str, said: str, exported: Exported, policy: Backbone, tmp_path: Path
) -> None:
    assert exported.folder is not None
    text = (exported.folder / "Modelfile").read_text()
    (tmp_path / "Modelfile").write_text(text.replace(old, new))
    problems = ollama.check_modelfile(tmp_path, policy, file_of(exported).path)
    assert problems and problems[0].startswith(said)


def test_a_lost_stop_word_is_caught_where_the_file_has_lost_it_too(
    exported: Exported, policy: Backbone, tmp_path: Path
) -> None:
    assert exported.folder is not None
    text = (exported.folder / "Modelfile").read_text()
    (tmp_path / "Modelfile").write_text(text.replace('PARAMETER stop "<over>"\n', ""))
    assert ollama.check_modelfile(tmp_path, policy, file_of(exported).path) == []
    lost = changed(file_of(exported), tmp_path, ggml__eot_token_id=None, ggml__eos_token_id=0)
    problems = ollama.check_modelfile(tmp_path, policy, lost.path)
    assert problems == ["lost stop token: nothing ends an answer at <over>"]


def test_a_base_without_a_chat_template_is_no_model_for_ollama(
    policy: Backbone, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="has no chat template, and Ollama needs one"):
        export(policy, original, Wish("ollama", tmp_path / "out"))
    assert os.listdir(tmp_path) == []


# ---- the small base


@pytest.mark.slow
def test_a_run_of_the_small_base_is_exported_to_a_gguf_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorarlhf.cli.main import main
    from lorarlhf.data.readers import bundled

    run, to = str(tmp_path / "sft"), str(tmp_path / "out")
    rows = bundled("demonstrations").read_text().splitlines()[:24]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    words = ["sft", "--data", str(tmp_path / "rows.jsonl"), "--out", run, "--set", "epochs=1"]
    assert main([*words, "--set", "learning_rate=1e-3"]) == 0
    capsys.readouterr()
    prompts = tmp_path / "prompts.jsonl"
    asked = ("Name three fish.", "Why do cats sleep so much?", "How is tea made?")
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    words = ["export", run, "--to", to, "--as", "ollama", "--quant", "q8_0", "--json"]
    assert main([*words, "--prompts", str(prompts)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gate"]["holds"] and told["base_without_adapter"]["kl"] > 0.02
    assert told["merge"]["before"]["dequantised"]["kl"] < 0.02
    assert told["merge"]["before"]["original"]["kl"] > 0.05
    assert sorted(os.listdir(to)) == ["Modelfile", "README.md", "export.json", "sft-Q8_0.gguf"]
