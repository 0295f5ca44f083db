"""Types of settings that carry the limit of their values, and the settings of a dataclass.

    @dataclass
    class Settings:
        epochs: PositiveInt = 3

The limit is part of the type, as an annotation (PEP 593), and is written only there. The command
line checks it when it reads a value, and `check_limits` checks an object made in code. Parsers that
ignore annotations, such as transformers' `HfArgumentParser`, see a plain `int`.
"""

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin


@dataclass(frozen=True)
class Limit:
    """The values that a setting allows.

    Attributes:
        words: completes "the setting is ...".
        allows: whether it includes a value of the right type.
    """

    words: str
    allows: Callable[[Any], bool]


def one_of(*choices: Any) -> Limit:
    """The limit of a setting with two or more possible values."""
    *others, last = [str(choice) for choice in choices]
    return Limit(f"{', '.join(others)} or {last}", lambda x: x in choices)


def at_least(least: int) -> Limit:
    """The limit that allows `least` and larger numbers."""
    return Limit(f"{least} or more", lambda x: x >= least)


ABOVE_0 = Limit("above 0", lambda x: x > 0)
SEED = Limit("from 0 to 4294967295", lambda x: 0 <= x < 2**32)  # the range that NumPy takes

PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, ABOVE_0]
NonNegativeFloat = Annotated[float, at_least(0)]
FloatAbove1 = Annotated[float, Limit("above 1", lambda x: x > 1)]
Fraction = Annotated[float, Limit("from 0 to 1", lambda x: 0 <= x <= 1)]
OpenFraction = Annotated[float, Limit("above 0 and below 1", lambda x: 0 < x < 1)]
FractionBelow1 = Annotated[float, Limit("from 0 to below 1", lambda x: 0 <= x < 1)]
FractionBelowHalf = Annotated[float, Limit("from 0 to below 0.5", lambda x: 0 <= x < 0.5)]
Address = Annotated[
    str, Limit("http://HOST:PORT", lambda x: bool(re.fullmatch(r"https?://[^/\s]+/?", x)))
]


@dataclass(frozen=True)
class Setting:
    """A setting.

    Attributes:
        kind: the plain type of its values.
        limit: the values it allows; None is always allowed.
    """

    name: str
    kind: Any
    default: Any
    limit: Limit | None = None


def setting(name: str, annotated: Any, default: Any) -> Setting:
    """A setting of an annotated type: `PositiveInt | None` gives `int | None` and a limit."""
    kind, limit = _split_annotation(annotated)
    return Setting(name, kind, default, limit)


def settings_of(kind: type) -> list[Setting]:
    """The settings that a class and its parents declare, as far as they are from this package.

    Fields of TRL's and transformers' classes are left out, unless a class of this package declares
    them again.
    """
    defaults = {entry.name: entry.default for entry in fields(kind)}
    found: dict[str, Setting] = {}
    for owner in kind.__mro__:
        if owner.__module__.partition(".")[0] != __name__.partition(".")[0]:
            continue
        for name, annotated in inspect.get_annotations(owner, eval_str=True).items():
            if get_origin(annotated) is not ClassVar and name not in found:
                default = defaults[name]
                found[name] = setting(name, annotated, None if default is MISSING else default)
    return list(found.values())


def check_limits(settings: Any) -> None:
    """Check that the values of a settings object are within their limits; None always is.

    Raises:
        ValueError: names the first setting whose value is not, and what it allows.
    """
    for known in settings_of(type(settings)):
        value = getattr(settings, known.name)
        if known.limit and value is not None and not known.limit.allows(value):
            raise ValueError(f"{known.name} is {known.limit.words}, not {value!r}")


def _split_annotation(annotated: Any) -> tuple[Any, Limit | None]:
    """The plain type, and the limit in its annotation or in that of one of a union's members."""
    if get_origin(annotated) is Annotated:
        plain, *extras = get_args(annotated)
        return plain, next((extra for extra in extras if isinstance(extra, Limit)), None)
    if get_origin(annotated) in (Union, types.UnionType):
        parts = [_split_annotation(part) for part in get_args(annotated)]
        return reduce(or_, (part for part, _ in parts)), next((x for _, x in parts if x), None)
    return annotated, None
