"""The site of the documentation: built without a warning, whole, private, and true to the code."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import lorarlhf
from lorarlhf.cli.parser import SUMMARIES
from lorarlhf.stages.table import STAGES
from tests.browser import chromium
from tests.test_docs import DOCUMENTS, INDEX, PAGES, ROOT, blocks, names_in, text_of

sys.path.insert(0, str(ROOT / "docs"))
import site_parts

needs_sphinx = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Sphinx 9 needs Python 3.11; see pyproject.toml"
)
# What a page can make a browser fetch without a click.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
LINKED_ONLY = {"canonical", "next", "prev", "search", "index", "genindex", "author", "license"}
WIDTHS = (390, 1280)


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does; its output is not checked."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    places = ["-d", str(out / "doctrees"), ".", str(out / "html")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *options, *places], cwd=source, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return out / "html"


class Page(HTMLParser):
    """Addresses in a page: `fetched` by a browser itself, and `linked` for a reader."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched, self.linked, self.ids = list[str](), list[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        kept = tag == "link" and given.get("rel") in LINKED_ONLY
        if FETCHED.get(tag) in given and not kept:
            self.fetched.append(given[FETCHED[tag]])


# ---- the build


@needs_sphinx
def test_every_page_is_built(site: Path) -> None:
    names = [*PAGES, "recipes/README.md", "recipes/presets/README.md", "CHANGELOG.md"]
    assert [name for name in names if not (site / name).with_suffix(".html").is_file()] == []
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


@needs_sphinx
def test_links_between_pages_lead_to_a_heading_that_is_there(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    missing = []
    for path, page in pages.items():
        for link in page.linked:
            target, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (place and place not in pages[file].ids):
                missing.append(f"{path.relative_to(site)}: {link}")
    assert missing == []


@needs_sphinx
def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    """Neither by pages nor by style sheets; a reader may still click on a link."""
    away = re.compile(r"(?:[a-z]+:)?//")
    asked = [
        f"{path.relative_to(site)}: {address}"
        for path in site.rglob("*.html")
        for address in Page(path).fetched
        if away.match(address)
    ]
    asked += [
        f"{path.relative_to(site)}: {address}"
        for path in site.rglob("*.css")
        for address in re.findall(r"(?:url\(|@import\s)\s*[\"']?([^\"')]+)", path.read_text())
        if away.match(address)
    ]
    assert asked == []


@needs_sphinx
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# A page\n\n[Nowhere](nowhere.md)\n", "nowhere.md"),
        ("# A page\n\n[No heading](#nothing)\n", "nothing"),
        ("# A page\n\n![No picture](images/none.png)\n", "images/none.png"),
        ("# A page\n\n### A level too deep\n", "H1 to H3"),
    ],
)
def test_a_broken_link_fails_the_build(text: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name in ("conf.py", "site_parts.py", "_static", "_templates"):
        source = ROOT / "docs" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, _made(folder) / name)
    (folder / "page.md").write_text(text, encoding="utf-8")
    only = ("-b", "dummy", "-D", "root_doc=docs/page", "-D", "include_patterns=docs/page.md")
    done = build(tmp_path, tmp_path / "out", *only)
    assert done.returncode != 0
    assert said in done.stderr


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_make_docs_fails_on_warnings() -> None:
    recipe = re.search(r"^docs: .*\n((?:\t.*\n)+)", text_of("Makefile"), re.MULTILINE)
    assert recipe and "-m sphinx -q -W --keep-going -c docs" in recipe[1]


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = chromium.find()
        started = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield started
        started.close()


