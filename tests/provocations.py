"""Each alarm of `lorarlhf.ppo.alarms` provoked by a real run of PPO on the tiny base.

Used by tests/test_health.py, and by benchmarks/health_pictures.py for the pictures in the guide.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import completion, generate_ids
from lorarlhf.ppo import trainer as ppo_trainer
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer

Row = dict[str, Any]
PROMPTS = [f"What is {word}?" for word in ("tea", "a crow", "late", "wax", "cold", "a fish", "ice")]


def share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of one kind of token, a quarter of the vocabulary."""
    return [sum(token % 4 == 0 for token in ids) / len(ids) for ids in completion_ids]


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def shortness(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def endless(ended: list[bool], **_: Any) -> list[float]:
    return [0.0 if end else 1.0 for end in ended]


def few_tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of six tokens, with a slope that leads there: of 96, of 24, of 6."""
    sizes = (4, 16, 64)
    return [
        sum(token % size == 0 for token in ids for size in sizes) / len(ids)
        for ids in completion_ids
    ]


def small_numbers(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The smaller the numbers of the tokens, the better: what is best is a single token."""
    return [-sum(ids) / len(ids) / 384 for ids in completion_ids]


def by_prompt(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Mostly what the prompt decides, which a value role can learn to see."""
    own = share(completion_ids)
    return [len(prompt) / 4 + score for prompt, score in zip(prompts, own, strict=True)]


def dice(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Nothing that could be predicted."""
    return torch.randn(len(completion_ids)).tolist()


def opposite(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [-score for score in share(completion_ids)]


def from_the_base(backbone: Backbone, encoded: Any, args: Any, seeds: Any) -> Any:
    """A broken sampler: the answers are the base's and not the policy's."""
    with backbone.role("base"):
        new = generate_ids(backbone, encoded, max_new_tokens=args.max_new_tokens, seeds=seeds)
    return [completion(backbone, ids) for ids in new]


@torch.no_grad()
def from_a_server_left_behind(backbone: Backbone, encoded: Any, args: Any, seeds: Any) -> Any:
    """As a server that never gets the new weights: the base's answers and log-probabilities."""
    with backbone.role("base"):
        new = generate_ids(backbone, encoded, max_new_tokens=args.max_new_tokens, seeds=seeds)
        answers = []
        for asked, ids in zip(encoded, new, strict=True):
            logits = backbone.causal(input_ids=torch.tensor([[*asked, *ids]])).logits[0]
            known = logits[len(asked) - 1 : -1].float().log_softmax(dim=-1)
            theirs = known[range(len(ids)), ids].tolist()
            answers.append(replace(completion(backbone, ids), sampled_logprobs=theirs))
    return answers


@dataclass
class Provocation:
    """What is wrong in a run.

    Attributes:
        figure: the metric to look at.
        stops: how many tokens of the vocabulary (384) end an answer, besides the real one.
        moved: the policy starts away from its reference.
        sampler: who answers instead of the policy.
    """

    figure: str
    reward: Callable[..., list[float]] = share
    settings: dict[str, Any] = field(default_factory=dict)
    judge: Callable[..., list[float]] | None = None
    stops: int = 0
    moved: bool = False
    sampler: Callable[..., Any] | None = None


FAST = {"learning_rate": 2e-2, "kl_coef": 0.0, "updates": 30}
STILL = {"learning_rate": 1e-5}
UNCLIPPED = {"learning_rate": 5e-2, "num_ppo_epochs": 8, "clip_range": 100.0, "max_ratio": None}
BROKEN = {"learning_rate": 1e25, "updates": 8}
PROVOCATIONS = {
    "not_a_number": Provocation("value_loss", settings=BROKEN),
    "negative_kl": Provocation(
        "kl", settings={"learning_rate": 0.0}, moved=True, sampler=from_the_base
    ),
    "kl_runaway": Provocation("kl", few_tokens, FAST),
    "entropy_collapse": Provocation(
        "entropy", small_numbers, FAST | {"value_layers": 2, "updates": 60}
    ),
    "length_drift": Provocation("completion_length", shortness, FAST, stops=77),
    "endless_answers": Provocation(
        "ended_fraction",
        endless,
        FAST | {"learning_rate": 1e-2, "updates": 100, "rollout_batch_size": 32},
        stops=12,
    ),
    "clip_fraction": Provocation("clip_fraction", few_tokens, FAST | {"updates": 12}),
    "ratio": Provocation("ratio", length, UNCLIPPED, stops=77),
    "server_apart": Provocation(
        "vllm_kl",
        few_tokens,
        FAST | {"learning_rate": 5e-3, "updates": 12},
        sampler=from_a_server_left_behind,
    ),
    "skipped_steps": Provocation("skipped_steps", settings=BROKEN),
    "useless_value": Provocation("explained_variance", dice, STILL | {"value_learning_rate": 3e-2}),
    "length_reward": Provocation("score_length_corr", length, STILL, stops=77),
    "over_optimisation": Provocation("eval_judge", share, FAST | {"eval_steps": 3}, judge=opposite),
}
CALM = Provocation(
    "score", by_prompt, {"learning_rate": 1e-3, "updates": 20, "kl_coef": 0.05, "critic_warmup": 4}
)


def provoke(case: Provocation, base: Path, folder: Path, callbacks: Any = None) -> list[Row]:
    """Run PPO with what is wrong in it; returns the rows of its log."""
    backbone = Backbone.load(
        str(base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
    )
    settings: Row = {"updates": 15, "rollout_batch_size": 16, "max_new_tokens": 12}
    settings |= {"num_ppo_epochs": 4, "critic_warmup": 1, "save_steps": 1000}
    settings |= {"micro_batch_size": 32}  # all at once: many small passes take longer
    settings |= {"value_learning_rate": 3e-3, "kl_coef": 0.01} | case.settings
    args = PPOConfig(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **settings)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    with ExitStack() as stack:
        if case.stops:
            stops = list(range(3, 3 + case.stops))
            stack.enter_context(patch.object(Backbone, "stop_ids", stops))
        if case.sampler is not None:
            stack.enter_context(patch.object(ppo_trainer, "make_sampler", lambda *_: case.sampler))
        if case.moved:
            torch.manual_seed(0)
            for weight in roles.adapter_parameters(backbone.model, "default").values():
                weight.data.normal_(0, 0.1)
        trainer = PPOTrainer(
            backbone,
            args,
            rows,
            case.reward,
            callbacks=callbacks,
            eval_dataset=rows if case.judge else None,
            judge_funcs=[case.judge] if case.judge else [],
        )
        trainer.train()
    return trainer.state.log_history
