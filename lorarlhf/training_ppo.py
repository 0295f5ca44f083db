"""The command `ppo`: rewards of every kind, held-out prompts, judges; PPO's or RLOO's trainer."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorarlhf import processes
from lorarlhf.data import as_conversation, read_prompts
from lorarlhf.errors import UserError
from lorarlhf.rewards.functions import load_function
from lorarlhf.runs import Run, say_to_stderr
from lorarlhf.settings import Settings

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone

Row = dict[str, Any]
OWN_KEYS = ("plain", "algorithm", "num_generations", "reward_weights")
"""Settings of the command that are no fields of PPO's config."""


@dataclass
class Asked:
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


def read_asked(args: Namespace) -> Asked:
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
    return Asked(
        rewards=["reward"] * bool(args.reward)
        + [load_function(spec) for spec in args.reward_function],
        models=list(args.reward_model),
        judges=[load_function(spec) for spec in args.judge_function],
        eval_rows=read_prompts(args.eval) if args.eval else None,
        resume=args.resume,
    )


def check(settings: Settings, asked: Asked) -> None:
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
        from lorarlhf.ppo.vllm_server import reach

        # The server's command needs the folder that a packaged name stands for.
        path = processes.from_first(lambda: find_base(settings.base, say_to_stderr))
        reach(own["vllm_server"], path, own["max_prompt_tokens"] + own["max_new_tokens"])


def _check_rloo(settings: Settings, asked: Asked) -> None:
    from lorarlhf.ppo.rloo import USED

    unused = sorted(name for name in settings.said & settings.own.keys() if name not in USED)
    if unused:
        raise UserError(f"algorithm rloo has no critic and does not use {', '.join(unused)}.")
    if processes.count() > 1:
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


def load_models(asked: Asked, backbone: "Backbone") -> None:
    """Load the reward models that were named, behind the other rewards."""
    from lorarlhf.rewards.classifier import load_classifier

    asked.rewards += [load_classifier(spec, backbone.device) for spec in asked.models]


def conversations(rows: list[Row], plain: bool) -> list[Row]:
    """The prompts as conversations, so that the chat template is used, unless `plain`."""
    return rows if plain else [row | {"prompt": as_conversation(row["prompt"])} for row in rows]


def run_ppo(
    backbone: "Backbone", rows: list[Row], run: Run, settings: Settings, asked: Asked, args: Any
) -> Row:
    """Train as asked; returns the summary.

    Args:
        args: PPO's config, made from the settings.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training after an update.
    """
    if settings.own["algorithm"] == "rloo":
        from lorarlhf.ppo.rloo import train_rloo

        summary = train_rloo(
            backbone,
            rows,
            run,
            args,
            asked.rewards,
            num_generations=settings.own["num_generations"],
            reward_weights=settings.own["reward_weights"],
            trl=settings.trl,
        )
    else:
        summary = _by_ppo(backbone, rows, run, settings, asked, args)
    if backbone.has("reference"):
        backbone.save("reference", run.folder / "adapters" / "reference")
    return summary


def _by_ppo(
    backbone: "Backbone",
    rows: list[Row],
    run: Run,
    settings: Settings,
    asked: Asked,
    args: Any,
) -> Row:
    from lorarlhf.interrupt import StopAfterUpdate
    from lorarlhf.ppo.health import HealthWatch
    from lorarlhf.ppo.samples import SampleCallback
    from lorarlhf.ppo.trainer import PPOTrainer
    from lorarlhf.stages.common import RunCallback, only_ours, say_beside_bars

    stopper = StopAfterUpdate()
    trainer = PPOTrainer(
        backbone,
        args,
        rows,
        asked.rewards,
        settings.own["reward_weights"],
        [RunCallback(run, "PPO", ("score", "kl", "completion_length")), stopper],
        eval_dataset=asked.eval_rows,
        judge_funcs=asked.judges,
    )
    only_ours(trainer)
    watch = HealthWatch(run, say_beside_bars)
    trainer.add_callback(watch)
    samples = SampleCallback(backbone, rows, args, trainer.rewards, run.folder)
    trainer.add_callback(samples)
    with stopper:
        trainer.train(resume_from_checkpoint=asked.resume)
    if stopper.asked and trainer.state.global_step < args.updates:
        raise KeyboardInterrupt
    trainer.save_model()
    return trainer.summary() | {"alarms": sorted(watch.on)}
