"""The command `export`: a run's policy for other programs, checked in those programs."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.cli.push_options import push_target
from lorarlhf.cli.result import Result
from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.project.lineage import SourceRun, check_same_base, read_source_run
from lorarlhf.project.load import load_backbone
from lorarlhf.project.project import Project, is_project, project_settings
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.export.exporting import Exported

PROMPTS, ANSWER_TOKENS = 12, 48
"""How many held-out prompts an export is checked with, and the longest answer in tokens."""
HELD_OUT = "prompts_heldout.jsonl"


def export(args: Namespace) -> Result:
    """Make an export; status 1 if the gate refuses it."""
    from lorarlhf.export.exporting import check_before
    from lorarlhf.export.staging import check_target

    wish = _wish(args)
    check_target(wish.to)
    check_before(wish)
    target = push_target(args, "model")
    project = _project(args.run)
    source = read_source_run(newest_run(args.run, "policy"), "policy", "RUN")
    reward = _reward(args, project, source)
    settings = _settings(args, project, source)
    prompts = _prompts(args, project, settings)
    backbone = load_backbone(settings)
    backbone.load_role("policy", source.adapter)
    if reward is not None and not _load_reward(backbone, reward, named=args.reward is not None):
        reward = None
    about = {"run": str(source.run), "reward": None if reward is None else str(reward.run)}
    repo = target.repo if target else ""
    wish = replace(wish, name=_name(source), run=source.run, repo=repo, about=about)
    found, original = _make(backbone, prompts, wish)
    address = None
    if target is not None and found.folder is not None and found.checked.holds:
        from lorarlhf.export.hub import push_policy

        address = push_policy(source.run, found.folder, target)
    return _result(found, original, wish.to, address)


def _wish(args: Namespace) -> Any:
    from lorarlhf.export.exporting import Wish

    if args.quant is not None and args.form not in ("gguf", "ollama"):
        raise UserError("--quant is for GGUF files: leave it out, or export --as gguf or ollama.")
    if args.system and args.form != "ollama":
        raise UserError("--system is for Ollama's Modelfile: leave it out, or export --as ollama.")
    quant = args.quant or "q8_0"
    to = Path(args.to).expanduser()
    return Wish(args.form, to, quant, system=args.system, keep_refused=args.keep_refused)


def _project(run: str) -> Project | None:
    """The project that is named, or that the named run is in."""
    for folder in (Path(run), *Path(run).expanduser().resolve().parents[1:2]):
        if is_project(folder):
            return Project(folder)
    return None


def _reward(args: Namespace, project: Project | None, source: SourceRun) -> SourceRun | None:
    """The reward role that is named, or the run's own, or the project's newest."""
    if args.reward is not None:
        return read_source_run(newest_run(args.reward, "reward"), "reward", "--reward")
    if (source.run / "adapters" / "reward" / "adapter_config.json").is_file():
        return read_source_run(source.run, "reward", "RUN")
    newest = project.newest_with("reward") if project is not None else None
    return None if newest is None else read_source_run(newest, "reward", "--reward")


def _settings(args: Namespace, project: Project | None, source: SourceRun) -> Settings:
    inherited: list[SettingValue] = [] if project is None else project_settings(project)
    inherited += source.settings_values()
    return resolve("export", sets=args.set, flags={"base": args.base}, inherited=inherited)


def _prompts(args: Namespace, project: Project | None, settings: Settings) -> list[Any]:
    """The held-out prompts, spread over the file."""
    file = Path(args.prompts).expanduser() if args.prompts else bundled("prompts_heldout")
    if args.prompts is None and project is not None and (project.folder / HELD_OUT).is_file():
        file = project.folder / HELD_OUT
    prompts = [row["prompt"] for row in read_prompts(file)]
    if args.prompts is None:
        prompts = prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS]
    return prompts if settings.own["plain"] else [as_conversation(prompt) for prompt in prompts]


def _load_reward(backbone: "Backbone", reward: SourceRun, *, named: bool) -> bool:
    """Load the reward role; one that nobody named is left out where it does not fit."""
    try:
        check_same_base([reward], True)
        backbone.load_role("reward", reward.adapter)
    except UserError as error:
        if named:
            raise
        log_to_stderr(f"Without the reward role's scores: {error}")
        return False
    return True


def _name(source: SourceRun) -> str:
    """The run's folder name, for the file."""
    run = source.run.resolve()
    return run.parent.parent.name if run.parent.name == "adapters" else run.name


def _make(backbone: "Backbone", prompts: list[Any], wish: Any) -> tuple["Exported", Any]:
    from lorarlhf.export.exporting import export as make
    from lorarlhf.export.original import read_original
    from lorarlhf.runtime.terminal import progress_steps

    with progress_steps("asking the policy", 3 * len(prompts)) as progress:
        original = read_original(backbone, prompts, ANSWER_TOKENS, progress)
    try:
        return make(backbone, original, wish), original
    except KeyboardInterrupt:
        log_to_stderr(f"Stopped: nothing is left in {wish.to}.")
        raise


def _result(found: "Exported", original: Any, to: Path, address: str | None) -> Result:
    lines = [*(note[0].upper() + note[1:] for note in found.notes), found.checked.in_words()]
    lines.append(f"For comparison, the base without the adapter: KL {original.from_base.kl:.4f}.")
    if found.checked.holds:
        lines.append(f"{found.folder} is ready.")
    elif found.folder is None:
        lines.append(f"{to} was not made. --keep-refused keeps what was refused.")
    else:
        lines.append(f"What was refused is in {found.folder}.")
    if address is not None:
        lines.append(f"It was uploaded to {address}.")
    folder = None if found.folder is None else str(found.folder)
    data = found.record | {"address": address, "folder": folder, "answers": found.checked.answers}
    return Result(data, "\n".join(lines), status=0 if found.checked.holds else 1)
