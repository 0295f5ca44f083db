"""The function of each command: `demo`, `new`, `doctor`, `ui`, ...; train.py runs the stages.

Nothing here imports torch before a command needs it.
"""

import importlib
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from lorarlhf.cli.chat import chat
from lorarlhf.cli.export_votes import dataset_zip
from lorarlhf.cli.result import Result, table
from lorarlhf.cli.score import score
from lorarlhf.cli.serve import serve
from lorarlhf.data.readers import read_prompts
from lorarlhf.project.project import Project, create, is_project
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.table import STAGES


def demo(args: Namespace) -> Result:
    """The complete loop; it prints its own progress."""
    from lorarlhf.cli.demo import run_demo
    from lorarlhf.cli.demo_options import DemoOptions
    from lorarlhf.project.settings import BACKBONE_LIMITS
    from lorarlhf.runtime.setting_types import at_least

    names = ["out", "rater", "noise", "pairs", "updates", "seed", "base", "bits", "adapter_layers"]
    names.append("chat_template")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    limits = BACKBONE_LIMITS | {"updates": at_least(1), "pairs": at_least(2)}
    for name, value in options.items():
        if name in limits and not limits[name].allows(value):
            raise UserError(f"--{name.replace('_', '-')} is {limits[name].words}, not {value}.")
    flags = {name: getattr(args, name) for name in ("quick", "full", "resume")}
    if args.quick and args.full:
        raise UserError("--quick and --full are two different sizes. Leave one of them out.")
    try:
        return Result(run_demo(DemoOptions(**flags, **options)))
    except ValueError as error:
        if str(error).startswith("adapter_layers"):  # its range depends on the base
            raise UserError(f"{error}.") from error
        raise


def doctor(args: Namespace) -> Result:
    """Checks of the machine and the installation; status 1 if any check fails."""
    from lorarlhf.cli.doctor import as_text, examine

    checks = examine()
    passed = all(check.ok for check in checks)
    data = {"ok": passed, "checks": [vars(check) for check in checks]}
    return Result(data, as_text(checks), status=0 if passed else 1)


def estimate(args: Namespace) -> Result:
    """Peak memory of the stages on a base; memory and time of a stage on a project."""
    if args.project is not None:
        from lorarlhf.cli import estimate_project

        found = estimate_project.run(args)
        return Result(found, estimate_project.as_text(found))
    from lorarlhf.cli.estimate import as_text, run

    result = run(args)
    return Result(result, as_text(result))


def ui(args: Namespace) -> Result:
    """The rating pages, until Ctrl-C."""
    args.project = args.project or _project_here()
    if is_project(args.project):
        if args.base:
            raise UserError(
                f"{args.project} has its base already, in project.yaml; --base is only for a "
                "new project."
            )
    elif _agrees(f"{args.project} is not a project yet."):
        create(args.project, base=args.base or "smollm2-135m")
    project = Project(args.project)  # before the slow imports
    # Imported here and by name, since the other commands need none of its libraries.
    try:
        pages = importlib.import_module("lorarlhf_ui.app")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The rating pages need {error.name}, which is not installed. `lorarlhf doctor` names "
            "the command that installs it."
        ) from error
    # The pages stand beside the stages and the exports: see architecture.md.
    args.stages, args.dataset = tuple(STAGES.values()), partial(dataset_zip, project)
    return Result(pages.main(args))


def _project_here() -> str:
    """The project here, or the only one in a subfolder, or the name of a new one."""
    found = [p for p in (Path("."), *sorted(Path(".").glob("*/"))) if is_project(p)]
    if len(found) > 1 and found[0] != Path("."):
        names = ", ".join(str(path) for path in found)
        raise UserError(f"Say which project to open: lorarlhf ui FOLDER. Here are {names}.")
    return str(found[0]) if found else "my-assistant"


