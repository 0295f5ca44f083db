"""Ollama's templates: written from what a chat template renders, and rendered as Go would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from lorarlhf.export import go_template
from lorarlhf.export.go_render import render
from lorarlhf.export.go_template import (
    Refused,
    check_go,
    conversation,
    read_pieces,
    render_go,
    write_go,
)
from lorarlhf.export.ollama import TEMPERATURE, Modelfile, parse
from lorarlhf.runtime.errors import UserError
from tests.chat_formats import CHATML, FORMATS, LLAMA3, MISTRAL, UNUSUAL
from tests.tiny import tiny_tokenizer


def renderer(template: str) -> Callable[[Any, bool], str]:
    """The template as transformers renders it, with <s> and </s>."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.chat_template = template

    def run(messages: Any, answer_next: bool) -> str:
        try:
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=answer_next, tokenize=False
            )
        except TemplateError as error:
            raise Refused from error

    return run


@pytest.mark.parametrize("name", FORMATS)
def test_a_go_template_renders_what_the_chat_template_renders(name: str) -> None:
    run = renderer(FORMATS[name])
    go = write_go(read_pieces(run))
    assert check_go(go, run) == []
    messages = [
        {"role": "user", "content": 'Write "{{ x }}" and C:\\n'},
        {"role": "assistant", "content": "No <b>.\n\nMore"},
        {"role": "user", "content": "Ünd 你好"},
    ]
    assert render_go(go, messages) == run(messages, True)


def test_the_template_of_chatml_is_the_one_that_people_write() -> None:
    assert write_go(read_pieces(renderer(CHATML))) == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_system_prompt_that_goes_with_the_last_message_does_so_in_go() -> None:
    go = write_go(read_pieces(renderer(MISTRAL)))
    messages = conversation(2, system=True, marks=False)
    assert render_go(go, messages) == (
        "<s>[INST] How do bees fly?[/INST] They beat their wings.</s>"
        "[INST] Answer in one sentence.\n\nAnd at night?[/INST]"
    )


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_template_without_an_equal_in_go_is_refused(name: str) -> None:
    run = renderer(UNUSUAL[name])
    with pytest.raises(UserError, match="No Ollama template can be made"):
        read_pieces(run)


def test_a_template_of_another_family_is_seen_with_the_place() -> None:
    problems = check_go(write_go(read_pieces(renderer(LLAMA3))), renderer(CHATML))
    assert len(problems) == 6
    assert problems[0] == (
        "a conversation of 1 turns without a system prompt: after '<' it should be "
        "'|im_start|>user\\nHow do bees fly?<|im_end' and is "
        "'s><|start_header_id|>user<|end_header_id'"
    )


def test_braces_and_quotes_in_a_format_are_go_constants() -> None:
    template = "{% for m in messages %}<" + "{{ '{{' }}" + '{{ m[\'content\'] }}>{% endfor %}\n"""'
    run = renderer(template)
    go = write_go(read_pieces(run))
    assert '"""' not in go
    assert check_go(go, run) == []


GO = [
    ("a {{- .A }} b", {"A": "x"}, "ax b"),
    ("a {{ .A -}}\n b", {"A": "x"}, "a xb"),
    ('{{ if eq .A "x" "y" }}1{{ else if .B }}2{{ else }}3{{ end }}', {"A": "y"}, "1"),
    ('{{ if eq .A "x" }}1{{ else if .B }}2{{ else }}3{{ end }}', {"A": "", "B": 1}, "2"),
    ('{{ if eq .A "x" }}1{{ else if .B }}2{{ else }}3{{ end }}', {"A": "", "B": 0}, "3"),
    ("{{ range $i, $m := .L }}{{ $i }}{{ $m.A }}{{ .A }} {{ end }}", {"L": [{"A": "x"}]}, "0xx "),
    ("{{ range .L }}{{ if and (not .A) $.B }}!{{ end }}{{ end }}", {"L": [{"A": 0}], "B": 1}, "!"),
    ("{{ $x := 1 }}{{ $x = .A }}{{ $x }}{{/* a remark */}}", {"A": 5}, "5"),
    ('{{ len (slice .L 1) }}{{ `{{` }}{{ "\\n" }}', {"L": [1, 2, 3]}, "2{{\n"),
    ('{{ if or (ne .A "x") .B }}1{{ end }}', {"A": "x", "B": ""}, ""),
]


@pytest.mark.parametrize(("template", "data", "text"), GO)
def test_go_is_rendered_as_go_does(template: str, data: dict[str, Any], text: str) -> None:
    """The expected texts are those of the documentation of Go's text/template."""
    assert render(template, data) == text


@pytest.mark.parametrize("template", ["{{ if .A }}x", "{{ json .A }}", "{{ (eq .A 1 }}"])
def test_go_that_is_not_known_is_an_error(template: str) -> None:
    with pytest.raises(UserError, match="Go template"):
        render(template, {"A": 1})


@pytest.mark.parametrize("system", ["Be kind.", 'Say "hi"', "Two\n\nlines", ""])
def test_a_modelfile_is_read_as_it_was_written(system: str, tmp_path: Path) -> None:
    file = tmp_path / "Modelfile"
    template = "{{ range .Messages }}{{ .Content }}\n{{ end }}"
    file.write_text(Modelfile("my run-F16.gguf", template, ["<over>", "</s>"], system).text())
    told = parse(file)
    assert (told["from"], told["template"]) == ("./my run-F16.gguf", template)
    assert (told.get("system", ""), told["stops"]) == (system, ["<over>", "</s>"])
    assert told["temperature"] == TEMPERATURE


def test_the_first_difference_is_shown_with_what_is_before_it() -> None:
    said = go_template.first_difference("one two three", "one too three")
    assert said == "after 'one t' it should be 'wo three' and is 'oo three'"
