"""Types of settings that carry the limit of their values, and the settings of a dataclass.

    @dataclass
    class Settings:
        epochs: PositiveInt = 3

The limit stands in the type, as an annotation (PEP 593), and nowhere else: the command line checks
it where a value enters, and `check_limits` checks an object made in code. Parsers that know nothing
of it, such as transformers' `HfArgumentParser`, see a plain `int`.
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
        allows: whether a value of the right type is inside.
    """

    words: str
    allows: Callable[[Any], bool]


def one_of(*choices: Any) -> Limit:
    """One of at least two values."""
    *others, last = [str(choice) for choice in choices]
    return Limit(f"{', '.join(others)} or {last}", lambda x: x in choices)


def at_least(least: int) -> Limit:
    """That number or a larger one."""
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
Address = Annotated[
    str, Limit("http://HOST:PORT", lambda x: bool(re.fullmatch(r"https?://[^/\s]+/?", x)))
]


@dataclass(frozen=True)
class Setting:
    """A setting: its name, the plain type of its values, its default, and the values it allows.

    A limit does not apply to None.
    """

    name: str
    kind: Any
    default: Any
    limit: Limit | None = None


def setting(name: str, annotated: Any, default: Any) -> Setting:
    """A setting of an annotated type: `PositiveInt | None` gives `int | None` and a limit."""
    kind, limit = _taken_apart(annotated)
    return Setting(name, kind, default, limit)


def settings_of(kind: type) -> list[Setting]:
    """The settings that our own classes declare: those of `kind`, then those of its parents.

    Fields of parents from other packages (TRL's, transformers') are left out, unless one of our
    classes declares them anew.
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
    """See that the values of a settings object are inside their limits; None is always inside.

    Raises:
        ValueError: the first setting whose value is outside, with what it allows.
    """
    for known in settings_of(type(settings)):
        value = getattr(settings, known.name)
        if known.limit and value is not None and not known.limit.allows(value):
            raise ValueError(f"{known.name} is {known.limit.words}, not {value!r}")


def _taken_apart(annotated: Any) -> tuple[Any, Limit | None]:
    """The plain type, and the limit in its annotation or in that of one of a union's members."""
    if get_origin(annotated) is Annotated:
        plain, *extras = get_args(annotated)
        return plain, next((extra for extra in extras if isinstance(extra, Limit)), None)
    if get_origin(annotated) in (Union, types.UnionType):
        parts = [_taken_apart(part) for part in get_args(annotated)]
        return reduce(or_, (part for part, _ in parts)), next((x for _, x in parts if x), None)
    return annotated, None
