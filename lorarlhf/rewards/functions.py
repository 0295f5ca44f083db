"""Rewards from Python functions, with TRL's signature.

A reward function is `f(prompts, completions, **columns) -> list[float | None]`: it gets its
arguments by name and returns a number for each completion, or None for "no opinion". It may be
`async`. Prompts and completions are strings, or lists of messages if the prompts are conversations.
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
    """Load the function NAME of the Python file FILE.py, given as `FILE.py:NAME`.

    While the file is executed its folder is first in `sys.path`, as for a script, so that it can
    import other files of the folder at its top; afterwards `sys.path` is restored. A file that was
    loaded already and has not changed since is not executed again.

    Raises:
        UserError: there is no `:NAME`, no such file, an exception during execution, no such name in
            it, or the name is not callable.
    """
    # From the right, since a Windows path contains a colon.
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
            "function is written `def NAME(prompts, completions, **columns):` and returns a "
            "number for each completion."
        )
    return function


def _load_module(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(
            f"The reward function '{spec}' names the file {path}, which does not exist. Check the "
            f"path; it is relative to the folder {Path.cwd()}."
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
    # Dataclasses and pickle look up their module here during execution.
    sys.modules[module_name] = module
    try:
        with _first_in_sys_path(path.parent):
            # The spec's loader would write a __pycache__ into the user's folder, or use an old one.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(
            f"The file {path} of the reward function '{spec}' could not be loaded: "
            f"{_in_one_line(error, str(path))}. Fix the file and start again."
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
        # Leaves out what the file has imported.
        and getattr(value, "__module__", None) == module.__name__
    ]
    if not found:
        return f"There is no function '{name}' in {path}, and no other function either."
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
    """Call a reward function, sync or async, and check its result.

    Args:
        fn: The function; called with all arguments by name, as TRL does.
        prompts: B prompts, strings or lists of messages.
        completions: B completions, strings or lists of messages.
        columns: Further columns (lists of B values), or any other argument of the function.

    Returns:
        B finite numbers, or None if the function has no opinion. Booleans and scalars of NumPy and
        PyTorch become floats.

    Raises:
        UserError: the function raised, or returned another number of values than B or a value that
            is not a finite number. TRL treats NaN as None; here it is refused, since it usually
            comes from a division by zero.
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
        if type(error).__name__ == "OutOfMemoryError":  # it has its own message
            raise
        code = getattr(_innermost(fn), "__code__", None)
        where = _in_one_line(error, code.co_filename if code else None)
        raise UserError(f"The reward function '{name}' raised {where}.{_hint(error)}") from error
    if values is None:
        hint = " Is a `return` missing?" if returned is None else ""
        raise UserError(
            f"The reward function '{name}' returned {_excerpt(returned)} of type "
            f"{type(returned).__name__}; expected a list of {len(completions)} numbers, one for "
            f"each completion.{hint}"
        )
    if len(values) != len(completions):
        raise UserError(
            f"The reward function '{name}' returned {len(values)} values, expected "
            f"{len(completions)}: one for each completion, None for no opinion."
        )
    return [
        _checked(value, name, index, completion)
        for index, (value, completion) in enumerate(zip(values, completions, strict=True))
    ]


def combine(scores: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float]:
    """The weighted sum of the scores of several functions, as in TRL 1.16's RLOO and GRPO.

    reward_b = sum of weight_f * score_f(b) over the functions f that have an opinion on b. A None
    (or NaN) is left out and the other weights do not change: a sum, not a mean (`nansum` in TRL's
    `rloo_trainer.py`).

    Args:
        scores: A list of B scores for each function.
        weights: A number for each function.

    Returns:
        B rewards.

    Raises:
        UserError: the numbers of weights and functions differ, or no function has an opinion on a
            sample. TRL sets the advantage of this sample to zero and continues; PPO has no
            advantage without a score.
        ValueError: the lists of scores differ in length.
    """
    if len(scores) != len(weights):
        raise UserError(
            f"There are {len(scores)} reward functions but {len(weights)} weights. Give a weight "
            "for each function, in the same order."
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
            f"No reward function has an opinion on sample {index} (the first is 0): all returned "
            "None. At least one function has to return a number for each completion."
        )
    return math.fsum(terms)


def rater_reward(rater: Rater) -> RewardFunction:
    """A reward function that scores by a simulated rater's rule, without noise.

    It uses the column `ended` (B booleans: the model stopped by itself). Without this column every
    completion counts as ended, which only matters for the rater `brief`.
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

    # Trainers log the mean of a function under this name.
    reward.__name__ = reward.__qualname__ = f"{rater.name}_reward"
    return reward


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The assistant's text in a completion, which is a string or a list of messages.

    The content of a message may be a string or a list of parts (`{"type": "text", "text": ...}`),
    of which only the text counts. Several assistant messages are joined by line breaks.
    """
    if isinstance(completion, str):
        return completion
    messages = [message for message in completion if message.get("role") == "assistant"]
    return "\n".join(_content_text(message.get("content")) for message in messages)


def function_name(fn: RewardFunction) -> str:
    """The name of a function for messages and logs; for a `partial`, of the function it wraps."""
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
    # A notebook or a web page already runs a loop in this thread, and loops cannot be nested.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _is_listlike(returned: Any) -> bool:
    # Strings and dicts are iterable too, but not lists of numbers; a set has no order.
    return isinstance(returned, Iterable) and not isinstance(
        returned, str | bytes | Mapping | set | frozenset
    )


def _checked(value: Any, name: str, index: int, completion: Any) -> float | None:
    if value is None:
        return None
    try:
        # float() would accept the string "0.5".
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None or not math.isfinite(number):
        raise UserError(
            f"The reward function '{name}' returned {_excerpt(value)} for sample {index} (the "
            f"first is 0), the completion {_excerpt(completion)}. Expected a finite number, or "
            "None for no opinion."
        )
    return number


def _excerpt(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 3] + "..."


def _in_one_line(error: BaseException, file: str | None) -> str:
    """The type and message of an exception, and the last line of `file` in its traceback."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):  # its message already has the place
        return text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{text} ({file}, line {lines[-1]})" if lines else text


def _hint(error: BaseException) -> str:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return " Every column is passed by name: end the function's arguments with **columns."
    return ""
