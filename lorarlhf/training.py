"""The training commands `sft`, `reward`, `ppo`, `dpo`, `orpo`: from files to a finished run folder.

What can be checked without the base is checked before it is loaded, and what was there before in
the run's folder is kept.
"""

import contextlib
import itertools
import json
import os
import shlex
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorarlhf.data import (
    as_conversation,
    as_text,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_jsonl,
)
from lorarlhf.errors import UserError
from lorarlhf.parents import Parent, check_same_base, load_backbone, read_parent
from lorarlhf.report import write_report
from lorarlhf.rewards.functions import load_function
from lorarlhf.runs import Run, read_json, say_to_stderr, write_json
from lorarlhf.settings import OWN, TRL, Settings, resolve

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
FILES = ("run.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html")
RESULTS = (*FILES, "votes.safetensors", "checkpoints")
ROLES = {"init": "policy", "reward": "reward"}


def train(args: Namespace) -> Row:
    """Run one training stage as its command was given; returns the summary.

    Raises:
        UserError: whatever is wrong with files, settings or runs.
        KeyboardInterrupt: after noting in `run.json` that the run was stopped.
    """
    stage = args.command
    rows = READERS[stage](args.data)
    eval_rows = read_preferences(args.eval) if getattr(args, "eval", None) else None
    functions = _reward_functions(args)
    parents = _parents(args)
    settings = resolve(
        stage,
        config=args.config,
        sets=args.set,
        flags={"base": args.base, "seed": args.seed},
        # The last one counts: the policy's run goes before the reward's.
        inherited=[item for parent in reversed(parents.values()) for item in parent.given()],
    )
    check_same_base(list(parents.values()), "base" in settings.said)
    run = _open_run(args, settings)
    with _recorded(run, args):
        _arguments(stage, settings, run)
        backbone = _load(stage, settings, run, parents)
        if stage == "ppo":
            summary = _ppo(backbone, rows, run, settings, functions, args.resume)
        else:
            summary = _by_trl(stage, backbone, rows, run, settings, eval_rows)
    whole = run.finish("done", summary | {"out": str(run.folder)})
    _write_results(run, whole)
    return whole


# ---- what comes before the base is loaded


def _reward_functions(args: Namespace) -> list[Callable[..., Any]]:
    if args.command != "ppo":
        return []
    if args.reward and args.reward_function:
        raise UserError(
            "A reward role and reward functions can't be mixed in this version: give --reward, or "
            "--reward-function once or more."
        )
    if not args.reward and not args.reward_function:
        raise UserError(
            "PPO needs a reward: --reward RUN for a trained reward role, or --reward-function "
            "FILE.py:NAME for a Python function."
        )
    return [load_function(spec) for spec in args.reward_function]


def _parents(args: Namespace) -> dict[str, Parent]:
    """By option: the run of the policy to start from, and that of the reward."""
    named = {option: getattr(args, option, None) for option in ROLES}
    return {
        option: read_parent(path, ROLES[option], f"--{option}")
        for option, path in named.items()
        if path
    }


def _open_run(args: Namespace, settings: Settings) -> Run:
    folder, resume = Path(args.out or f"runs/{args.command}"), getattr(args, "resume", False)
    named = ("data", "eval", "init", "reward", "reward_function", "config")
    told = {name: getattr(args, name, None) for name in named}
    config = {name: value for name, value in told.items() if value} | settings.flat()
    try:
        if resume:
            _tell_changes(folder, config)
            _rewind(folder)
        else:
            _set_aside(folder)
    except OSError as error:
        raise UserError(
            f"The output folder {folder} can't be written ({error.strerror}). Name another one "
            "with --out."
        ) from error
    return Run(folder, args.command, config)


def _set_aside(folder: Path) -> None:
    """Keep an earlier run's results in `earlier-N`: a new one must not be mixed with them.

    Adapters are copied, not moved: the new run may start from them.
    """
    if not any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    kept = folder / f"earlier-{number}"
    kept.mkdir()
    if (folder / "adapters").is_dir():
        shutil.copytree(folder / "adapters", kept / "adapters")
    for name in RESULTS:
        if (folder / name).exists():
            os.replace(folder / name, kept / name)
    say_to_stderr(f"{folder} holds an earlier run; it is kept in {kept}.")


