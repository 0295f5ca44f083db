"""A request for a chat completion, checked field by field.

What can't be honoured is refused in words, unless it asks for nothing (a penalty of 0). Ignored are
a few fields that change no answer, and tools that are only offered: Open WebUI offers some to every
model, and a model may always answer without them.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorarlhf.serve.errors import refused

MOST_STOPS = 16
LONGEST_STOP = 500
"""Characters. At every token the end of an answer is compared with the beginnings of its stops."""
MOST_ANSWERS = 16
TEMPERATURE = 0.7
"""As in `lorarlhf chat`, where the request names none."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity"),
        *("tools", "functions"),
    }
)
"""Fields that change no answer here."""


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for.

    Attributes:
        model: a name of `Models`, or "" for the default.
        messages: with `role` (system, user, assistant) and `content`.
        n: how many answers.
        max_tokens: the longest answer; None for the server's own limit.
        seed: None draws one.
        stops: texts that end an answer; they are not part of it.
        stream: whether the text is sent while it is written; usage: with the counts at its end.
    """

    model: str
    messages: list[dict[str, str]]
    n: int = 1
    max_tokens: int | None = None
    temperature: float = TEMPERATURE
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def read_request(body: Any) -> ChatRequest:
    """The request in a body of JSON.

    Raises:
        ApiError: it can't be honoured; names the field.
    """
    if not isinstance(body, dict):
        raise refused("The body is a JSON object with model and messages.")
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(given)
    for name, why in UNSUPPORTED.items():
        if name in given and not _asks_nothing(name, given[name]):
            raise refused(f"{name} is not supported: {why}", name, "unsupported_parameter")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise refused("stream_options has include_usage, true or false.", "stream_options")
    return ChatRequest(
        model=_text(given, "model"),
        messages=_messages(given.get("messages")),
        n=_whole(given, "n", 1, MOST_ANSWERS) or 1,
        max_tokens=_longest(given),
        temperature=_number(given, "temperature", TEMPERATURE, "0 to 2", lambda x: 0 <= x <= 2),
        top_p=_number(given, "top_p", 1.0, "above 0, up to 1", lambda x: 0 < x <= 1),
        seed=_whole(given, "seed", -(2**63), 2**63 - 1),
        stops=_stops(given.get("stop")),
        stream=_flag(given, "stream"),
        usage=_flag(options, "include_usage"),
    )


# ---- what is not supported

_ONE_WAY = "answers are sampled from the model as it is, by temperature, top_p and seed alone."
_PLAIN = "the models here write plain text."
UNSUPPORTED: Mapping[str, str] = {
    "tool_choice": "the models here call no tools, so none can be required.",
    "function_call": "the models here call no functions, so none can be required.",
    "logprobs": "log-probabilities are not sent.",
    "top_logprobs": "log-probabilities are not sent.",
    "logit_bias": _ONE_WAY,
    "presence_penalty": _ONE_WAY,
    "frequency_penalty": _ONE_WAY,
    "repetition_penalty": _ONE_WAY,
    "top_k": _ONE_WAY,
    "min_p": _ONE_WAY,
    "top_a": _ONE_WAY,
    "response_format": f"{_PLAIN} Only the type text can be promised.",
    "modalities": _PLAIN,
    "audio": _PLAIN,
    "prediction": "a predicted text would not make anything faster here.",
    "web_search_options": "nothing is searched: the model only has the messages.",
}
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (0, 1),
    "top_k": (0, -1),
    "min_p": (0,),
    "top_a": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Values that ask for nothing, which some programs always send."""
KNOWN = (
    *("model", "messages", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("seed", "stop", "stream", "stream_options"),
)


def _asks_nothing(name: str, value: Any) -> bool:
    return any(type(value) in (type(one), float) and value == one for one in _NOTHING.get(name, ()))


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    known = {*KNOWN, *UNSUPPORTED, *IGNORED}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise refused(
                f"There is no parameter {name} here.{hint}", str(name), "unknown_parameter"
            )


# ---- messages


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise refused("messages is a list of at least one message.", "messages")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise refused(f"{where} is an object with role and content.", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise refused(
            f"{where}.role is system, developer, user or assistant, not {role!r}: the models here "
            "call no tools.",
            f"{where}.role",
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise refused(f"{where} calls a tool, and the models here call none.", where)
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    """The text of a message, which may be in parts."""
    if isinstance(value, list):
        texts = []
        for number, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise refused(
                    f"{where}[{number}] is of the type {kind}: {_PLAIN[:-1]}, and read nothing "
                    "else. Leave images, audio and files out.",
                    f"{where}[{number}]",
                )
            texts.append(part["text"])
        value = "\n".join(texts)
    if not isinstance(value, str):
        raise refused(f"{where} is a text, or a list of parts of the type text.", where)
    # Unpaired surrogates, which JSON can hold, have no UTF-8.
    return value.encode("utf-8", "ignore").decode()


# ---- values


def _longest(given: Mapping[str, Any]) -> int | None:
    named = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    return _whole(given, named[0], 1, 2**31) if named else None


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise refused(f"{name} is a whole number from {least} to {most}, not {value!r}.", name)
    return value


def _number(
    given: Mapping[str, Any], name: str, default: float, words: str, fits: Callable[[float], bool]
) -> float:
    value = given.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not fits(value):  # not a number is in no range
        raise refused(f"{name} is a number, {words}, not {value!r}.", name)
    return float(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise refused(f"{name} is true or false, not {value!r}.", name)
    return value


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise refused(f"{name} is a text, not {value!r}.", name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    good = isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)
    if not good or len(stops) > MOST_STOPS or any(len(one) > LONGEST_STOP for one in stops):
        raise refused(
            f"stop is a text, or a list of up to {MOST_STOPS} texts, none empty and none longer "
            f"than {LONGEST_STOP} characters.",
            "stop",
        )
    return tuple(dict.fromkeys(stops))
