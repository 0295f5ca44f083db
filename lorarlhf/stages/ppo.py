"""PPO on the shared backbone."""

from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.ppo_options import RewardSpec
from lorarlhf.project.settings import Settings
from lorarlhf.runtime.run import Run

Row = dict[str, Any]


def run_ppo(
    backbone: "Backbone",
    rows: list[Row],
    run: Run,
    settings: Settings,
    asked: RewardSpec,
    args: Any,
) -> Row:
    """Train as asked; returns the summary.

    Args:
        args: PPO's config, made from the settings.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training after an update.
    """
    if settings.own["algorithm"] == "rloo":
        from lorarlhf.stages.rloo import train_rloo

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
    asked: RewardSpec,
    args: Any,
) -> Row:
    from lorarlhf.ppo.health import HealthWatch
    from lorarlhf.ppo.samples import SampleCallback
    from lorarlhf.ppo.trainer import PPOTrainer
    from lorarlhf.runtime.interrupt import StopAfterUpdate
    from lorarlhf.stages.callbacks import RunCallback, log_beside_bars
    from lorarlhf.stages.trl.arguments import only_ours

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
    watch = HealthWatch(run, log_beside_bars)
    trainer.add_callback(watch)
    samples = SampleCallback(backbone, rows, args, trainer.rewards, run.folder)
    trainer.add_callback(samples)
    with stopper:
        trainer.train(resume_from_checkpoint=asked.resume)
    if stopper.asked and trainer.state.global_step < args.updates:
        raise KeyboardInterrupt
    trainer.save_model()
    return trainer.summary() | {"alarms": sorted(watch.active)}