def _tell_changes(folder: Path, config: Row) -> None:
    before = read_json(folder / "run.json").get("config", {})
    # Through JSON, as the earlier settings went.
    now = json.loads(json.dumps(config, default=str))
    changed = [
        f"{name} was {before[name]} and is {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changed:
        say_to_stderr(f"Going on with other settings: {'; '.join(changed)}.")


def _rewind(folder: Path) -> None:
    """Drop what an interrupted run logged after its last checkpoint: those updates run again."""
    from lorarlhf.ppo.checkpoint import PREFIX, newest_first

    whole = newest_first(folder / "checkpoints")
    step = int(whole[0].name.removeprefix(PREFIX)) if whole else -1
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (folder / name).exists():
            rows = _whole_rows((folder / name).read_text(encoding="utf-8", errors="replace"))
            write_jsonl(folder / name, [row for row in rows if row.get("step", 0) <= step])
    where = f"after update {step}" if whole else f"at the start: {folder} has no checkpoint yet"
    say_to_stderr(f"Going on {where}.")


def _whole_rows(text: str) -> Iterator[Row]:
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):  # a line that a killed run left torn
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _arguments(stage: str, settings: Settings, run: Run, backbone: Any = None) -> Any:
    """TRL's config, to be used or, before the base is loaded, only to see that it is accepted."""
    import importlib

    import torch

    from lorarlhf.backbone.devices import best_device, compute_dtype_for
    from lorarlhf.stages.common import trl_arguments

    if backbone is None:
        asked, bits = settings.backbone["device"], settings.backbone["bits"]
        device = torch.device(asked) if asked else best_device(bits)
        dtype = compute_dtype_for(device, settings.backbone["compute_dtype"])
        backbone = SimpleNamespace(device=device, compute_dtype=dtype)
    module, name = TRL[stage]
    kind = getattr(importlib.import_module(module), name)
    own = {key: value for key, value in settings.own.items() if key != "plain"}
    try:
        return trl_arguments(kind, backbone, run, own if stage == "ppo" else {}, settings.trl)
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
        run.finish("stopped")
        command = shlex.join(["lorarlhf", *(a for a in args.argv if a != "--resume")])
        if any((run.folder / "checkpoints").glob("checkpoint-*")):
            say_to_stderr(f"Stopped. This goes on where it ended:\n  {command} --resume")
        else:
            say_to_stderr("Stopped before anything could be kept; the same command starts again.")
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk must not hide the first error
            run.finish("failed")
        raise


def _load(stage: str, settings: Settings, run: Run, parents: dict[str, Parent]) -> "Backbone":
    backbone = load_backbone(settings)
    run.base(backbone)
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
) -> Row:
    import importlib

    module, name = OWN[stage]
    own = getattr(importlib.import_module(module), name)(**settings.own, trl=settings.trl)
    if stage == "reward":
        from lorarlhf.stages.reward_model import train_reward_model

        return train_reward_model(backbone, rows, run, own, eval_rows)
    _tell_cut_rows(backbone, rows, own.max_tokens)
    if stage == "sft":
        from lorarlhf.stages.sft import train_sft

        return train_sft(backbone, rows, run, own)
    from lorarlhf.stages.direct import train_direct

    return train_direct(backbone, rows, run, stage, own)


def _tell_cut_rows(backbone: "Backbone", rows: list[Row], limit: int) -> None:
    from lorarlhf.generation import check_chat_template

    talks: list[Any] = [row.get("prompt", row.get("messages", "")) for row in rows]
    check_chat_template(backbone, talks)
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


def _ppo(
    backbone: "Backbone",
    rows: list[Row],
    run: Run,
    settings: Settings,
    functions: list[Callable[..., Any]],
    resume: bool,
) -> Row:
    from lorarlhf.generation import encode_prompts
    from lorarlhf.ppo.interrupt import StopAfterUpdate
    from lorarlhf.ppo.samples import SampleCallback
    from lorarlhf.ppo.trainer import PPOTrainer
    from lorarlhf.stages.common import RunCallback, only_ours

    if not settings.own["plain"]:
        rows = [row | {"prompt": as_conversation(row["prompt"])} for row in rows]
    args = _arguments("ppo", settings, run, backbone)
    encode_prompts(backbone, [row["prompt"] for row in rows], args.max_prompt_tokens)
    stopper = StopAfterUpdate()
    callbacks = [RunCallback(run, "PPO", ("score", "kl", "completion_length")), stopper]
    trainer = PPOTrainer(backbone, args, rows, functions or None, callbacks=callbacks)
    only_ours(trainer)
    trainer.add_callback(SampleCallback(trainer, run.folder))
    with stopper:
        trainer.train(resume_from_checkpoint=resume)
    if stopper.asked and trainer.state.global_step < args.updates:
        raise KeyboardInterrupt
    trainer.save_model()
    if backbone.has("reference"):
        backbone.save("reference", run.folder / "adapters" / "reference")
    return trainer.summary()


def _write_results(run: Run, summary: Row) -> None:
    write_json(run.folder / "summary.json", summary)
    try:
        report = write_report(run.folder)
        say_to_stderr(f"Report: {report}")
    except UserError as error:  # the training is done and saved; only its page is missing
        say_to_stderr(str(error))
