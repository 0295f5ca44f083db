"""The options of a training command, as one frozen object."""

from argparse import Namespace
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.project.stage import Stage
from lorarlhf.runtime.files import absolute_names
from lorarlhf.stages.table import STAGES

if TYPE_CHECKING:
    from lorarlhf.project.settings_sources import SettingValue

NO_RUN = "base"
"""What `--init` names where a project's newest supervised run is not wanted; a folder of that name
is `./base`."""


def _recorded(default: Any) -> Any:
    """A field that names files of the run: it is saved in run.json and restored by `--resume`."""
    return field(default=default, metadata={"recorded": True})


@dataclass(frozen=True)
class TrainRequest:
    """A training command's options. A project fills in what is missing and gives a new request.

    The recorded fields are the one list of a run's input files. run.json, `--resume` and the
    messages about changes use it.

    Attributes:
        argv: the words of the command line.
        project: a project's folder.
        data: rows to learn from, or prompts; eval: held-out rows.
        prompts: those of the rounds of new answers.
        init, reward: runs to start from, for the policy and for the reward role.
        reward_function, reward_model, judge_function: as `FILE.py:NAME` and `NAME[#LABEL]`.
        config: a settings file; sets: `KEY=VALUE` settings.
        earlier: the settings of the run that is resumed; config_restored: whether `config` is that
            run's file, whose settings are among them.
        minutes: the longest time to train; None: until the stage is done.
        memory_check: whether a run that seems too large is refused.
        reserved: whether a project has made the folder `out` for this run.
        votes: the file that a project has written for this run.
    """

    stage: Stage
    argv: tuple[str, ...] = ()
    project: str | None = None
    data: str | None = _recorded(None)
    eval: str | None = _recorded(None)
    prompts: str | None = _recorded(None)
    init: str | None = _recorded(None)
    reward: str | None = _recorded(None)
    reward_function: tuple[str, ...] = _recorded(())
    reward_model: tuple[str, ...] = _recorded(())
    judge_function: tuple[str, ...] = _recorded(())
    config: str | None = _recorded(None)
    sets: tuple[str, ...] = ()
    earlier: tuple["SettingValue", ...] = ()
    config_restored: bool = False
    base: str | None = None
    seed: int | None = None
    out: str | None = None
    resume: bool = False
    minutes: float | None = None
    memory_check: bool = True
    reserved: bool = False
    votes: str | None = None

    @classmethod
    def of(cls, args: Namespace) -> "TrainRequest":
        """The request that the parser's namespace holds."""
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in vars(args).items() if name in known}
        given |= {n: tuple(value) for n, value in given.items() if isinstance(value, list)}
        given |= {"stage": STAGES[args.command], "sets": tuple(args.set), "argv": tuple(args.argv)}
        return cls(**given, memory_check=not args.no_memory_check)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out or f"runs/{self.stage.name}")

    def recorded(self) -> dict[str, Any]:
        """The files that the run is made from, for run.json.

        What exists is recorded with its absolute path: later commands may be given elsewhere.
        """
        named = {name: getattr(self, name) for name in recorded_fields()}
        return {name: absolute_names(value) for name, value in named.items() if value}

    @property
    def settings_file(self) -> str | None:
        """The file to read settings from."""
        return None if self.config_restored else self.config

    def restored(self, saved: dict[str, Any], place: str) -> "TrainRequest":
        """The request with the settings of an earlier run, and its files where this one names none.

        A run that started from no other goes on like that.

        Args:
            saved: the `config` of the earlier run's run.json; place: that file, for messages.
        """
        from lorarlhf.project.settings_sources import SettingValue

        missing: dict[str, Any] = {
            name: tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
            for name in recorded_fields()
            if saved.get(name) and not getattr(self, name)
        }
        if not saved.get("init") and self.init is None:
            missing["init"] = NO_RUN
        # Defaults may have changed since then, and a run goes on with those that it began with.
        earlier = tuple(SettingValue(key, value, place) for key, value in saved.items())
        return replace(self, earlier=earlier, config_restored="config" in missing, **missing)


def recorded_fields() -> list[str]:
    """The names of the fields that are saved in run.json."""
    return [f.name for f in fields(TrainRequest) if f.metadata.get("recorded")]
