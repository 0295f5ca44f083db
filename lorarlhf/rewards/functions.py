"""Rewards from Python functions, with the signature that TRL gives them.

A reward function is `f(prompts, completions, **columns) -> list[float | None]`: everything by
name, one number a completion, None for "no opinion". It may be `async`. Prompts and completions
are strings, or lists of messages where the prompts are conversations.
"""

import asyncio
import difflib
import functools
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import UserError

RewardFunction = Callable[..., Any]

EXCERPT_CHARACTERS = 60


def load_function(spec: str) -> RewardFunction:
    """The function NAME of the Python file FILE.py, from `FILE.py:NAME`.

    While the file is executed its folder comes first in `sys.path`, as when Python runs it as a
    script, so that it can import its neighbours at its top; afterwards `sys.path` is as before.
    A file that was loaded already and has not changed since is not executed again.

    Raises:
        UserError: No `:NAME`, no such file, an exception while it was executed, no such name in
            it, or something that cannot be called.
    """
    # From the right: a Windows path has a colon of its own.
    file, _, name = spec.rpartition(":")
    if not file or not name.isidentifier():
        raise UserError(
            f"The reward function '{spec}' is not of the form FILE.py:NAME. Give the Python file, "
            "a colon and the name of the function in it, for example rewards.py:politeness."
        )
    path = Path(file).expanduser()
    module = _load_module(path, spec)
    if not hasattr(module, name):
        raise UserError(_unknown_function(module, name, path))
    function = getattr(module, name)
    if not callable(function):
        raise UserError(
            f"'{name}' in {path} is of type {type(function).__name__}, not a function. A reward "
            "function is written `def NAME(prompts, completions, **columns):` and returns one "
            "number a completion."
        )
    return function


def _load_module(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(
            f"The reward function '{spec}' names the file {path}, which does not exist. Check the "
            f"path; it is taken from the folder {Path.cwd()}."
        )
    path = path.resolve()
    source = path.read_bytes()
    key = hashlib.sha256(str(path).encode(errors="surrogateescape") + b"\0" + source).hexdigest()
    module_name = f"lorarlhf_reward_{key[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None:
        raise UserError(
            f"The reward function '{spec}' names the file {path}, which is not a Python file. "
            "Its name has to end in .py."
        )
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickle look their module up here while the file is still being executed.
    sys.modules[module_name] = module
    try:
        with _first_in_sys_path(path.parent):
            # Not the spec's loader: it would leave a __pycache__ in the user's folder and could
            # take an older one for the file as it is now.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(
            f"The file {path} of the reward function '{spec}' could not be loaded: "
            f"{_in_one_line(error, str(path))}. Mend the file and start again."
        ) from error
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@contextmanager
def _first_in_sys_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _unknown_function(module: ModuleType, name: str, path: Path) -> str:
    found = [
        key
        for key, value in vars(module).items()
        if callable(value)
        and not inspect.isclass(value)
        and not key.startswith("_")
        # What the file imported is not what it offers.
        and getattr(value, "__module__", None) == module.__name__
    ]
    if not found:
        return f"There is no function '{name}' in {path}, nor any other function to choose."
    nearest = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
    guess = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"There is no function '{name}' in {path}.{guess} It has: {', '.join(found)}."


def call_reward_function(
    fn: RewardFunction,
    /,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    **columns: Any,
) -> list[float | None]:
    """Call a reward function, plain or async, and check what it gives back.

    Args:
        fn: The function; called with everything by name, as TRL does.
        prompts: B prompts, strings or lists of messages.
        completions: B completions, strings or lists of messages.
        columns: Further columns, lists of B values, or anything else the function takes.

    Returns:
        B finite numbers, None where the function has no opinion. Booleans and the scalars of
        NumPy and PyTorch become floats.

    Raises:
        UserError: The function raised, gave another number of values than B, or a value that is
            not a finite number. TRL takes NaN for None; here it is refused, since it is far more
            often a division by zero than an opinion withheld.
    """
    name = function_name(fn)
    try:
        returned = fn(prompts=prompts, completions=completions, **columns)
        if inspect.isawaitable(returned):
            returned = _wait_for(returned)
        values = list(returned) if _is_listlike(returned) else None
    except UserError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # is told as what it is
            raise
        code = getattr(_innermost(fn), "__code__", None)
        where = _in_one_line(error, code.co_filename if code else None)
        raise UserError(f"The reward function '{name}' raised {where}.{_hint(error)}") from error
    if values is None:
        hint = " Is a `return` missing?" if returned is None else ""
        raise UserError(
            f"The reward function '{name}' gave back {_excerpt(returned)} of type "
            f"{type(returned).__name__}; expected a list of {len(completions)} numbers, one a "
            f"completion.{hint}"
        )
    if len(values) != len(completions):
        raise UserError(
            f"The reward function '{name}' gave back {len(values)} values, expected "
            f"{len(completions)}: one a completion, None for one it has no opinion on."
        )
    return [
        _checked(value, name, index, completion)
        for index, (value, completion) in enumerate(zip(values, completions, strict=True))
    ]


