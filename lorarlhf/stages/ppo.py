"""PPO on the shared backbone: the trainer with metrics, samples, health alarms and a clean stop."""

from collections.abc import Sequence
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.health import HealthWatch
from lorarlhf.ppo.samples import SampleCallback
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runtime.interrupt import StopAfterUpdate
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback, log_beside_bars
from lorarlhf.stages.conversations import Row
from lorarlhf.stages.inputs import PPOInputs, PPOSettings, RewardSpec
from lorarlhf.stages.trl.arguments import Placement, trl_arguments
from lorarlhf.stages.trl.trainer import remove_library_output

SHOWN = ("score", "kl", "completion_length")
"""The metrics beside the progress bar."""


def train_ppo(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    args: PPOConfig,
    spec: RewardSpec | None = None,
    *,
    eval_rows: Sequence[Row] | None = None,
    resume: bool = False,
    samples: bool = True,
) -> dict[str, Any]:
    """Tune the policy against the reward role or functions.

    Args:
        backbone: its policy is trained, and its value.
        rows: with a `prompt` (text or conversation); other columns go to the reward functions.
        run: gets the metrics; policy and value are saved under its adapters/.
        args: the settings; `output_dir` is the run's folder.
        spec: the rewards; by default the reward role.
        eval_rows: held-out prompts, measured during training and never trained on.
        resume: continue from the run's newest checkpoint, if there is one.
        samples: answer a few fixed prompts during training, saved in samples.jsonl.

    Returns:
        the trainer's summary, and the `alarms` that are on at the end.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training after an update.
    """
    spec = spec or RewardSpec()
    stopper, watch = StopAfterUpdate(), HealthWatch(run, log_beside_bars, stage="ppo")
    trainer = PPOTrainer(
        backbone,
        args,
        rows,
        spec.rewards,
        spec.weights,
        [RunCallback(run, "PPO", SHOWN, stage="ppo"), stopper],
        eval_dataset=eval_rows,
        judge_funcs=spec.judges,
        deviation=spec.deviation,
    )
    remove_library_output(trainer)
    trainer.add_callback(watch)
    if samples:
        trainer.add_callback(SampleCallback(backbone, rows, args, trainer.rewards, run.folder))
    with stopper:
        trainer.train(resume_from_checkpoint=resume)
    if stopper.requested and trainer.state.global_step < args.updates:
        raise KeyboardInterrupt
    trainer.save_model()
    return trainer.summary() | {"alarms": sorted(watch.active)}


def arguments(placement: Placement, settings: PPOSettings) -> PPOConfig:
    """PPO's configuration. For RLOO and GRPO, TRL's configuration is checked as well.

    Raises:
        UserError, ValueError: a field or its value is not accepted.
    """
    if settings.algorithm == "ppo":
        return trl_arguments(PPOConfig, placement, settings.config, settings.trl)
    from lorarlhf.stages.critic_free import critic_free_arguments

    args = trl_arguments(PPOConfig, placement, settings.config, {})
    critic_free_arguments(placement, args, settings)
    return args


def run_ppo(backbone: Backbone, run: Run, inputs: PPOInputs) -> dict[str, Any]:
    """PPO, RLOO or GRPO from prepared inputs. If there is a reference, it is saved, too.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training after an update.
    """
    made = (backbone, inputs.rows, run, inputs.args, inputs.spec)
    if inputs.settings.algorithm == "ppo":
        summary = train_ppo(*made, eval_rows=inputs.eval_rows, resume=inputs.resume)
    else:
        from lorarlhf.stages.critic_free import train_critic_free

        summary = train_critic_free(*made, inputs.settings, resume=inputs.resume)
    if backbone.has("reference"):
        backbone.save("reference", run.folder / "adapters" / "reference")
    return summary