def _agrees(what: str) -> bool:
    """Ask in the terminal whether to make a project; False without a terminal."""
    if not sys.stdin.isatty():
        return False
    print(f"{what} Make it now, with the small base and everyday prompts? [Y/n] ", end="")
    return input().strip().lower() in ("", "y", "yes")


def train(args: Namespace) -> Result:
    """One of the training stages."""
    if args.queue:
        from lorarlhf.cli.queued import queue_training

        return queue_training(args)
    from lorarlhf.cli.queued import warn_if_busy
    from lorarlhf.cli.train import train as run_training

    warn_if_busy()

    summary = run_training(args)
    rows = [(name, _cell_text(value)) for name, value in summary.items()]
    rows = [(name, value) for name, value in rows if not isinstance(value, dict)]
    return Result(summary, table(rows))


def _cell_text(value: Any) -> Any:
    """A value for the table; the items of a list, separated by commas."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else value


def new(args: Namespace) -> Result:
    """Make a project; a GGUF file as its base is looked at first, and converted when it is used."""
    from lorarlhf.backbone.gguf_base import describe, is_gguf

    file = Path(args.base).expanduser()
    about = describe(file) if is_gguf(args.base) and file.is_file() else []
    project = create(
        args.folder,
        base=args.base,
        bits=args.bits,
        adapter_layers=args.adapter_layers,
        prompts=args.prompts,
        chat_template=args.chat_template,
    )
    prompts = len(read_prompts(project.prompts))
    text = (
        f"{project.folder} is ready: project.yaml holds its settings, prompts.jsonl {prompts} "
        f"prompts, and preferences.sqlite will hold the votes. Every command takes the folder."
    )
    text = "\n".join([text, *about])
    return Result({"folder": str(project.folder), "prompts": prompts}, text)


def votes(args: Namespace) -> Result:
    """Counts of a project's votes, or files of them in and out."""
    from lorarlhf.cli import votes as votes_commands

    return Result(*votes_commands.votes(args))


def raters(args: Namespace) -> Result:
    """Who votes in a project, and who can log in."""
    from lorarlhf.cli import votes as votes_commands

    return Result(*votes_commands.raters(args))


def evaluate(args: Namespace) -> Result:
    """What a policy can still do; status 1 if it forgot more than allowed."""
    from lorarlhf.cli.evaluate import evaluate as run

    return run(args)


def project_round(args: Namespace) -> Result:
    """A round of a project: from its votes to a new policy and a card."""
    from lorarlhf.cli.round import project_round as run

    return run(args)


def compare_methods(args: Namespace) -> Result:
    """Several methods on the same votes, with the same budget of minutes."""
    from lorarlhf.cli.compare_methods import compare_methods as run

    return run(args)


def export(args: Namespace) -> Result:
    """A policy for other programs; status 1 if it does not hold there."""
    from lorarlhf.cli.export import export as run

    return run(args)


def recipe(args: Namespace) -> Result:
    """List the recipes, or copy one."""
    from lorarlhf.cli.recipes import recipe as run

    return run(args)


def report(args: Namespace) -> Result:
    """What a project's votes look like."""
    from lorarlhf.cli.report import report as make

    return make(args)


def runs(args: Namespace) -> Result:
    """A project's runs."""
    from lorarlhf.cli.runs import runs as list_or_change

    return list_or_change(args)


def jobs(args: Namespace) -> Result:
    """The jobs of a project."""
    from lorarlhf.cli.jobs import jobs as run

    return run(args)


COMMANDS = {
    "demo": demo,
    "new": new,
    **dict.fromkeys(STAGES, train),
    "round": project_round,
    "chat": chat,
    "score": score,
    "eval": evaluate,
    "compare-methods": compare_methods,
    "export": export,
    "votes": votes,
    "raters": raters,
    "report": report,
    "runs": runs,
    "jobs": jobs,
    "recipe": recipe,
    "estimate": estimate,
    "doctor": doctor,
    "serve": serve,
    "ui": ui,
}
