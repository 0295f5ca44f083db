"""A tiny policy to export, with a stop token that no program knows by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.export.original import Original, read_original

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<over>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
OTHER_TEMPLATE = TEMPLATE.replace("[{{ m['role'] }}]", "### {{ m['role'] }}:")
ASKED = ("Name a fish.", "Why is the sky blue?", "Tell me about tea in a few words")


def write_base(make_base: Callable[..., Path], **changes: Any) -> Path:
    """A tiny base whose prompts begin with `<|im_start|>`, and whose turns end with `<over>`."""
    folder = make_base(eos="<over>", **changes)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def load(folder: Path, **how: Any) -> Backbone:
    """The base with its upper two layers adapted."""
    how = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4} | how
    return Backbone.load(str(folder), **how)


def ask(backbone: Backbone) -> Original:
    """The policy's answers of 8 tokens."""
    prompts: Any = [[{"role": "user", "content": text}] for text in ASKED]
    return read_original(backbone, prompts, 8)


def write_run(backbone: Backbone, folder: Path, **config: Any) -> Path:
    """A run's folder with the policy of a backbone."""
    backbone.save("policy", folder / "adapters" / "policy")
    about = {"stage": "sft", "status": "done", "base": backbone.base, "bits": backbone.bits}
    about |= {"base_path": backbone.base_path, "adapter_layers": backbone.adapter_layers}
    (folder / "run.json").write_text(json.dumps(about | {"config": config}))
    return folder


@pytest.fixture(scope="module")
def policy(make_base: Callable[..., Path], randomise: Callable[..., None]) -> Backbone:
    """A backbone with a random policy, on a base stored in float32 that computes in float32."""
    backbone = load(write_base(make_base))
    randomise(backbone, "policy", seed=3)
    return backbone


@pytest.fixture(scope="module")
def original(policy: Backbone) -> Original:
    """What it says."""
    return ask(policy)
