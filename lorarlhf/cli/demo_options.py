"""The options of `lorarlhf demo`, and its folder: a new run, or one to resume."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move, read_json
from lorarlhf.runtime.lock import LOCK
from lorarlhf.runtime.terminal import as_typed, program_name

FREE = {"out", "resume"}  # may change when a run is resumed


@dataclass
class DemoOptions:
    """The options of `lorarlhf demo`."""

    out: str = "runs/demo"
    rater: str = "cheerful"
    noise: float = 0.1  # share of votes that are reversed
    pairs: int = 250  # votes, at most; ties are none
    updates: int | None = None  # of PPO; None: as many as the size has
    seed: int = 0
    base: str = "smollm2-135m"
    bits: int = 4
    chat_template: str | None = None  # a Jinja file, for a base without a template
    adapter_layers: int | str = "upper-half"
    quick: bool = False  # a minute on two cores: shows that it works, not that it learns
    full: bool = False  # more prompts, longer answers and more updates
    resume: bool = False


def prepare_folder(options: DemoOptions, log: Callable[[str], None]) -> DemoOptions:
    """Refuse folders that hold something else; rename an earlier demo unless it is resumed.

    Returns:
        The options; those that a resumed run leaves at their defaults are as they were.
    """
    out = Path(options.out)
    about = read_json(out / "run.json")
    here = [path for path in out.iterdir() if path.name != LOCK]
    if here and about.get("stage") != "demo":
        raise UserError(f"The folder {out} holds something else, not a demo. Name another --out.")
    if options.resume:
        now, defaults = asdict(options), asdict(DemoOptions())
        config = about.get("config", now)  # of an earlier version it may lack an option
        before = {name: config.get(name, defaults[name]) for name in now.keys() - FREE}
        changed = [name for name in before if now[name] not in (before[name], defaults[name])]
        if not about:
            log(f"There is no demo in {out} to resume; a new one begins.")
        if earlier := ", ".join(f"{name} was {before.get(name)}" for name in changed):
            raise UserError(
                f"The run in {out} was started with other options ({earlier}). Resume it with the "
                "same ones, or start again without --resume."
            )
        return replace(options, **before)
    if about:
        names = (out.with_name(f"{out.name}-{number}") for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        kept.mkdir()
        for path in here:
            move(path, kept / path.name)
        log(f"{out} holds an earlier demo; it is kept in {kept}.")
    return options


def resume_command(options: DemoOptions) -> str:
    """The command that resumes: every option that is not the default, and `--resume`."""
    given = asdict(options) | {"resume": True}
    defaults = asdict(DemoOptions())
    words = [program_name(), "demo"]
    for name, value in given.items():
        if value != defaults[name]:
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return as_typed(words)