@needs_sphinx
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_window_and_ask_nobody(site: Path, browser: Any, width: int) -> None:
    """Opened as files, without a server: tables and code may scroll, the page itself not."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    asked, wrong = list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    too_wide = []
    for name in (*PAGES, "recipes/README.md", "CHANGELOG.md"):
        page.goto((site / name).with_suffix(".html").as_uri())
        size = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if size[0] > size[1]:
            too_wide.append(f"{name}: {size[0]} of {size[1]} pixels")
        assert (
            page.locator("article img").evaluate_all(
                "pictures => pictures.filter(p => p.complete && !p.naturalWidth).map(p => p.src)"
            )
            == []
        )
    page.close()
    assert too_wide == [] and wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@needs_sphinx
def test_the_search_works_without_a_server(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q=kl_budget")
    found = page.locator("#search-results li a")
    found.first.wait_for(timeout=30_000)
    assert any("health" in link for link in found.evaluate_all("links => links.map(l => l.href)"))
    page.close()


# ---- the navigation


def test_every_page_is_in_the_navigation_once() -> None:
    """A page of docs/ that docs/index.md does not list would be found by nobody."""
    listed = [page for pages in site_parts.navigation(text_of(INDEX)).values() for page in pages]
    assert len(set(listed)) == len(listed)
    names = [f"{page}.md" for page in listed]
    assert [name for name in names if not (ROOT / name).is_file()] == []
    assert set(PAGES) - {INDEX} <= set(names), f"list these in {INDEX}"


# ---- what is written from the code


def test_every_setting_has_a_text_and_a_place() -> None:
    text = site_parts.settings_text()
    for stage in STAGES.values():
        said = site_parts.texts_of_stage(stage)
        keys = [key.strip() for key in stage.keys.split(",")]
        assert [key for key in keys if not said.get(key)] == [], stage.name
        (section,) = re.findall(rf"^### {stage.name}\n(.*?)(?=^### |\Z)", text, re.M | re.S)
        assert [key for key in keys if f"| `{key}` |" not in section] == [], stage.name


def test_settings_are_shown_with_default_and_limit() -> None:
    text = site_parts.settings_text()
    assert "| `holdout` | `0.1` | number, from 0 to below 1 | Share of the prompts" in text
    assert '| `pooling` | `mean` | mean or last | "mean" over the answer\'s tokens, or' in text
    assert "| `kl_target` |  | number, above 0 | KL in nats per answer" in text
    assert "| `lora_rank` | `16` | 1 or more | LoRA's settings" in text


def test_every_command_is_shown_with_its_help() -> None:
    text = site_parts.commands_text()
    assert re.findall(r"^### lorarlhf ([\w-]+)$", text, re.MULTILINE) == list(SUMMARIES)
    for name, parser in site_parts.commands():
        for option in re.findall(r"--[a-z][a-z-]+", parser.format_help()):
            assert option in text, f"{name} {option}"


def test_every_public_name_is_on_the_page_about_python() -> None:
    text = text_of("docs/python.md")
    assert [name for name in lorarlhf.__all__ if f"`{name}`" not in text] == []
    generated = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE))
    assert {f"lorarlhf.{name}" for name in lorarlhf.__all__} <= generated


# ---- code in the pages

SNIPPETS = [
    (document, number)
    for document in DOCUMENTS
    for number, _ in enumerate(blocks(document, "python"))
]


@pytest.mark.parametrize(("document", "number"), SNIPPETS)
def test_python_compiles_and_imports_names_that_exist(document: str, number: int) -> None:
    for node in ast.walk(ast.parse(blocks(document, "python")[number])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lorarlhf":
            assert hasattr(lorarlhf, node.attr), node.attr


def snippet(document: str, name: str) -> dict[str, Any]:
    """The names that the example with this function defines."""
    (code,) = [code for code in blocks(document, "python") if f"def {name}(" in code]
    space: dict[str, Any] = {}
    exec(compile(code, document, "exec"), space)
    return space


def test_the_reward_functions_of_the_pages_work(tmp_path: Path) -> None:
    from lorarlhf.rewards.functions import call_reward_function, load_function

    answers = [[{"role": "assistant", "content": text}] for text in ("- a\n- b", "Thank you!")]
    polite = snippet("docs/python.md", "short_and_polite")["short_and_polite"]
    assert call_reward_function(polite, [None] * 2, answers) == [-0.007, 0.99]
    (code,) = [c for c in blocks("docs/extending.md", "python") if "def counts_lists" in c]
    (tmp_path / "rewards.py").write_text(code, encoding="utf-8")
    lists = load_function(f"{tmp_path / 'rewards.py'}:counts_lists")
    assert call_reward_function(lists, [None] * 2, answers) == [-2.0, 0.0]


def test_the_callback_of_the_page_prints_the_kl(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import TrainerState

    (code,) = [c for c in blocks("docs/python.md", "python") if "class PrintKL" in c]
    space: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), space)
    space["PrintKL"]().on_log(None, TrainerState(global_step=3), None, logs={"kl": 1.5})
    assert capsys.readouterr().out == "update 3: 1.50 nats\n"


def test_the_rater_of_the_page_votes(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [c for c in blocks("docs/extending.md", "python") if "asking = Rule(" in c]
    exec(compile(code, "docs/extending.md", "exec"), {})
    assert capsys.readouterr().out in ("1\n", "-1\n")


def test_the_parser_of_the_page_reads_votes() -> None:
    from lorarlhf.preferences.fields import RowFault

    read = snippet("docs/extending.md", "two_answers")["two_answers"]
    row = {"question": "Hi", "answers": ["Yes.", "No."], "chosen": 1}
    (vote,) = read(row)
    assert vote.prompt == "Hi" and vote.verdict.ranking == [[1], [0]]
    assert [text for text, _ in vote.completions] == ["Yes.", "No."]
    assert list(read(row | {"chosen": None})) == ["rows without a choice"]
    with pytest.raises(RowFault, match="chosen"):
        list(read(row | {"chosen": "both"}))


# ---- names of files and of what is in them


def test_every_file_and_name_of_extending_exists() -> None:
    text = text_of("docs/extending.md")
    named = re.findall(r"`((?:lorarlhf|tests|ui|recipes)/[\w/.-]+?\.\w+)(?::([\w.]+))?`", text)
    assert len(named) > 40
    missing = [
        f"{file}:{name}"
        for file, name in named
        if not (ROOT / file).is_file() or (name and name not in names_in(ROOT / file))
    ]
    assert missing == []


def test_links_to_other_sites_are_whole_and_encrypted() -> None:
    for document in DOCUMENTS:
        for address in re.findall(r"\]\((http[^)]*)\)", text_of(document)):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./#%~+-]*)?", address), address
