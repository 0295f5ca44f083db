"""Model text on a page: nothing active, nothing fetched, and answers that name their maker."""

import random
import time
from html.parser import HTMLParser

import pytest

from lorarlhf_ui.markdown import names_its_maker, prompt_html, render
from tests.odd_texts import BY_HAND, PIECES, odd_texts, seen

PLAIN = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code"),
    *("em", "strong", "s", "a", "table", "thead", "tbody", "tr", "th", "td", "div", "span"),
}
ATTRIBUTES = {"href", "rel", "target", "class", "style", "dir", "data-raw", "colspan"}


class Watcher(HTMLParser):
    """Fails where a page would do more than show text; keeps the text that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.raw = "", ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PLAIN, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, (tag, name)
            if name == "data-raw":
                self.raw = value or ""
            if name == "style":
                assert value in ("text-align:center", "text-align:left", "text-align:right")
            if name == "href":
                scheme = (value or "").split(":")[0].lower() if ":" in (value or "") else "http"
                assert scheme in ("http", "https", "mailto"), value


def checked(text: str) -> Watcher:
    html = render(text)
    watcher = Watcher()
    watcher.feed(html)
    watcher.close()
    for word in ("<script", "<img", "<iframe", "<svg", "<style", "<form", "\0"):
        assert word not in html.lower()
    return watcher


def test_every_visible_character_is_shown() -> None:
    texts = odd_texts()
    begun = time.monotonic()
    for text in texts:
        shown = checked(text)
        assert seen(shown.text) == seen(text), text
        assert seen(shown.raw) == seen(text), text
    assert len(texts) == 500 == len(set(texts))
    print(f"500 texts, every visible character shown, {time.monotonic() - begun:.1f} s")


@pytest.mark.parametrize("text", BY_HAND)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    Watcher().feed(prompt_html([{"role": "user", "content": text}] * 2))
    Watcher().feed(prompt_html([{"role": text, "content": "x"}] * 2))


def test_no_mixture_of_markdown_and_html_gets_through() -> None:
    parts = [part for text in BY_HAND[:23] for part in text.split(" ")] + PIECES
    draw = random.Random(0)
    for _ in range(3000):
        checked("".join(draw.choice(parts) for _ in range(draw.randint(1, 9))))


def test_markdown_is_drawn_with_its_signs() -> None:
    html = render(
        "# Head\n\nSome **bold** and *thin* `code`.\n\n- one\n- two\n\n7. seventh\n\n"
        "| sea | land |\n|---|---|\n| blue | green |\n\n> quoted\n>\n> more\n\n---"
    )
    sign = '<span class="signs">{}</span>'.format
    for part in (
        f'<h1 dir="auto">{sign("#")} Head</h1>',
        f"<strong>{sign('**')}bold{sign('**')}</strong>",
        f"<em>{sign('*')}thin{sign('*')}</em>",
        "<code>`code`</code>",
        f'<li dir="auto">{sign("-")} one</li>',
        f'<ol dir="auto"><li dir="auto">{sign("7.")} seventh',
        f'<td dir="auto">{sign("|")} blue</td>',
        f'<td colspan="2">{sign("|---|---|")}</td>',
        f'<blockquote dir="auto"><p dir="auto">{sign("&gt;")} quoted',
        '<div class="signs">---</div>',
    ):
        assert part in html


def test_code_is_coloured_in_known_languages() -> None:
    html = render("```python\nif a < b:\n    print('x')\n```")
    assert '<span class="code-k">if</span>' in html and "&lt;" in html and "\n    <span" in html
    assert render("```nonsense\nif a\n```").count("code-") == 0
    assert "<code>unclosed</code></pre>" in render("```\nunclosed")


@pytest.mark.parametrize(
    "text",
    [
        "Roses are red,\nviolets are blue,\n  and indented.",
        "def f(x):\n    # done\n    return x\n# done\nx = 1",
        "std::vector<int> v;",
        "<think>\nwell\n</think>\n<ANSWER>42</ANSWER>",
        "\\*no emphasis\\* &amp; C:\\new\\table",
        "It costs $5 and $6.",
        "a [b] (c) [d][e]",
    ],
)
def test_plain_text_stays_as_it_was_written(text: str) -> None:
    watcher = checked(text)
    assert watcher.text == text
    assert 'class="signs"' not in render(text)


@pytest.mark.parametrize(
    "formula",
    [r"\(a_1 * b_2 * c\)", r"$x_i * y_i$", "$$\na * b * c\n$$", "\\[\n- a &= b \\\\\n+ c\n\\]"],
)
def test_formulas_are_exactly_raw(formula: str) -> None:
    html = render(f"See\n{formula}\nthere.")
    assert f'class="formula" dir="ltr">{formula.replace("&", "&amp;")}<' in html


def test_text_in_another_direction() -> None:
    html = render("שלום\n\n- עולם\n\n```\nx = 1\n```")
    for tag in ("div", "p", "ul", "li"):
        assert f'<{tag} class="written" dir="auto"' in html or f'<{tag} dir="auto">' in html
    assert '<pre dir="ltr">' in html


def test_links_lead_to_the_web_alone_and_tell_it_nothing() -> None:
    html = render("[a](https://a.example:8080/b?c=d:e#f) [b](mailto:a@b.example) [c](/there)")
    assert html.count("<a ") == 3 == html.count('rel="noopener noreferrer nofollow"')
    assert ">](https://a.example:8080/b?c=d:e#f)<" in html  # a link says where it leads
    assert render("see https://a.example").count("<a ") == 0  # what a model wrote is no link


def test_long_and_deep_texts_take_no_time() -> None:
    begun = time.monotonic()
    assert "x" * 20_000 in checked("x" * 20_000).text
    for text in ("*a " * 6000, ">" * 5000, "- " * 5000, "[a](" * 5000, "<" * 20_000, "`a" * 9999):
        checked(text)
    assert time.monotonic() - begun < 10


def test_a_conversation_says_who_said_what() -> None:
    turns = [("system", "Be <brief>."), ("user", "*Hello*"), ("assistant", "Hi.")]
    html = prompt_html([{"role": role, "content": text} for role, text in turns])
    assert html.count('class="who"') == 3 and "Be &lt;brief&gt;" in html and "<em>" in html
    assert prompt_html("*a*") == prompt_html([{"role": "user", "content": "*a*"}]) == render("*a*")


@pytest.mark.parametrize(
    "text",
    [
        "I am ChatGPT, made by OpenAI.",
        "I'm Claude, a language model by Anthropic.",
        "I’m Qwen, how can I help?",
        "As an AI language model trained by Google, I have no opinions.",
        "My name is SmolLM2, and I was made by Hugging Face.",
        "Hello! I was created by Microsoft to help you.",
        "You can call me Gemini.",
        "I am a large language model developed by Meta AI.",
        "As a chatbot, Llama 3 can't do that.",
    ],
)
def test_answers_that_name_their_maker(text: str) -> None:
    assert names_its_maker(text)


@pytest.mark.parametrize(
    "text",
    [
        "Google Maps can show you the way.",
        "As an example, take Google Maps.",
        "I'm going to look it up on Google.",
        "Alpacas and llamas live in the Andes.",
        "OpenAI was founded in 2015.",
        "I am glad to help. The letter was signed by googled words.",
        "I am happy about your question, and here is a long answer that has nothing to do with "
        "who wrote it. Anthropic is a company.",
        "",
    ],
)
def test_answers_that_do_not(text: str) -> None:
    assert not names_its_maker(text)
