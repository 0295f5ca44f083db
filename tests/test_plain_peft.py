"""Saved roles open in plain transformers and PEFT, in a process that never imports lorarlhf."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import Backbone

LENGTHS = [1, 2, 7, 12]

SCRIPT = """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

base, policy, reward, batch, results = sys.argv[1:]
options = {"dtype": torch.float32, "attn_implementation": "eager"}
pad = AutoTokenizer.from_pretrained(base).pad_token_id
batch = load_file(batch)

causal = AutoModelForCausalLM.from_pretrained(base, **options)
causal = PeftModel.from_pretrained(causal, policy).eval()
scorer = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=1, pad_token_id=pad, **options
)
scorer = PeftModel.from_pretrained(scorer, reward).eval()
with torch.no_grad():
    save_file({"logits": causal(**batch).logits, "scores": scorer(**batch).logits[:, 0]}, results)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def plain(
    tiny_base: Path,
    randomise: Callable[..., None],
    batch: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Our logits and scores for a batch padded right, and those of the plain libraries."""
    folder = tmp_path_factory.mktemp("plain")
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
    )
    backbone.add_role("reward", pooling="last")
    randomise(backbone, "policy", seed=1)
    randomise(backbone, "reward", seed=2)
    backbone.heads["reward"].bias.data.zero_()  # the shape other tools know has none
    ids, mask = (x.flip(1).contiguous() for x in batch(backbone, LENGTHS, seed=3))
    with torch.no_grad():
        with backbone.role("policy"):
            logits = backbone.forward.hidden(ids, mask) @ backbone.lm_head.weight.T
        with backbone.role("reward"):
            scores = backbone.heads["reward"].pool(backbone.forward.hidden(ids, mask), mask)
    arguments = [str(tiny_base)]
    arguments += [str(backbone.save(role, folder / role)) for role in ("policy", "reward")]
    save_file({"input_ids": ids, "attention_mask": mask}, folder / "batch.safetensors")
    arguments += [str(folder / "batch.safetensors"), str(folder / "results.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(folder / "results.safetensors")
    return {
        "ours": {"logits": logits, "scores": scores},
        "theirs": theirs,
        "modules": json.loads(done.stdout.splitlines()[-1]),
        "warnings": done.stderr,
        "mask": mask.bool(),
    }


def test_nothing_of_this_package_was_imported(plain: dict[str, Any]) -> None:
    assert "lorarlhf" not in plain["modules"]
    assert {"peft", "transformers"} <= set(plain["modules"])


def test_a_saved_policy_gives_equal_logits(plain: dict[str, Any]) -> None:
    mask = plain["mask"]
    ours, theirs = plain["ours"]["logits"][mask], plain["theirs"]["logits"][mask]
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_a_saved_reward_gives_equal_scores(plain: dict[str, Any]) -> None:
    ours, theirs = plain["ours"]["scores"], plain["theirs"]["scores"]
    assert len(set(ours.tolist())) == len(LENGTHS)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_every_saved_weight_found_its_place(plain: dict[str, Any]) -> None:
    assert "adapter keys" not in plain["warnings"]  # PEFT's words for missing and unexpected ones
