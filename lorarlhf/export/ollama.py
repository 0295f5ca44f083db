"""A GGUF file with the Modelfile that Ollama reads: template, stop words, system prompt.

Ollama puts the beginning token before a prompt by itself where the file says so. So a template
must not write it: a prompt with two of them reads otherwise than all that the policy was trained
on.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from lorarlhf.backbone.base import Backbone
from lorarlhf.export.engines import LLAMA, ask
from lorarlhf.export.gate import check_prompts
from lorarlhf.export.go_template import (
    Messages,
    Pieces,
    Refused,
    Render,
    check_go,
    conversation,
    read_pieces,
    render_go,
    write_go,
)
from lorarlhf.runtime.errors import UserError

MODELFILE = "Modelfile"
LONG = re.compile(r'"""(.*?)"""[ \t]*(?:\n|$)', re.DOTALL)
"""A text of several lines. It ends with the last quotes of a line, since it may end with one."""
TEMPERATURE = 0.7
"""As `lorarlhf chat` and the pages sample."""


@dataclass(frozen=True)
class Modelfile:
    """What Ollama is told.

    Attributes:
        model: the GGUF file's name, beside the Modelfile.
        template: in Go's language; stops: texts that end an answer.
        system: a system prompt for all conversations; "" for the base's own, if it has one.
    """

    model: str
    template: str
    stops: list[str]
    system: str = ""
    temperature: float = TEMPERATURE

    def text(self) -> str:
        """The file."""
        lines = [f"FROM ./{self.model}", f'TEMPLATE """{self.template}"""']
        lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in self.stops]
        lines.append(f"PARAMETER temperature {self.temperature:g}")
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        return "\n".join(lines) + "\n"


def renderer(backbone: Backbone) -> Render:
    """The chat template that the policy was trained with."""

    def render(messages: Messages, answer_next: bool) -> str:
        try:
            return backbone.tokenizer.apply_chat_template(
                messages, add_generation_prompt=answer_next, tokenize=False
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise Refused(str(error)) from error

    return render


def make_modelfile(backbone: Backbone, model: str, system: str) -> Modelfile:
    """The Modelfile of a base.

    Raises:
        UserError: the base has no chat template, or one that has no equal in Go; or there is a
            system prompt and the template takes none.
    """
    if backbone.tokenizer.chat_template is None:
        raise UserError(
            f"{backbone.base} has no chat template, and Ollama needs one. Name a Jinja file with "
            "--set chat_template=FILE, or export it --as gguf."
        )
    render = renderer(backbone)
    pieces = read_pieces(render)
    if system and pieces.system is None and pieces.joined is None:
        raise UserError(
            f"The chat template of {backbone.base} takes no system prompt. Leave --system out."
        )
    if '"""' in system:
        raise UserError('--system can\'t contain """, which ends a text in a Modelfile.')
    template = write_go(without_bos(pieces, backbone.tokenizer.bos_token))
    return Modelfile(model, template, stop_words(backbone), system)


def without_bos(pieces: Pieces, bos: str | None) -> Pieces:
    """The pieces without the beginning token, which Ollama puts there itself."""
    if not bos or not pieces.start.startswith(bos) or bos_is_a_turn(pieces, bos):
        return pieces
    system = pieces.system
    if system is not None:
        system = (system[0].removeprefix(bos), system[1])
    return replace(pieces, start=pieces.start.removeprefix(bos), system=system)


def bos_is_a_turn(pieces: Pieces, bos: str) -> bool:
    """Whether the beginning token also begins every message, as `<|im_start|>` may be."""
    return pieces.user[0].startswith(bos)


def stop_words(backbone: Backbone) -> list[str]:
    """The texts of the tokens that end an answer."""
    words = backbone.tokenizer.convert_ids_to_tokens(backbone.stop_ids)
    return [word for word in words if word]


def check_modelfile(folder: Path, backbone: Backbone, model: Path) -> list[str]:
    """What Ollama would do otherwise than the training did; a sentence each.

    llama.cpp reads the texts that the Modelfile's template renders, as it does inside of Ollama.
    """
    told, render = parse(folder / MODELFILE), renderer(backbone)
    asked = [conversation(turns, marks=False) for turns in (1, 2, 3)]
    texts = [render_go(told["template"], messages) for messages in asked]
    job = {"kind": "tokens", "models": [str(model.resolve())], "texts": texts}
    (found,) = ask(LLAMA, job | {"stop_ids": backbone.stop_ids, "add_special": True})["models"]
    if found is None:
        return ["llama.cpp can't read the vocabulary of the GGUF file"]
    special = found["special"]
    problems = check_template(told["template"], backbone, special["add_bos"])
    problems += check_stops(told["stops"], backbone, special["ending"])
    if not problems:
        wanted = [backbone.encoder.tokenize(render(messages, True)) for messages in asked]
        problems += check_prompts(backbone, wanted, found["tokens"], "Ollama")
    return problems


def check_template(template: str, backbone: Backbone, add_bos: bool) -> list[str]:
    """What a Go template renders otherwise than the chat template; a sentence each.

    Args:
        add_bos: whether Ollama puts the beginning token before a prompt.
    """
    render, bos = renderer(backbone), backbone.tokenizer.bos_token or ""

    def expected(messages: Messages, answer_next: bool) -> str:
        text = render(messages, answer_next)
        return text.removeprefix(bos) if add_bos and bos else text

    if add_bos and bos and render_go(template, conversation(1, marks=False)).startswith(bos):
        return [
            f"doubled BOS: the template begins with {bos}, and Ollama puts one before every prompt"
        ]
    return [f"wrong chat template: {problem}" for problem in check_go(template, expected)]


def check_stops(stops: Sequence[str], backbone: Backbone, ending: Sequence[int]) -> list[str]:
    """Which tokens end an answer here and not in Ollama; a sentence each.

    Args:
        stops: the Modelfile's; ending: the tokens that end an answer by the GGUF file.
    """
    lost = [
        word
        for token, word in zip(backbone.stop_ids, stop_words(backbone), strict=True)
        if token not in ending and word not in stops
    ]
    return [f"lost stop token: nothing ends an answer at {word}" for word in lost]


def parse(file: Path) -> dict[str, Any]:
    """Template, stops, system prompt and temperature of a Modelfile, as Ollama reads it.

    Raises:
        UserError: a line that is none of those.
    """
    found: dict[str, Any] = {"stops": []}
    rest = file.read_text(encoding="utf-8")
    while rest.strip():
        name, _, rest = rest.lstrip().partition(" ")
        if long := LONG.match(rest):
            value, rest = long[1], rest[long.end() :]
        else:
            value, _, rest = rest.partition("\n")
        if name == "PARAMETER":
            key, _, value = value.partition(" ")
            if key == "stop":
                found["stops"].append(json.loads(value))
            else:
                found[key] = float(value)
        elif name in ("FROM", "TEMPLATE", "SYSTEM"):
            found[name.lower()] = value
        else:
            raise UserError(f"{file} has a line that begins with {name}, which is not known here.")
    return found
