"""Model text on a page: nothing active, nothing fetched, and answers that name their maker."""

import random
import time
from html.parser import HTMLParser

import pytest

from lorarlhf_ui.markdown import as_html, names_its_maker, prompt_html

PLAIN = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code"),
    *("em", "strong", "s", "hr", "br", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"href", "title", "rel", "target", "class", "start", "style"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//x.example/a.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    '<svg onload="alert(1)"><a xlink:href="javascript:alert(1)">x</a></svg>',
    "<iframe src='https://x.example'></iframe>",
    "<a href='javascript:alert(1)'>x</a> <style>*{display:none}</style> <base href=//x>",
    "<form action=//x><input autofocus onfocus=alert(1)></form>",
    "<!-- --><math><mtext></mtext></math><![CDATA[<script>]]>",
    "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1)) [x](\\javascript:alert(1)) <javascript:alert(1)>",
    "[x](data:text/html;base64,PHNjcmlwdD4=) [x](data:image/png;base64,AAAA) [x](vbscript:a)",
    "[x](data:image/svg+xml,%3Csvg/onload=alert(1)%3E) [x](file:///etc/passwd) [x](blob:a)",
    "[x]\n\n[x]: javascript:alert(1) 'title'",
    '[x](http://a.example "t\\" onmouseover=\\"alert(1)")',
    '![x](https://x.example/pixel.png) ![x](x "onerror=alert(1)") ![x][y]\n\n[y]: //x.example',
    '```"><script>alert(1)</script>\nunclosed',
    "~~~js onload=alert(1)\n</code></pre><script>alert(1)</script>",
    "`</code><script>alert(1)</script>",
    "|a|b|\n|-|:-:|\n|<script>|<img src=x onerror=alert(1)>|",
    "null \0 <scr\0ipt>alert(1)</scr\0ipt> [x](java\0script:alert(1))",
    "\ud800 half a character [x](http://a.example/\udfff)",
    "</p></div></article><script>alert(1)</script>",
    "<a href=x" + " " * 500 + "onclick=alert(1)>",
]


class Watcher(HTMLParser):
    """Fails where a page would do more than show text."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PLAIN, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, (tag, name)
            if name == "style":
                assert value in ("text-align:center", "text-align:left", "text-align:right")
            if name == "href":
                scheme = (value or "").split(":")[0].lower() if ":" in (value or "") else "http"
                assert scheme in ("http", "https", "mailto"), value


def checked(text: str) -> str:
    html = as_html(text)
    Watcher().feed(html)
    for word in ("<script", "<img", "<iframe", "<svg", "<style", "<form", "\0"):
        assert word not in html.lower()
    return html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    checked(text)
    checked(f"# Title\n\n- a list\n- {text}\n\n> {text}")
    Watcher().feed(prompt_html([{"role": "user", "content": text}] * 2))
    Watcher().feed(prompt_html([{"role": text, "content": "x"}] * 2))


def test_no_mixture_of_markdown_and_html_gets_through() -> None:
    parts = [part for text in HOSTILE for part in text.split(" ")]
    parts += ["[", "](", ")", "<", ">", "`", "```", "\n", "\n\n", '"', "javascript:", "&#x41;"]
    draw = random.Random(0)
    for _ in range(3000):
        checked("".join(draw.choice(parts) for _ in range(draw.randint(1, 9))))


def test_markdown_is_rendered() -> None:
    html = checked(
        "# Head\n\nSome **bold** and *thin* `code`.\n\n- one\n- two\n\n1. first\n\n"
        "```python\nif a < b:\n    print('x')\n```\n\n| sea | land |\n|---|---|\n| blue | green |"
    )
    for part in (
        "<h1>Head",
        "<strong>bold",
        "<em>thin",
        "<code>code",
        "<li>one",
        "<ol>",
        "<td>blue",
    ):
        assert part in html
    assert "if a &lt; b:\n    print" in html
    assert "<pre><code>unclosed" in checked("```\nunclosed")
    assert 'class="language-' in checked("```python\nx\n```")


def test_links_lead_to_the_web_alone_and_tell_it_nothing() -> None:
    html = checked("[a](https://a.example:8080/b?c=d:e#f) [b](mailto:a@b.example) [c](/there)")
    assert html.count("<a ") == 3 == html.count('rel="noopener noreferrer nofollow"')
    assert checked("see https://a.example").count("<a ") == 0  # what a model wrote is no link


def test_long_and_deep_texts_take_no_time() -> None:
    begun = time.monotonic()
    assert "x" * 20_000 in checked("x" * 20_000)
    for text in ("*a " * 6000, ">" * 5000, "- " * 5000, "[a](" * 5000, "<" * 20_000, "`a" * 9999):
        checked(text)
    assert time.monotonic() - begun < 10


def test_a_conversation_says_who_said_what() -> None:
    turns = [("system", "Be <brief>."), ("user", "*Hello*"), ("assistant", "Hi.")]
    html = prompt_html([{"role": role, "content": text} for role, text in turns])
    assert html.count('class="who"') == 3 and "Be &lt;brief&gt;" in html and "<em>Hello" in html
    assert prompt_html("*a*") == prompt_html([{"role": "user", "content": "*a*"}]) == as_html("*a*")


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
