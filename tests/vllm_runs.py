"""PPO with a fake vLLM server for tests: the server, small settings, the command, a question."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts
from lorarlhf.backbone.sampler import row_seeds
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.vllm import VLLMSampler
from lorarlhf.runtime.files import write_jsonl
from tests.fake_vllm import FakeVLLM, install_fake_vllm, serving

PROMPTS = ["Hi", "Why is the sky blue?", "Name a fish.", "And now?", "Tea or milk?"]
Make = Callable[..., Any]


@pytest.fixture
def server(make_base: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVLLM]:
    """It begins with other weights than the tiny base's: right answers must come from ours."""
    install_fake_vllm(monkeypatch)
    with serving(make_base(seed=7)) as fake:
        yield fake


def config(folder: Path, server: FakeVLLM | None = None, **settings: Any) -> PPOConfig:
    if server is not None:
        settings |= {"generation": "vllm", "vllm_server": server.address}
    defaults = {"updates": 3, "rollout_batch_size": 4, "micro_batch_size": 2, "max_new_tokens": 6}
    defaults |= {"num_ppo_epochs": 1, "critic_warmup": 1, "learning_rate": 1e-2, "save_steps": 1}
    return PPOConfig(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, **(defaults | settings)
    )


@pytest.fixture
def command(tiny_base: Path, tmp_path: Path) -> list[str]:
    """Words of `lorarlhf ppo`, without its settings."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    (tmp_path / "rewards.py").write_text(
        "def one(completions, **_):\n    return [float(len(str(c))) for c in completions]\n"
    )
    words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
    words += ["--reward-function", f"{tmp_path / 'rewards.py'}:one", "--out", str(tmp_path / "run")]
    return words


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def ask(sampler: VLLMSampler, backbone: Backbone, args: PPOConfig, seed: int = 0) -> Any:
    encoded = encode_prompts(backbone, PROMPTS, args.max_prompt_tokens)
    return sampler(backbone, encoded, args, row_seeds(seed, range(len(encoded))))
