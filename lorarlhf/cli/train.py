"""The training commands `sft`, `reward`, `ppo`, `dpo`, `orpo`: from files to a finished run folder.

What can be checked without the base is checked before it is loaded, and what was there before in
the run's folder is kept.
"""

import contextlib
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.ppo_options import OWN_KEYS, RewardSpec, check, load_models, read_reward_spec
from lorarlhf.cli.project_defaults import clear_up, fill_in
from lorarlhf.data.readers import read_demonstrations, read_preferences, read_prompts
from lorarlhf.evaluation.report import write_report
from lorarlhf.project.lineage import SourceRun, check_same_base, read_source_run
from lorarlhf.project.load import device_of, load_backbone
from lorarlhf.project.settings import OWN, TRL, Settings, load_class, resolve
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import (
    archive_earlier_run,
    check_writable,
    drop_later_rows,
    log_changed_settings,
)
from lorarlhf.runtime.terminal import launch_command, log_to_stderr
from lorarlhf.stages.ppo import run_ppo

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone

Row = dict[str, Any]
READERS: dict[str, Callable[[str], list[Row]]] = {
    "sft": read_demonstrations,
    "reward": read_preferences,
    "dpo": read_preferences,
    "orpo": read_preferences,
    "ppo": read_prompts,
}
ROLES = {"init": "policy", "reward": "reward"}


def train(args: Namespace) -> Row:
    """Run one training stage as its command was given; returns the summary.

    Raises:
        UserError: whatever is wrong with files, settings or runs.
        KeyboardInterrupt: after noting in `run.json` that the run was stopped.
    """
    distributed.initialize()
    project, filled_in = distributed.broadcast_from_main(lambda: (fill_in(args), vars(args)))
    vars(args).update(filled_in)
    try:
        done = _train(args, project)
    finally:
        if distributed.is_main():
            clear_up(args)
    distributed.shut_down()
    return done


def _train(args: Namespace, project: list[SettingValue]) -> Row:
    stage = args.command
    rows = READERS[stage](args.data)
    asked = read_reward_spec(args) if stage == "ppo" else None
    eval_rows = read_preferences(args.eval) if stage == "reward" and args.eval else None
    parents = _parents(args)
    settings = resolve(
        stage,
        config=args.config,
        sets=args.set,
        flags={"base": args.base, "seed": args.seed},
        # The last one counts: the policy's run goes before the reward's, both before the project.
        inherited=[
            *project,
            *(item for parent in reversed(parents.values()) for item in parent.given()),
        ],
    )
    check_same_base(list(parents.values()), "base" in settings.said)
    if asked is not None:
        check(settings, asked)
    folder = Path(args.out or f"runs/{stage}")
    check_writable(folder)
    _arguments(stage, settings, folder)
    started = time.time()
    rows, expected = _before_loading(args, rows, settings, asked)
    backbone = _load(stage, settings, parents)
    if asked is not None:
        load_models(asked, backbone)
    # Only now: a mistake in what was asked for leaves an earlier run in the folder as it is.
    run = _open_run(folder, args, settings)
    run.started = started
    run.base(backbone)
    run.about |= expected
    with _recorded(run, args):
        if asked is not None:
            whole_args = _arguments(stage, settings, run.folder, backbone)
            summary = run_ppo(backbone, rows, run, settings, asked, whole_args)
        else:
            summary = _by_trl(stage, backbone, rows, run, settings, eval_rows, args.resume)
    whole = run.finish("done", summary | {"out": str(run.folder)})
    _write_results(run, whole)
    return whole


# ---- what comes before the base is loaded


def _parents(args: Namespace) -> dict[str, SourceRun]:
    """By option: the run of the policy to start from, and that of the reward."""
    named = {option: getattr(args, option, None) for option in ROLES}
    return {
        option: read_source_run(path, ROLES[option], f"--{option}")
        for option, path in named.items()
        if path
    }


def _before_loading(
    args: Namespace, rows: list[Row], settings: Settings, asked: RewardSpec | None
) -> tuple[list[Row], Row]:
    """See that the base can read the rows, and that the training will fit into memory.

    Returns:
        the rows as the stage takes them, and `expected_mb`, the peak that is expected.
    """
    from lorarlhf.backbone.devices import compute_dtype_for
    from lorarlhf.backbone.fetch import find_base
    from lorarlhf.backbone.loading import load_config, load_tokenizer
    from lorarlhf.backbone.tokenizer import PromptEncoder
    from lorarlhf.cli.preflight import check_rows, estimate_memory, free_for_us, weights_of

    stage = args.command
    device = device_of(settings)
    path = distributed.main_makes_first(lambda: find_base(settings.base, log_to_stderr))
    config = load_config(path)
    reader = PromptEncoder(settings.base, load_tokenizer(path, settings.backbone["chat_template"]))
    rows, longest = check_rows(stage, reader, rows, settings)
    if asked is not None and asked.eval_rows is not None:
        asked.eval_rows, _ = check_rows(stage, reader, asked.eval_rows, settings)
    dtype = compute_dtype_for(device, settings.backbone["compute_dtype"])
    reference = stage in ("ppo", "dpo") and bool(args.init)
    estimated = estimate_memory(
        stage,
        config,
        settings,
        device,
        dtype.itemsize,
        longest,
        reference,
        new_adapters=not (args.init or getattr(args, "reward", None)),
        besides=weights_of(asked.models) if asked is not None else 0,
    )
    if estimated is None:
        log_to_stderr("Memory: how much this takes can't be told before it starts.")
        return rows, {}
    free = free_for_us(device)
    if not args.no_memory_check:
        estimated.check(free)
    log_to_stderr(estimated.told(free))
    return rows, {"expected_mb": round(estimated.parts["total"] / 1e6, 1)}


