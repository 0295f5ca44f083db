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

from lorarlhf.data import as_text, read_demonstrations, read_preferences, read_prompts
from lorarlhf.errors import UserError
from lorarlhf.folders import check_writable, rewind, set_aside, tell_changes
from lorarlhf.parents import Parent, check_same_base, load_backbone, read_parent
from lorarlhf.report import write_report
from lorarlhf.runs import Run, own_command, say_to_stderr, write_json
from lorarlhf.settings import OWN, TRL, Settings, load_class, resolve
from lorarlhf.settings_sources import Given
from lorarlhf.training_ppo import OWN_KEYS, check, conversations, load_models, read_asked, run_ppo
from lorarlhf.workspace_commands import clear_up, fill_in

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
    project = fill_in(args)
    try:
        return _train(args, project)
    finally:
        clear_up(args)


def _train(args: Namespace, project: list[Given]) -> Row:
    stage = args.command
    rows = READERS[stage](args.data)
    asked = read_asked(args) if stage == "ppo" else None
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
    backbone = _load(stage, settings, parents)
    rows = _checked_rows(stage, backbone, rows, settings)
    if asked is not None:
        if asked.eval_rows is not None:
            asked.eval_rows = _checked_rows(stage, backbone, asked.eval_rows, settings)
        load_models(asked, backbone)
    # Only now: a mistake in what was asked for leaves an earlier run in the folder as it is.
    run = _open_run(folder, args, settings)
    run.started = started
    run.base(backbone)
    with _recorded(run, args):
        if asked is not None:
            whole_args = _arguments(stage, settings, run.folder, backbone)
            summary = run_ppo(backbone, rows, run, settings, asked, whole_args)
        else:
            summary = _by_trl(stage, backbone, rows, run, settings, eval_rows)
    whole = run.finish("done", summary | {"out": str(run.folder)})
    _write_results(run, whole)
    return whole


# ---- what comes before the base is loaded


def _parents(args: Namespace) -> dict[str, Parent]:
    """By option: the run of the policy to start from, and that of the reward."""
    named = {option: getattr(args, option, None) for option in ROLES}
    return {
        option: read_parent(path, ROLES[option], f"--{option}")
        for option, path in named.items()
        if path
    }


def _open_run(folder: Path, args: Namespace, settings: Settings) -> Run:
    named = ["data", "eval", "init", "reward", "config"]
    named += ["reward_function", "reward_model", "judge_function"]
    told = {name: getattr(args, name, None) for name in named}
    config = {name: value for name, value in told.items() if value} | settings.flat()
    try:
        if getattr(args, "resume", False):
            tell_changes(folder, config)
            rewind(folder)
        else:
            set_aside(folder)
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
    import torch

    from lorarlhf.backbone.devices import best_device, compute_dtype_for
    from lorarlhf.stages.common import trl_arguments

    if backbone is None:
        asked, bits = settings.backbone["device"], settings.backbone["bits"]
        device = torch.device(asked) if asked else best_device(bits)
        dtype = compute_dtype_for(device, settings.backbone["compute_dtype"])
        backbone = SimpleNamespace(device=device, compute_dtype=dtype)
    own = {key: value for key, value in settings.own.items() if key not in OWN_KEYS}
    place: Any = SimpleNamespace(folder=folder, about={"seed": settings.seed})
    try:
        kind = load_class(TRL[stage])
        if settings.own.get("algorithm") == "rloo":
            from lorarlhf.ppo.rloo import arguments

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
        command = shlex.join([own_command(), *(a for a in args.argv if a != "--resume")])
        if any((run.folder / "checkpoints").glob("checkpoint-*")):
            say_to_stderr(f"Stopped. This goes on where it ended:\n  {command} --resume")
        else:
            say_to_stderr("Stopped before anything could be kept; the same command starts again.")
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


def _load(stage: str, settings: Settings, parents: dict[str, Parent]) -> "Backbone":
    backbone = load_backbone(settings)
    if "init" in parents:
        backbone.load_role("policy", parents["init"].adapter)
        if stage in ("ppo", "dpo"):
            backbone.freeze_reference()
    if "reward" in parents:
        backbone.load_role("reward", parents["reward"].adapter)
    return backbone


def _checked_rows(
    stage: str, backbone: "Backbone", rows: list[Row], settings: Settings
) -> list[Row]:
    """The rows as the stage takes them, where the base can read and hold them.

    Raises:
        UserError: conversations for a base without a chat template, prompts that are too long.
    """
    from lorarlhf.generation import encode_prompts
    from lorarlhf.stages.common import conversational

    if stage != "ppo":
        made = conversational(rows, backbone, settings.own["plain"])
        if "max_tokens" in settings.own:
            _tell_cut_rows(backbone, made, settings.own["max_tokens"])
        return rows
    rows = conversations(rows, settings.own["plain"])
    encode_prompts(backbone, [row["prompt"] for row in rows], settings.own["max_prompt_tokens"])
    return rows


def _tell_cut_rows(backbone: "Backbone", rows: list[Row], limit: int) -> None:
    """Count the rows that TRL cuts at `max_tokens`; refuse those of which no answer is left."""
    prompts = [len(backbone.encode(row["prompt"])) for row in rows if "prompt" in row]
    if longer := [length for length in prompts if length >= limit]:
        raise UserError(
            f"{len(longer)} of {len(rows)} rows have a prompt as long as max_tokens ({limit}) or "
            f"longer (up to {max(longer)}), so that nothing of the answer is left to learn from. "
            "Shorten them, leave them out, or raise the limit with --set max_tokens=N."
        )
    lengths = [_length(backbone, row) for row in rows]
    if longer := [length for length in lengths if length > limit]:
        say_to_stderr(
            f"{len(longer)} of {len(rows)} rows are longer than max_tokens ({limit}; the longest "
            f"has {max(longer)}) and are cut there. --set max_tokens=N changes that."
        )


def _length(backbone: "Backbone", row: Row) -> int:
    """Tokens of a row's longest text, prompt included."""
    if "prompt" not in row:
        return len(backbone.encode(row.get("messages") or row["text"]))
    answers = [as_text(row[name]) for name in ("completion", "chosen", "rejected") if name in row]
    longest = max(len(backbone.encode(answer)) for answer in answers)
    return len(backbone.encode(row["prompt"])) + longest


def _by_trl(
    stage: str,
    backbone: "Backbone",
    rows: list[Row],
    run: Run,
    settings: Settings,
    eval_rows: list[Row] | None,
) -> Row:
    own = load_class(OWN[stage])(**settings.own, trl=settings.trl)
    if stage == "reward":
        from lorarlhf.stages.reward_model import train_reward_model

        return train_reward_model(backbone, rows, run, own, eval_rows)
    if stage == "sft":
        from lorarlhf.stages.sft import train_sft

        return train_sft(backbone, rows, run, own)
    from lorarlhf.stages.direct import train_direct

    return train_direct(backbone, rows, run, stage, own)


def _write_results(run: Run, summary: Row) -> None:
    write_json(run.folder / "summary.json", summary)
    try:
        report = write_report(run.folder)
        say_to_stderr(f"Report: {report}")
    except UserError as error:  # the training is done and saved; only its page is missing
        say_to_stderr(str(error))
