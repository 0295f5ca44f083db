"""The settings of a command: defaults < source runs < resumed run < config file < --set < flags.

The keys are the parameters of `Backbone.load`, the fields of the stage's own settings, and TRL's
fields under `trl`. Every value is checked as it is read, so an error can name its place.
"""

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lorarlhf.project.settings_sources import (
    SettingValue,
    from_file,
    from_set,
    shown,
    with_trl_flattened,
)
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.setting_types import (
    SEED,
    Limit,
    PositiveInt,
    Setting,
    at_least,
    one_of,
    setting,
)

# The own settings of commands that train nothing.
PLAIN = setting("plain", bool, False)  # texts as they are, without the chat template
MAX_CHAT_TOKENS = setting("max_prompt_tokens", PositiveInt, 4096)
COMMANDS = {
    "score": (PLAIN,),
    "chat": (PLAIN, MAX_CHAT_TOKENS),
    "eval": (PLAIN, MAX_CHAT_TOKENS),
    "export": (PLAIN,),
    "serve": (PLAIN, MAX_CHAT_TOKENS),
    "ui": (PLAIN, MAX_CHAT_TOKENS),
}

# Limits of the parameters of `Backbone.load`. All others are in the types of the settings.
BACKBONE_LIMITS = {
    **dict.fromkeys(("lora_rank", "lora_alpha"), at_least(1)),
    "lora_dropout": Limit("from 0 to below 1", lambda x: 0 <= x < 1),
    "bits": one_of(4, 8, 16),
    "adapter_layers": Limit(
        "upper-half, all, or a number of layers",
        lambda x: x in ("upper-half", "all") or (str(x).isdecimal() and int(x) > 0),
    ),
    "compute_dtype": one_of("bfloat16", "float16", "float32"),
    "device": Limit(
        "cuda, xpu, mps or cpu", lambda x: bool(re.fullmatch(r"cpu|mps|xpu|cuda(:\d+)?", x))
    ),
    "seed": SEED,
}


@dataclass
class Settings:
    """What a command runs with.

    Attributes:
        base, seed: of the backbone and of everything drawn at random.
        backbone: the other keyword arguments of `Backbone.load`.
        own: the stage's own settings.
        trl: fields of TRL's config.
        given: the keys that the user set; the others come from defaults or source runs.
    """

    base: str
    seed: int
    backbone: dict[str, Any]
    own: dict[str, Any]
    trl: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    def flat(self) -> dict[str, Any]:
        """All settings as one mapping, for `run.json`."""
        values = {"base": self.base, "seed": self.seed, **self.backbone, **self.own}
        return values | ({"trl": self.trl} if self.trl else {})


def resolve(
    command: Stage | str,
    *,
    config: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    inherited: Sequence[SettingValue] = (),
) -> Settings:
    """The settings of a training stage, or of one of `COMMANDS` by name.

    Args:
        config: a flat YAML file. `trl` in it is a mapping. So are the settings of one stage alone,
            under the stage's name.
        sets: `KEY=VALUE` with the value in YAML; `trl.X=VALUE` for a field of TRL's config.
        flags: values of the command's own options; None means not given.
        inherited: what a project, source runs, or the run that is resumed have; keys that the
            stage lacks are left out.

    Raises:
        UserError: an unknown key (names the nearest), a value of another type or out of range,
            a file that is missing or no YAML; each with the place.
    """
    name = command if isinstance(command, str) else command.name
    keys = known_keys(command)
    given = from_file(Path(config), name) if config else []
    given += [from_set(text) for text in sets]
    given += [SettingValue(k, v, f"--{k} {v}") for k, v in (flags or {}).items() if v is not None]
    items = list(with_trl_flattened(given))
    named = {item.name for item in items}
    taken = tuple(keys) if isinstance(command, str) else (*keys, "trl")
    known = with_trl_flattened([item for item in inherited if item.name in taken])
    items = [*(item for item in known if item.name not in named), *items]
    values = {key.name: key.default for key in keys.values()}
    trl: dict[str, Any] = {}
    config_class = _config_class(command, items)
    for item in items:
        if item.name.startswith("trl.") and config_class is not None:
            trl[item.name.removeprefix("trl.")] = _trl_value(item, config_class())
        else:
            values[item.name] = _checked(item, keys, name, config_class)
    return _sorted(values, trl, frozenset(item.name for item in given))


def _config_class(command: Stage | str, items: Sequence[SettingValue]) -> Callable[[], Any] | None:
    """A function that imports TRL's configuration class, where the command has one."""
    if isinstance(command, str):
        return None
    algorithms = [item.value for item in items if item.name == "algorithm"]
    return partial(command.config_class, algorithms[-1] if algorithms else "")