def _open_run(folder: Path, args: Namespace, settings: Settings) -> Run:
    named = ["data", "eval", "init", "reward", "config"]
    named += ["reward_function", "reward_model", "judge_function"]
    told = {name: getattr(args, name, None) for name in named}
    config = {name: value for name, value in told.items() if value} | settings.flat()
    try:
        if distributed.is_main():
            if args.resume:
                log_changed_settings(folder, config)
                drop_later_rows(folder, args.command)
            else:
                archive_earlier_run(folder)
        distributed.barrier()
    except OSError as error:
        raise UserError(
            f"The output folder {folder} can't be written ({error.strerror}). Name another one "
            "with --out."
        ) from error
    return Run(folder, args.command, config)


def _arguments(stage: str, settings: Settings, folder: Path, backbone: Any = None) -> Any:
    """TRL's config, to be used or, before the base is loaded, only to see that it is accepted.

    Raises:
        UserError: TRL's config or PPO's refuses a value, or values that don't go together.
    """
    from lorarlhf.backbone.devices import compute_dtype_for
    from lorarlhf.stages.trl.arguments import batch_arguments, trl_arguments

    if backbone is None:
        device = device_of(settings)
        dtype = compute_dtype_for(device, settings.backbone["compute_dtype"])
        backbone = SimpleNamespace(device=device, compute_dtype=dtype)
    own = {key: value for key, value in settings.own.items() if key not in OWN_KEYS}
    place: Any = SimpleNamespace(folder=folder, about={"seed": settings.seed})
    if "batch_size" in settings.own:
        batch_arguments(settings.own["batch_size"], settings.own["micro_batch_size"])
    try:
        kind = load_class(TRL[stage])
        if settings.own.get("algorithm") == "rloo":
            from lorarlhf.stages.rloo import arguments

            made = trl_arguments(kind, backbone, place, own, {})
            arguments(backbone, place, made, settings.own["num_generations"], None, settings.trl)
            return made
        return trl_arguments(kind, backbone, place, own if stage == "ppo" else {}, settings.trl)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The settings of {stage} don't fit: {reason}.") from error


# ---- training


@contextlib.contextmanager
def _recorded(run: Run, args: Namespace) -> Iterator[None]:
    """Note in `run.json` how the run ended, also when it did not end well."""
    try:
        yield
    except KeyboardInterrupt:
        _end_bars()
        run.finish("stopped")
        command = shlex.join([*launch_command(), *(a for a in args.argv if a != "--resume")])
        if not any((run.folder / "checkpoints").glob("checkpoint-*")):
            log_to_stderr("Stopped before anything could be kept; the same command starts again.")
        elif distributed.machine_count() > 1:
            log_to_stderr(
                "Stopped. The same command on every machine, with --resume, goes on where it ended."
            )
        else:
            log_to_stderr(f"Stopped. This goes on where it ended:\n  {command} --resume")
        raise
    except BaseException:
        _end_bars()
        with contextlib.suppress(OSError):  # a full disk must not hide the first error
            run.finish("failed")
        raise


def _end_bars() -> None:
    """End the line of a progress bar that was cut off, so that what is told next has its own."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _load(stage: str, settings: Settings, parents: dict[str, SourceRun]) -> "Backbone":
    backbone = load_backbone(settings)
    if "init" in parents:
        backbone.load_role("policy", parents["init"].adapter)
        if stage in ("ppo", "dpo"):
            backbone.freeze_reference()
    if "reward" in parents:
        backbone.load_role("reward", parents["reward"].adapter)
    return backbone


def _by_trl(
    stage: str,
    backbone: "Backbone",
    rows: list[Row],
    run: Run,
    settings: Settings,
    eval_rows: list[Row] | None,
    resume: bool,
) -> Row:
    own = load_class(OWN[stage])(**settings.own, trl=settings.trl)
    if stage == "reward":
        from lorarlhf.stages.reward_model import train_reward_model

        return train_reward_model(backbone, rows, run, own, eval_rows, resume)
    if stage == "sft":
        from lorarlhf.stages.sft import train_sft

        return train_sft(backbone, rows, run, own, resume)
    from lorarlhf.stages.dpo_orpo import train_direct

    return train_direct(backbone, rows, run, stage, own, resume)


def _write_results(run: Run, summary: Row) -> None:
    if not distributed.is_main():
        return
    write_json(run.folder / "summary.json", summary)
    try:
        report = write_report(run.folder)
        log_to_stderr(f"Report: {report}")
    except UserError as error:  # the training is done and saved; only its page is missing
        log_to_stderr(str(error))