def combine(scores: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float]:
    """The weighted sum of several functions' scores, as TRL 1.16's RLOO and GRPO form it.

    reward_b = sum over the functions f that have an opinion on b of weight_f * score_f(b). A None
    (or NaN) is left out and the other weights stay as they are: a sum, not a mean (`nansum` in
    TRL's `rloo_trainer.py`).

    Args:
        scores: One list a function, each of B scores.
        weights: One number a function.

    Returns:
        B rewards.

    Raises:
        UserError: Another number of weights than of functions, or a sample on which no function
            has an opinion. TRL sets such a sample's advantage to zero and goes on; PPO has no
            advantage without a score.
        ValueError: The lists of scores differ in length.
    """
    if len(scores) != len(weights):
        raise UserError(
            f"There are {len(scores)} reward functions but {len(weights)} weights. Give one weight "
            "a function, in the same order."
        )
    return [_weighted_sum(row, weights, b) for b, row in enumerate(zip(*scores, strict=True))]


def _weighted_sum(row: Sequence[float | None], weights: Sequence[float], index: int) -> float:
    terms = [
        weight * score
        for score, weight in zip(row, weights, strict=True)
        if score is not None and not math.isnan(score)
    ]
    if not terms:
        raise UserError(
            f"No reward function has an opinion on sample {index} (the first is 0): every one gave "
            "None. Let at least one of them give every completion a number."
        )
    return math.fsum(terms)


def rater_reward(rater: Rater) -> RewardFunction:
    """A reward function that scores by a simulated rater's rule, without noise.

    It takes the column `ended` (B booleans: the model stopped by itself). Without that column
    every completion counts as ended, which matters to the rater `brief` alone.
    """

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        ended: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        stops = [True] * len(completions) if ended is None else ended
        return [
            rater.score(Answer(completion_text(completion), ended=bool(stop)))
            for completion, stop in zip(completions, stops, strict=True)
        ]

    # Trainers log a function's mean under this name.
    reward.__name__ = reward.__qualname__ = f"{rater.name}_reward"
    return reward


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The assistant's words in a completion: a string, or a list of messages.

    A message's content may be a string or a list of parts (`{"type": "text", "text": ...}`), of
    which only the text counts. Several assistant messages are joined by line breaks.
    """
    if isinstance(completion, str):
        return completion
    spoken = [message for message in completion if message.get("role") == "assistant"]
    return "\n".join(_content_text(message.get("content")) for message in spoken)


def function_name(fn: RewardFunction) -> str:
    """What to call a function in messages and logs; `partial` objects by what they wrap."""
    fn = _innermost(fn)
    return getattr(fn, "__name__", type(fn).__name__)


def _innermost(fn: RewardFunction) -> RewardFunction:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _content_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _wait_for(awaitable: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # A notebook or a web page already runs a loop in this thread, and loops do not nest.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _is_listlike(returned: Any) -> bool:
    # Strings and dicts can be walked through too, but not as one number a completion; a set has
    # lost the order.
    return isinstance(returned, Iterable) and not isinstance(
        returned, str | bytes | Mapping | set | frozenset
    )


def _checked(value: Any, name: str, index: int, completion: Any) -> float | None:
    if value is None:
        return None
    try:
        # float() would read the string "0.5" as a number.
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None or not math.isfinite(number):
        raise UserError(
            f"The reward function '{name}' gave {_excerpt(value)} for sample {index} (the first is "
            f"0), the completion {_excerpt(completion)}. Expected a finite number, or None for no "
            "opinion."
        )
    return number


def _excerpt(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 3] + "..."


def _in_one_line(error: BaseException, file: str | None) -> str:
    """The exception's type and message, and the last line of `file` that led to it."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):  # its message has the place already
        return text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{text} ({file}, line {lines[-1]})" if lines else text


def _hint(error: BaseException) -> str:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return " Every column comes by name: end the function's arguments with **columns."
    return ""
