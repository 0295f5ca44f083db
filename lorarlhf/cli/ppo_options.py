"""The command `ppo`: rewards of every kind, held-out prompts, judges; PPO's or RLOO's trainer."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorarlhf.data.readers import read_prompts
from lorarlhf.project.settings import Settings
from lorarlhf.rewards.functions import load_function
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone

Row = dict[str, Any]
OWN_KEYS = ("plain", "algorithm", "num_generations", "reward_weights")
"""Settings of the command that are no fields of PPO's config."""


@dataclass
class RewardSpec:
    """What the command's own options name.

    Attributes:
        rewards: `"reward"` for the reward role, and functions, in this order.
        models: reward models that are to be loaded and become functions.
        judges: functions that judge held-out answers; eval_rows: the held-out prompts.
    """

    rewards: list[Callable[..., Any] | str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    judges: list[Callable[..., Any]] = field(default_factory=list)
    eval_rows: list[Row] | None = None
    resume: bool = False


def read_reward_spec(args: Namespace) -> RewardSpec:
    """Load the functions and held-out prompts that the options name, before the base is loaded.

    Raises:
        UserError: no reward at all, a function or file that is not there, or judges without
            held-out prompts.
    """
    if not (args.reward or args.reward_function or args.reward_model):
        raise UserError(
            "PPO needs a reward: --reward RUN for a trained reward role, --reward-function "
            "FILE.py:NAME for a Python function, or --reward-model FOLDER; or several of them."
        )
    if args.judge_function and not args.eval:
        raise UserError("A judge needs held-out prompts to judge answers to: add --eval FILE.")
    return RewardSpec(
        rewards=["reward"] * bool(args.reward)
        + [load_function(spec) for spec in args.reward_function],
        models=list(args.reward_model),
        judges=[load_function(spec) for spec in args.judge_function],
        eval_rows=read_prompts(args.eval) if args.eval else None,
        resume=args.resume,
    )


def check(settings: Settings, asked: RewardSpec) -> None:
    """See that the settings fit what was asked for.

    Raises:
        UserError: weights of another number, what RLOO has no use for, a KL budget without held-out
            prompts, or no vLLM server where one is to sample.
    """
    own = settings.own
    sources, weights = len(asked.rewards) + len(asked.models), own["reward_weights"]
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights or [])
    if weights is not None and (len(weights) != sources or not numbers):
        raise UserError(
            f"reward_weights is a list of {sources} numbers here, one a reward in the order role, "
            f"functions, models; found {weights}."
        )
    if own["kl_budget"] is not None and asked.eval_rows is None:
        raise UserError("kl_budget is measured on held-out prompts: add --eval FILE.")
    if own["algorithm"] == "rloo":
        _check_rloo(settings, asked)
    elif "num_generations" in settings.said:
        raise UserError("num_generations is for algorithm rloo; PPO answers each prompt once.")
    if own["generation"] == "vllm":
        from lorarlhf.backbone.fetch import find_base
        from lorarlhf.ppo.vllm_server import connect

        # The server's command needs the folder that a packaged name stands for.
        path = distributed.broadcast_from_main(lambda: find_base(settings.base, log_to_stderr))
        connect(own["vllm_server"], path, own["max_prompt_tokens"] + own["max_new_tokens"])


def _check_rloo(settings: Settings, asked: RewardSpec) -> None:
    from lorarlhf.stages.rloo import USED

    unused = sorted(name for name in settings.said & settings.own.keys() if name not in USED)
    if unused:
        raise UserError(f"algorithm rloo has no critic and does not use {', '.join(unused)}.")
    if distributed.world_size() > 1:
        raise UserError("algorithm rloo runs in one process; several share the work of PPO.")
    if asked.resume:
        raise UserError("algorithm rloo can't be resumed: TRL's checkpoints are pickles.")
    if asked.eval_rows is not None:
        raise UserError("algorithm rloo measures nothing on held-out prompts: leave out --eval.")
    if settings.own["kl_coef"] <= 0:
        raise UserError("kl_coef is above 0 with algorithm rloo: without it TRL measures no KL.")
    size, generations = settings.own["rollout_batch_size"], settings.own["num_generations"]
    if generations < 2 or size % generations:
        raise UserError(
            f"num_generations is 2 or more and divides rollout_batch_size ({size}), found "
            f"{generations}."
        )


def load_models(asked: RewardSpec, backbone: "Backbone") -> None:
    """Load the reward models that were named, behind the other rewards."""
    from lorarlhf.rewards.classifier import load_classifier

    asked.rewards += [load_classifier(spec, backbone.device) for spec in asked.models]
