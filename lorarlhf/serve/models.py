"""The models that can be asked for, by the names that a client sends."""

import re
from dataclasses import dataclass
from pathlib import Path

from lorarlhf.project.lineage import SourceRun, read_source_run
from lorarlhf.project.project import RUNS, Project, is_project, project_settings
from lorarlhf.project.run_labels import read_label
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.serve.errors import ApiError, refused

BASE = "base"
BEST_OF = 4
"""From how many answers the reward role picks under the name that is listed."""
MOST_BEST_OF = 16
_BEST = re.compile(r"(?:(.+):)?best-of-([0-9]{1,9})")


@dataclass(frozen=True)
class Model:
    """What a name stands for.

    Attributes:
        name: as responses have it: `base` or a run's folder name, perhaps with `:best-of-N`.
        place: `base`, or the folder of the policy's adapter.
        source: what the store of votes calls it: `base` or `runs/NAME`.
        best_of: how many candidates each answer has; 1 for none to pick from.
        reward: the folder of the reward role that picks, or "".
    """

    name: str
    place: str
    source: str
    best_of: int = 1
    reward: str = ""


class Models:
    """The base and the policies of a project, or of one run.

    Args:
        target: a project's folder, or a run's. A run of a project brings its project along, and is
            the default model.

    Attributes:
        project: None for a run that is in no project.

    Raises:
        UserError: there is no such folder, or it is neither.
    """

    def __init__(self, target: str) -> None:
        self.project: Project | None = None
        self._own: Path | None = None  # the run that was named
        if is_project(target):
            self.project = Project(target)
            return
        run = Path(target).expanduser()
        read_source_run(run, "policy", "RUN")
        self._own = run.resolve()
        above = self._own.parent.parent
        if self._own.parent.name == RUNS and is_project(above):
            self.project = Project(above)

    def names(self) -> list[str]:
        """The names to choose from, the default first."""
        default, kept = self._default(), [run.name for run in self._policies()]
        names = [default, *(name for name in kept if name != default)]
        names += [BASE] * (BASE not in names)
        return names + [f"best-of-{BEST_OF}"] * (self._reward() is not None)

    def find(self, name: str) -> Model:
        """The model with a name, a title, or (with "") the default one.

        Raises:
            ApiError: there is none.
        """
        best = _BEST.fullmatch(name)
        model = self._find((best[1] or "") if best else name, name)
        if best is None:
            return model
        count = int(best[2])
        if not 2 <= count <= MOST_BEST_OF:
            raise refused(f"The best of 2 to {MOST_BEST_OF} answers can be asked for.", "model")
        reward = self._reward()
        if reward is None:
            raise ApiError(
                404,
                f"{name}: there is no reward role here that could pick. Train one with "
                "`lorarlhf reward`.",
                "model",
                "model_not_found",
            )
        named = f"{model.name}:best-of-{count}"
        return Model(named, model.place, model.source, count, str(reward))

    def _find(self, name: str, asked: str) -> Model:
        name = name or self._default()
        if name == BASE:
            return Model(BASE, BASE, BASE)
        runs = self._policies(dropped=True)
        found = [run for run in runs if name in (run.name, f"{RUNS}/{run.name}")]
        found = found or [run for run in runs if read_label(run).title == name]
        if not found:
            raise ApiError(
                404,
                f"There is no model {asked} here. There are: {', '.join(self.names())}.",
                "model",
                "model_not_found",
            )
        run = found[0]  # of several with one title the newest
        return Model(run.name, str(_adapter(run)), f"{RUNS}/{run.name}")

    def _default(self) -> str:
        if self._own is not None:
            return self._own.name
        newest = self.project.newest_with("policy") if self.project else None
        return newest.name if newest else BASE

    def _policies(self, dropped: bool = False) -> list[Path]:
        """The runs with a policy, the newest first; dropped ones only if they are named."""
        if self.project is None:
            return [self._own] if self._own else []
        runs = self.project.runs() if dropped else self.project.kept_runs()
        found = [run.resolve() for run in runs if (_adapter(run) / "adapter_config.json").is_file()]
        return found if self._own is None or self._own in found else [self._own, *found]

    def _reward(self) -> Path | None:
        """The folder of the adapter of the reward role that picks."""
        run = self.project.newest_with("reward") if self.project else self._own
        adapter = run / "adapters" / "reward" if run else None
        return adapter if adapter and (adapter / "adapter_config.json").is_file() else None

    # ---- the base

    def inherited(self) -> list[SettingValue]:
        """Settings of the base: those of the project, then of the default model's run."""
        found = project_settings(self.project) if self.project else []
        sources = self._sources()
        default = [source for source in sources if source.run.name == self._default()]
        for source in default or sources[:1]:
            found += source.settings_values()
        # Adapters of a smaller rank fit into a larger one exactly, and not the other way round.
        ranks = [source.settings.get("lora_rank") for source in sources]
        if known := [rank for rank in ranks if isinstance(rank, int)]:
            found.append(SettingValue("lora_rank", max(known), "the runs"))
        return found

    def _sources(self) -> list[SourceRun]:
        """The runs that can be read, the newest first; the others are named in the terminal."""
        wanted = [(run, "policy") for run in self._policies()]
        reward = self._reward()
        wanted += [(reward.parent.parent, "reward")] if reward else []
        sources = []
        for run, role in wanted:
            try:
                sources.append(read_source_run(run, role, "RUN"))
            except UserError as error:
                log_to_stderr(f"{run.name} is left out: {error}")
        return sources


def _adapter(run: Path) -> Path:
    """The folder of a run's policy; a folder of one adapter is that itself."""
    own = run / "adapter_config.json"
    return run if own.is_file() else run / "adapters" / "policy"
