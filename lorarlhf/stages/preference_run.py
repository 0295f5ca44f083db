"""DPO, ORPO and KTO run alike: watched, stopped early, with the best weights kept."""

from collections.abc import Sequence
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback, log_beside_bars
from lorarlhf.stages.conversations import Row
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.keep_best import KeepBest
from lorarlhf.stages.preference_watch import PreferenceWatch
from lorarlhf.stages.step_size import fill_in_pair_rate
from lorarlhf.stages.trl.trainer import run_trl_trainer

PATIENCE = 2
"""The training ends after so many held-out measurements in a row that were not the lowest, of those
in its second half."""


def run_watched(
    trainer_class: type,
    title: str,
    shown: Sequence[str],
    backbone: Backbone,
    run: Run,
    inputs: StageInputs,
    rows: Sequence[Row],
) -> tuple[Any, Row]:
    """Train the policy and save it.

    Args:
        title: of the progress bar, and shown: the metrics beside it.
        rows: the training rows in their order.

    Returns:
        the trainer; the `learning_rate` at the start, the `alarms` that are on for the policy that
        is kept, and with held-out rows their number, the `kept_step` and its `eval_loss`.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the checkpoint was written.
    """
    from datasets import Dataset

    held = inputs.eval_rows
    keeper = KeepBest(backbone, "policy", patience=PATIENCE) if held is not None else None
    watch = PreferenceWatch(backbone, run, inputs) if inputs.settings.evaluations else None
    inputs.args.eval_on_start = held is not None
    fill_in_pair_rate(inputs.args, inputs.settings, backbone.hidden_size, rows)
    trainer = run_trl_trainer(
        trainer_class,
        backbone,
        "policy",
        inputs.args,
        resume=inputs.resume,
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=None if held is None else Dataset.from_list(list(held)),
        callbacks=[RunCallback(run, title, shown), *filter(None, (watch, keeper))],
    )
    found: Row = {"learning_rate": inputs.args.learning_rate}
    kept_step = trainer.state.global_step
    if keeper is not None and held is not None:
        keeper.restore()
        kept_step = keeper.best_step
        found |= {"held_out": len(held), "kept_step": kept_step, "eval_loss": keeper.best_loss}
        _log_kept(kept_step, trainer.state.global_step)
    backbone.save("policy", run.folder / "adapters" / "policy")
    if watch is not None:
        found |= watch.summary(trainer.state.log_history, kept_step)
    return trainer, found


def _log_kept(step: int, last: int) -> None:
    if step == 0:
        log_beside_bars(
            "No step lowered the held-out loss, so the policy is as it was before. Lower "
            "learning_rate, or collect more votes."
        )
    elif step < last:
        log_beside_bars(f"The weights of step {step} are kept: the held-out loss was lowest there.")
