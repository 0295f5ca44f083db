"""The runs that a command starts from: their base, their adapters, and which of them fit together.

The base, its precision and the adapters' shape are read from the run that is named (`RUN`,
`--init`, `--reward`), and two runs that cannot share one backbone are refused before it is loaded.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.backbone.fetch import PACKAGED
from lorarlhf.backbone.peft_folder import (
    CONFIG,
    check_config,
    check_weights,
    largest_rank,
    weight_names,
)
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run import adapter_folder

# Which saved roles may be loaded as which.
FITS = {
    "policy": ("policy", "reference"),
    "reference": ("reference",),
    "reward": ("reward",),
}


@dataclass(frozen=True)
class SourceRun:
    """A run, or an adapter's own folder, that another command starts from.

    Attributes:
        option: how it was named, for messages: `--init`, `--reward` or `RUN`.
        adapter: the folder of the wanted role's adapter; role: what it was saved as, or "".
        base: what the run called its base; base_path: the folder or id that was loaded.
        settings: keys of `settings.resolve` that this source was trained with.
    """

    option: str
    run: Path
    adapter: Path
    role: str
    base: str
    base_path: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The option and the run, as typed."""
        return f"{self.option} {self.run}"

    @property
    def loads(self) -> str:
        """The base for `Backbone.load`: a packaged name, else the folder if it still exists."""
        if self.base in PACKAGED:
            return self.base
        return self.base_path if Path(self.base_path).is_dir() else self.base or self.base_path

    def settings_values(self) -> list[SettingValue]:
        """The settings and the base; anything that the user sets overrides them."""
        values = self.settings | ({"base": self.loads} if self.loads else {})
        return [SettingValue(name, value, self.name) for name, value in values.items()]


def read_source_run(run: str | Path, role: str, option: str) -> SourceRun:
    """The source run at a path: a run's folder, or the folder of one adapter.

    Args:
        role: the role that will be loaded from it.

    Raises:
        UserError: the folder does not exist, none of its adapters has that role, or its adapter
            can't be used here.
    """
    path = Path(run).expanduser()
    if not path.is_dir():
        raise UserError(f"{option} {run}: there is no such folder. {_near(path)}")
    source = _source(option, path, adapter_folder(path, role))
    if source.role and source.role not in FITS.get(role, (role,)):
        raise UserError(
            f"{option} {run} is a {source.role} adapter, and a {role} is needed. Name the run's "
            f"folder, or its adapters/{role}."
        )
    check_config(read_json(source.adapter / CONFIG), source.adapter)
    check_weights(weight_names(source.adapter), source.adapter)
    return source


def read_any_source_run(run: str | Path, option: str) -> SourceRun:
    """A source run with any adapter, for commands that need only its base.

    Raises:
        UserError: the folder does not exist, or it holds no adapters.
    """
    path = Path(run).expanduser()
    for folder in (path, *sorted(path.glob("adapters/*"))):
        if (folder / "adapter_config.json").is_file():
            return _source(option, path, folder)
    raise UserError(f"{option} {run} is not the folder of a finished run. {_near(path)}")


def _source(option: str, run: Path, adapter: Path) -> SourceRun:
    about = read_json(adapter.parent.parent / "run.json")
    note = read_json(adapter / "lorarlhf.json")
    peft = read_json(adapter / "adapter_config.json")
    # The adapter's own files first: unlike run.json they can't belong to a later run.
    base_path = str(peft.get("base_model_name_or_path") or about.get("base_path") or "")
    return SourceRun(
        option=option,
        run=run,
        adapter=adapter,
        role=note.get("role", ""),
        base=str(note.get("base") or about.get("base") or base_path),
        base_path=base_path,
        settings=_settings(about, note, peft) | ({} if note else _layers(adapter, base_path)),
    )


def _settings(about: dict[str, Any], note: dict[str, Any], peft: dict[str, Any]) -> dict[str, Any]:
    recorded = about.get("config")
    config = recorded if isinstance(recorded, dict) else {}
    found = {
        "bits": about.get("bits"),
        "adapter_layers": note.get("adapter_layers"),
        "lora_rank": largest_rank(peft),
        "lora_alpha": peft.get("lora_alpha"),
        # What the user set for this base.
        "compute_dtype": config.get("compute_dtype"),
        "chat_template": config.get("chat_template"),
        "thinking": config.get("thinking"),
        "plain": config.get("plain"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _layers(adapter: Path, base_path: str) -> dict[str, Any]:
    """The layers that an adapter from elsewhere needs: all, unless its base can be counted."""
    layers = read_json(Path(base_path) / "config.json").get("num_hidden_layers") if base_path else 0
    places = [re.search(r"\.layers\.(\d+)\.", name) for name in weight_names(adapter)]
    first = min((int(place[1]) for place in places if place), default=0)
    return {"adapter_layers": layers - first if isinstance(layers, int) and first else "all"}


def check_same_base(sources: Sequence[SourceRun], base_is_named: bool) -> None:
    """Refuse source runs that one backbone can't hold.

    Raises:
        UserError: they were trained on different bases (unless the user names one, and its
            fingerprint decides), or their adapters have different shapes.
    """
    for other in sources[1:]:
        first = sources[0]
        same = first.base_path == other.base_path or first.base == other.base
        if not same and not base_is_named:
            raise UserError(
                f"{first.name} was trained on the base {first.base}, and {other.name} on "
                f"{other.base}. All roles share one base, so both must come from runs on the same "
                "one. If it is the same model under two names, say which to load with --base."
            )
        for key in ("adapter_layers", "lora_rank"):
            ours, theirs = first.settings.get(key), other.settings.get(key)
            if None not in (ours, theirs) and ours != theirs:
                raise UserError(
                    f"{first.name} has adapters with {key} {ours}, and {other.name} with {theirs}. "
                    f"All roles have adapters of one shape: train one of them again with --set "
                    f"{key}={ours} or {theirs}."
                )


def _near(path: Path) -> str:
    folders = [entry.name for entry in path.parent.glob("*/") if (entry / "run.json").is_file()]
    near = difflib.get_close_matches(path.name, folders, n=1)
    if near:
        return f"Did you mean {path.parent / near[0]}?"
    return "Name the folder that a run wrote to (its --out), or an adapter's own folder."