def known_keys(command: Stage | str) -> dict[str, Setting]:
    """The keys that a command takes, by name, without `trl`."""
    return {key.name: key for key in (*_backbone_keys(), *_own_keys(command))}


def _backbone_keys() -> Iterator[Setting]:
    from lorarlhf.backbone.base import Backbone

    for name, parameter in inspect.signature(Backbone.load).parameters.items():
        if name != "log":
            limit = BACKBONE_LIMITS.get(name)
            # In code a base may also be one that was opened before.
            kind = str if name == "base" else parameter.annotation
            yield Setting(name, kind, parameter.default, limit)


def _own_keys(command: Stage | str) -> Sequence[Setting]:
    return COMMANDS[command] if isinstance(command, str) else command.own_settings()


def _sorted(values: dict[str, Any], trl: dict[str, Any], given: frozenset[str]) -> Settings:
    base, seed = values.pop("base"), values.pop("seed")
    if values["chat_template"] is not None:  # a run remembers the file wherever it is read from
        values["chat_template"] = str(Path(values["chat_template"]).expanduser().resolve())
    names = {key.name for key in _backbone_keys()}
    backbone = {name: value for name, value in values.items() if name in names}
    own = {name: value for name, value in values.items() if name not in names}
    return Settings(base, seed, backbone, own, trl, given)


# ---- checks


def _checked(
    item: SettingValue,
    keys: Mapping[str, Setting],
    command: str,
    config_class: Callable[[], Any] | None,
) -> Any:
    if item.name not in keys:
        config = config_class() if config_class else None
        raise UserError(_unknown(item, list(keys), command, config))
    try:
        value = convert(item.value, keys[item.name].kind)
    except ValueError:
        expected = describe(keys[item.name].kind)
        raise UserError(
            f"{item.where}: {item.name} is {expected}, found {shown(item.value)}."
        ) from None
    limit = keys[item.name].limit
    if limit and value is not None and not limit.allows(value):
        raise UserError(f"{item.where}: {item.name} is {limit.words}, found {shown(item.value)}.")
    return value


def _unknown(item: SettingValue, keys: list[str], command: str, config: Any) -> str:
    start = f"{item.where}: there is no setting {item.name}"
    trl = [entry.name for entry in fields(config)] if config else []
    trl = [name for name in trl if name not in getattr(config, "unused", ())]
    if item.name in trl:
        return (
            f"{start}, but TRL's {config.__name__} has a field of that name: write trl.{item.name}."
        )
    if near := difflib.get_close_matches(item.name, keys, n=1):
        return f"{start}. Did you mean {near[0]}?"
    if near := difflib.get_close_matches(item.name, trl, n=1, cutoff=0.8):
        return f"{start}. Did you mean TRL's trl.{near[0]}?"
    return f"{start} in {command}. The settings are: {', '.join(sorted(keys))}."


def _trl_value(item: SettingValue, kind: Any) -> Any:
    name = item.name.removeprefix("trl.")
    plain = get_type_hints(kind)  # without our limits, which the config checks itself
    types_of = {entry.name: plain[entry.name] for entry in fields(kind)}
    if name not in types_of:
        near = difflib.get_close_matches(name, types_of, n=1)
        hint = f" Did you mean trl.{near[0]}?" if near else ""
        raise UserError(f"{item.where}: TRL's {kind.__name__} has no field {name}.{hint}")
    if not set(_choices(types_of[name])) <= {int, float, bool, str, types.NoneType}:
        return item.value  # enums and mappings of TRL's own: its config checks them
    try:
        return convert(item.value, types_of[name])
    except ValueError:
        expected = describe(types_of[name])
        raise UserError(
            f"{item.where}: {item.name} is {expected}, found {shown(item.value)}."
        ) from None


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def convert(value: Any, kind: Any) -> Any:
    """`value` as `kind` (a type, or a union of types tried in their order).

    Raises:
        ValueError: it can't be converted, or it is not a finite number.
    """
    choices = _choices(kind)
    if value is None and types.NoneType in choices:
        return None
    for choice in choices:
        if choice is types.NoneType:
            continue
        try:
            return _convert_one(value, choice)
        except (ValueError, OverflowError):
            continue
    raise ValueError(value)


def _convert_one(value: Any, kind: Any) -> Any:
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(value)
        number = float(value)
        if not math.isfinite(number) or (kind is int and not number.is_integer()):
            raise ValueError(value)
        return value if type(value) is kind else kind(number)
    if isinstance(value, kind):
        return value
    raise ValueError(value)


def describe(kind: Any) -> str:
    """A type in words: `a number or nothing`."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list",
        types.NoneType: "nothing (null)",
    }
    return " or ".join(words.get(choice, str(choice)) for choice in _choices(kind))
