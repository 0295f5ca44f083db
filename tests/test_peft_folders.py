"""Adapters that PEFT wrote without us: read as PEFT reads them, or refused with the reason."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorarlhf.backbone.base import Backbone
from lorarlhf.project.lineage import read_source_run
from lorarlhf.runtime.errors import UserError

ATTENTION = ["q_proj", "v_proj"]
EXACT: dict[str, dict[str, Any]] = {
    "fewer modules": {},
    "all modules": {"target_modules": "all-linear"},
    "one alpha for some": {"alpha_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 32}},
    "one rank for some": {"rank_pattern": {"q_proj": 2, "^model.layers.2.*v_proj": 6}},
    "both, with rsLoRA": {
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 3},
        "use_rslora": True,
    },
    "rsLoRA": {"use_rslora": True},
    "some layers": {"layers_to_transform": [0, 3]},
    "the top layer": {"layers_to_transform": 3, "layers_pattern": "layers"},
    "not the top layer": {"exclude_modules": ["model.layers.3.self_attn.q_proj"]},
    "a regular expression": {"target_modules": r".*layers\.[12]\..*(gate|down)_proj"},
    "trained biases where there are none": {"bias": "all"},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "VeLoRA": {"velora_config": {"num_groups": 8}},
    "MiCA": {"init_lora_weights": "mica"},
    "dropout": {"lora_dropout": 0.3},
}
MERGED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [5, 6]}, "trainable_token_indices"),
    "the LM head": ({"target_modules": ["q_proj", "lm_head"]}, "it also changes lm_head"),
    "the embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "changes model.embed_tokens"),
}


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float32, attn_implementation="eager"
    )


def write(model: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """Save an adapter with random weights; returns what PEFT itself loads from the folder."""
    torch.manual_seed(3)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION} | settings
    tuned = get_peft_model(
        copy.deepcopy(model), LoraConfig(task_type=TaskType.CAUSAL_LM, **options)
    )
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.1
    tuned.save_pretrained(str(folder))
    return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def ours(folder: Path, base: str) -> Backbone:
    """A backbone of the shape that a command takes from the folder, with its policy."""
    source = read_source_run(folder, "policy", "--init")
    shape = {name: source.settings[name] for name in ("adapter_layers", "lora_rank", "lora_alpha")}
    backbone = Backbone.load(base, bits=16, compute_dtype="float32", **shape)
    backbone.load_role("policy", folder)
    return backbone


def logits(backbone: Backbone, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), backbone.role("policy"):
        return backbone.model(input_ids=ids).logits


@pytest.mark.parametrize("name", EXACT)
def test_what_can_be_read_gives_peft_s_own_logits(
    name: str, model: Any, tiny_base: Path, tmp_path: Path
) -> None:
    theirs = write(model, tmp_path, EXACT[name])
    backbone = ours(tmp_path, str(tiny_base))
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        expected, plain = theirs(input_ids=ids).logits, model(input_ids=ids).logits
    assert (expected - plain).abs().max() > 0.02
    torch.testing.assert_close(logits(backbone, ids), expected, rtol=1e-5, atol=1e-5)
    again = backbone.save("policy", tmp_path / "again")  # in our shape, for any other tool
    saved = PeftModel.from_pretrained(copy.deepcopy(model), str(again)).eval()
    with torch.no_grad():
        torch.testing.assert_close(saved(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_every_direction_of_a_smaller_adapter_can_be_trained(
    model: Any, tiny_base: Path, tmp_path: Path
) -> None:
    write(model, tmp_path, {"rank_pattern": {"q_proj": 2}})
    backbone = ours(tmp_path, str(tiny_base))
    weights = [w for w in backbone.parameters_of("policy") if w.shape[0] == 4]  # the matrices A
    assert weights and all(w.abs().sum(dim=1).min() > 0 for w in weights)


@pytest.mark.parametrize("name", MERGED)
def test_what_changes_the_base_is_refused_and_the_advice_can_be_followed(
    name: str, model: Any, tiny_base: Path, tmp_path: Path
) -> None:
    settings, reason = MERGED[name]
    theirs = write(model, tmp_path / "adapter", settings)
    with pytest.raises(UserError, match=reason) as refusal:
        read_source_run(tmp_path / "adapter", "policy", "--init")
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32")
    with pytest.raises(UserError, match=reason):
        backbone.load_role("policy", tmp_path / "adapter")
    assert "merge_and_unload()" in str(refusal.value) and "--base" in str(refusal.value)
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in tiny_base.glob("*token*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    merged = Backbone.load(str(tmp_path / "merged"), bits=16, compute_dtype="float32")
    torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora_bias": True}, "adds biases"),
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"layer_replication": [[0, 4], [2, 4]]}, "repeats layers"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "in blocks"),
        ({"arrow_config": {"top_k": 1}}, "Arrow"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"monteclora_config": {"samples": 2}}, "sampler"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "the base was changed"),
        ({"use_something_new": True, "peft_version": "9.1"}, "use_something_new.*PEFT 9.1"),
    ],
)
def test_settings_that_are_no_plain_sum_are_refused_by_name(
    changes: dict[str, Any], reason: str, model: Any, tmp_path: Path
) -> None:
    write(model, tmp_path, {})
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=reason):
        read_source_run(tmp_path, "policy", "--init")


def test_the_settings_of_peft_are_all_known(tmp_path: Path, model: Any) -> None:
    """A setting that a newer PEFT has is to be thought about before it is passed."""
    from dataclasses import fields

    from lorarlhf.backbone import peft_folder

    known = {*peft_folder.HARMLESS, *peft_folder.CHANGES_THE_BASE, *peft_folder.NOT_A_SUM}
    assert {field.name for field in fields(LoraConfig)} - known <= {"runtime_config"}  # never saved


def test_a_plain_classifier_is_read_at_its_last_token(
    tiny_base: Path, batch: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(4)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    made = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, **options)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=4, target_modules=ATTENTION)
    tuned = get_peft_model(made, config).eval()
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.1
    tuned.save_pretrained(str(tmp_path))
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers="all", lora_rank=4
    )
    backbone.load_role("reward", tmp_path)
    ids, mask = (x.flip(1).contiguous() for x in batch(backbone, [3, 9, 5], seed=1))
    tuned.config.pad_token_id = backbone.pad_id
    with torch.no_grad(), backbone.role("reward"):
        scores = backbone.heads["reward"].pool(backbone.forward.hidden(ids, mask), mask)
        expected = tuned(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_a_policy_is_no_reward(tiny: Backbone, tmp_path: Path) -> None:
    tiny.save("policy", tmp_path)
    with pytest.raises(UserError, match="has no head"):
        tiny.load_role("reward", tmp_path)
