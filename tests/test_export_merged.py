"""The policy merged into 16 bit, and as a PEFT folder: the numbers, the files, the gate."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.export import exporting, merged
from lorarlhf.export.exporting import Wish, export
from lorarlhf.export.merged import STORED, TRAINED, Checkpoint, decide, maker, write_merged
from lorarlhf.export.original import Original, read_merged
from lorarlhf.runtime.errors import UserError
from tests.export_runs import (
    OTHER_TEMPLATE,
    TEMPLATE,
    ask,
    load,
    original,
    policy,
    write_base,
    write_run,
)
from tests.fake_hub import Hub, hub

__all__ = ["hub", "original", "policy"]  # fixtures


def write(backbone: Backbone, folder: Path, into: str = TRAINED) -> dict[str, torch.Tensor]:
    """The merged weights, written and read again."""
    folder.mkdir()
    merge = merged.Merge(into, {}, torch.float16)
    done: list[int] = []
    write_merged(backbone, merge, folder, done.append)
    assert done == sorted(done)
    files = sorted(folder.glob("*.safetensors"))
    assert done[-1] == sum(sum(x.nbytes for x in load_file(file).values()) for file in files)
    return {name: x for file in files for name, x in load_file(file).items()}


def test_the_merged_weights_are_pefts_own(policy: Backbone, tmp_path: Path) -> None:
    ours = write(policy, tmp_path / "out")
    with torch.no_grad():
        layer = policy.causal.model.layers[3].mlp.down_proj
        wanted = layer.base_layer.weight + layer.get_delta_weight("default")
    found = ours["model.layers.3.mlp.down_proj.weight"]
    assert found.dtype == torch.float16
    assert torch.equal(found, wanted.half())
    below = policy.causal.model.layers[0].mlp.down_proj.weight
    assert torch.equal(ours["model.layers.0.mlp.down_proj.weight"], below.half())


def test_a_base_in_shards_is_merged_shard_by_shard(policy: Backbone, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = write(policy, tmp_path / "whole")
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(policy.base_path)
    model.save_pretrained(base, max_shard_size="200KB")
    policy.tokenizer.save_pretrained(base)
    other = load(base)
    policy.save("policy", tmp_path / "adapter")
    other.load_role("policy", tmp_path / "adapter")
    found = write(other, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.fixture(scope="module")
def quantised(
    make_base: Callable[..., Path], randomise: Callable[..., None]
) -> tuple[Backbone, Original]:
    backbone = load(write_base(make_base), bits=4)
    randomise(backbone, "policy", seed=3)
    return backbone, ask(backbone)


def test_an_adapter_of_a_4_bit_base_is_merged_into_what_it_was_trained_on(
    quantised: tuple[Backbone, Original],
) -> None:
    backbone, told = quantised
    merge = decide(backbone, told)
    assert merge.into == TRAINED
    near, far = merge.measured[TRAINED], merge.measured[STORED]
    assert near.kl < 1e-3 < far.kl
    assert near.logprobs < far.logprobs / 10
    words = merged.describe(merge)
    assert "into the dequantised weights" in words and "not into the 16-bit original: KL" in words


def test_in_float32_the_merged_matrices_say_what_the_policy_says(
    quantised: tuple[Backbone, Original],
) -> None:
    backbone, told = quantised
    found = read_merged(backbone, told, maker(Checkpoint(backbone), TRAINED, torch.float32))
    assert found.kl < 1e-7 and found.agreement == 1 and found.logprobs < 1e-4
    assert ask(backbone).rows == told.rows  # nothing is left of it


def test_an_8_bit_base_is_merged_too(
    make_base: Callable[..., Path], randomise: Callable[..., None]
) -> None:
    backbone = load(write_base(make_base), bits=8)
    randomise(backbone, "policy", seed=3)
    merge = decide(backbone, ask(backbone))
    assert merge.into == TRAINED and merge.measured[TRAINED].kl < 0.01


def test_the_policy_is_not_the_base(original: Original) -> None:
    """Otherwise the gate would hold for an export that lost the adapter."""
    assert original.from_base.kl > 0.05 and original.from_base.agreement < 0.9


def test_weights_that_are_too_far_away_are_not_written(
    policy: Backbone, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "MERGE_LIMIT", -1.0)
    with pytest.raises(UserError, match="would differ too much") as error:
        export(policy, original, Wish("merged", tmp_path / "out"))
    assert "KL" in str(error.value) and "Nothing was written" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_before_the_work(
    policy: Backbone, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Free", (), {"free": 10**5}))
    with pytest.raises(UserError, match=r"needs 0\.0 GB while .* 0\.0 GB are free"):
        export(policy, original, Wish("merged", tmp_path / "out"))
    assert os.listdir(tmp_path) == []


# ---- the gate, in transformers


def test_a_run_is_merged_by_the_command_and_opens_in_transformers(
    policy: Backbone, original: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    run = write_run(policy, tmp_path / "run", compute_dtype="float32")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": p[-1]["content"]}) + "\n" for p in original.prompts)
    )
    words = ["export", str(run), "--to", str(tmp_path / "out"), "--as", "merged", "--json"]
    assert main([*words, "--prompts", str(prompts)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gate"]["holds"] and told["folder"] == str(tmp_path / "out")
    assert told["merge"]["into"] == TRAINED
    assert told["gate"]["difference"]["kl"] < 0.02
    out = tmp_path / "out"
    assert json.loads((out / "export.json").read_text())["stop_tokens"] == ["<over>"]
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert GenerationConfig.from_pretrained(out).eos_token_id == policy.stop_ids
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert sorted(os.listdir(tmp_path)) == ["out", "prompts.jsonl", "run"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card and "# " in card
    assert "- In transformers: " in card  # how far it is from the policy


def test_an_adapter_is_uploaded_with_its_card(
    policy: Backbone,
    original: Original,
    tmp_path: Path,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(policy, tmp_path / "run", compute_dtype="float32")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": original.prompts[0][-1]["content"]}) + "\n")
    words = ["export", str(run), "--to", str(tmp_path / "out"), "--as", "adapter", "--json"]
    assert main([*words, "--prompts", str(prompts), "--push", "mine"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["address"] == f"{hub.address}/ann/mine"
    repo = hub.repos["ann/mine"]
    assert repo.kind == "model" and repo.private
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(repo.files)
    assert b'from_pretrained(model, "ann/mine")' in repo.files["README.md"]
    assert all(str(tmp_path).encode() not in content for content in repo.files.values())


def test_an_adapter_opens_in_peft(policy: Backbone, original: Original, tmp_path: Path) -> None:
    found = export(policy, original, Wish("adapter", tmp_path / "out"))
    assert found.checked.holds, found.checked.problems
    assert found.checked.difference is not None and found.checked.difference.kl < 1e-4
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
        os.listdir(tmp_path / "out")
    )


def break_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def break_stops(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))


MISTAKES: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: break_template(folder, OTHER_TEMPLATE), "wrong chat template: 3 of 3 prompts"),
    (lambda folder: break_template(folder, "{{ bos_token }}" + TEMPLATE), "doubled BOS: 3 of 3"),
    (break_stops, "lost stop token: transformers does not end an answer at <over>"),
]


@pytest.mark.parametrize(("mistake", "said"), MISTAKES)
def test_the_known_ways_to_break_an_export_are_caught(
    mistake: Callable[[Path], None],
    said: str,
    policy: Backbone,
    original: Original,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Any = merged.write_config

    def broken(backbone: Backbone, base: Path, folder: Path, dtype: torch.dtype) -> None:
        real(backbone, base, folder, dtype)
        mistake(folder)

    monkeypatch.setattr(merged, "write_config", broken)
    keep = said.startswith("lost")
    found = export(policy, original, Wish("merged", tmp_path / "out", keep_refused=keep))
    assert not found.checked.holds
    assert found.checked.problems[0].startswith(said)
    assert os.listdir(tmp_path) == (["out-refused"] if keep else [])


def test_a_refusal_is_status_1_and_says_why(
    policy: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(exporting, "ask", lambda *words: pytest.fail("not reached"))
    refused = exporting.Checked("transformers", ["lost stop token: it never ends"])
    monkeypatch.setitem(exporting.MAKERS, "merged", lambda *words: (refused, {}, []))
    run = write_run(policy, tmp_path / "run", compute_dtype="float32")
    to = str(tmp_path / "out")
    assert main(["export", str(run), "--to", to, "--as", "merged"]) == 1
    said = capsys.readouterr().out
    assert "Not as trained: lost stop token: it never ends." in said
    assert "was not made. --keep-refused keeps what was refused." in said
    assert not Path(to).exists()
