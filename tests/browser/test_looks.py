"""Every page at three widths, light and dark: fits, can be read, named, reached by keyboard."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.project.run_labels import set_dropped, write_title
from tests.browser.projects import ME, ServedProject, part, put_runs, running
from tests.run_folders import ppo_rows, write_run

WIDTHS = {360: 740, 768: 1024, 1280: 800}
SCHEMES = ["light", "dark"]
RUN = "0001-sft"
PAGES = ["/", "/chat", "/compare", "/history", "/insights", "/train", "/runs", "/settings"]
LONG = "A_very_long_word_" * 12 + " and some more of it. " * 40
MARKDOWN = (
    "# Head\n\nI am ChatGPT, and **bold**.\n\n```python\nprint('wide', "
    + "1 + " * 40
    + "1)\n```\n\n"
    "| sea | land |\n|---|---|\n| blue | green |\n\n> quoted, with `code` and [a link](http://x.invalid)"
)
OPERABLE = {
    *("button", "link", "textbox", "searchbox", "combobox", "listbox", "checkbox", "radio"),
    *("slider", "spinbutton", "tab", "switch", "DisclosureTriangle"),
}

# The texts whose contrast is too low: alpha is blended down to the page, through all ancestors.
# What cannot be used now may be faint.
FAINT = """() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const colour = (text) => {
    if (!known.has(text)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = text;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      known.set(text, [r, g, b, a / 255]);
    }
    return known.get(text);
  };
  const over = (top, below) => {
    const [r, g, b, a] = top;
    return [r, g, b].map((value, n) => value * a + below[n] * (1 - a)).concat(1);
  };
  const background = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      const layer = colour(style.backgroundColor);
      if (layer[3] > 0) layers.unshift(layer);
      if (layer[3] === 1) break;
    }
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const light = (value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const found = [];
  const check = (node, style, text) => {
    if (!text.trim() || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
      return;
    if (node.closest(":disabled, [aria-disabled=true], [aria-hidden=true]")) return;
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) return;
    let opacity = 1;
    for (let at = node; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
    const below = background(node);
    const [r, g, b, a] = colour(style.color);
    const ink = over([r, g, b, a * opacity], below);
    const [low, high] = [luminance(ink), luminance(below)].sort((one, other) => one - other);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5))
      found.push(`${ratio.toFixed(2)} "${text.trim().slice(0, 40)}" ${node.tagName} ` +
        `${node.id || node.className} ${style.color} on ${below.slice(0, 3).map(Math.round)}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TEXTAREA", "OPTION"].includes(node.tagName)) continue;
    check(node, getComputedStyle(node), walker.currentNode.data);
    count += 1;
  }
  for (const field of document.querySelectorAll("input, textarea, select")) {
    if (["range", "checkbox", "radio", "hidden", "file"].includes(field.type)) continue;
    check(field, getComputedStyle(field), field.value);
    if (!field.value && field.placeholder)
      check(field, getComputedStyle(field, "::placeholder"), field.placeholder);
  }
  return [count, [...new Set(found)]];
}"""

# How the element with the focus looks, and what stands around it; the same once it lost it.
FOCUS = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const looks = () => {
    const names = ["outlineStyle", "outlineWidth", "outlineColor", "boxShadow", "borderColor"];
    const found = [];
    for (let at = node, n = 0; at && n < 4; at = at.parentElement, n += 1) {
      const style = getComputedStyle(at);
      const drawn = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
      found.push([drawn, ...names.slice(drawn ? 0 : 3).map((name) => style[name])].join());
    }
    return found.join("|");
  };
  const name = `${node.tagName} ${node.id || node.getAttribute("aria-label") || node.innerText}`;
  const box = node.getBoundingClientRect();
  const focused = looks();
  node.blur();
  return [name.slice(0, 60), focused !== looks(), box.width > 0 && box.height > 0];
}"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    """Without a model: answers that wait for votes, votes to look back on, and runs."""

    def runs(project: Project) -> None:
        write_run(project, RUN, rows=ppo_rows(5))
        dropped = write_run(project, "0002-ppo", rows=ppo_rows(50), config={"init": RUN})
        set_dropped(dropped, True)
        write_title(dropped, LONG[:80])

    with running(tmp_path_factory, runs=runs) as project:
        answers = ((MARKDOWN, "base"), (LONG, f"runs/{RUN}"))
        first = Verdict("ranked", [[0], [1]], "clearly", note=LONG)
        votes = [ImportedVote(f"Question {n}? {LONG}", answers, first, rater=ME) for n in range(3)]
        add_votes(project.store, votes)
        project.ask("What is a quiet hobby?", (MARKDOWN, LONG))
        yield project


@pytest.fixture(scope="module")
def talked(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """With a model to talk to, and a run."""
    base = make_base()
    runs = partial(put_runs, base=base, names=[RUN], tokens=8)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        yield project


def open_all(page: Page, path: str) -> None:
    """Wait until the page is there, and open what can be folded."""
    if path == "/":
        expect(part(page, "item")).to_be_visible()
        page.keyboard.press("p")
        page.keyboard.press("Escape")
        page.get_by_text("Add a note, or write a better answer").click()
        page.get_by_role("button", name="clearly").click()
    elif path == "/history":
        row = page.locator("#history .rows > li").first
        row.get_by_role("button").first.click()
        row.locator("summary").click()
        for name in ("Download votes", "Import votes from a file"):
            page.get_by_role("button", name=name).click()
        expect(page.locator("#export [data-part=status]")).to_contain_text("rows from")
    elif path == "/insights":
        expect(page.locator('[data-part="raters-body"]')).to_contain_text("3 votes")
        expect(page.locator('[data-part="status"]')).to_be_hidden()
    elif path == "/runs":
        for name in (RUN, "0002-ppo"):
            page.locator(f'.runs [data-row="{name}"] [type=checkbox]').check()
        page.locator(".runs .legend li").nth(1).wait_for()
        page.get_by_text("The numbers as a table").click()
        page.locator(".runs .name").first.click()
        expect(page.locator(".runs tr.details")).to_be_visible()
    elif path == "/train":
        expect(page.locator('.train [data-part="status"]')).to_be_hidden()
        for summary in page.locator(".train fieldset:visible summary").all():
            summary.click()
    elif path == "/settings":
        expect(page.locator("#settings-save")).to_be_enabled()
        expect(page.locator("#settings-save")).to_have_css("opacity", "1")  # it fades in
    elif path == "/chat":
        expect(page.locator("#chat-right-model input")).not_to_have_value("")
        page.get_by_role("button", name="System prompt and sampling").click()
        expect(page.locator("#chat-scored")).to_be_visible()
    elif path == "/compare":
        expect(page.locator("#compare-second input")).not_to_have_value("")
        page.get_by_role("button", name="Earlier comparisons").click()
        expect(page.locator("#compare-results")).to_be_visible()


def fine(page: Page) -> None:
    """At every width: nothing sideways, no text too faint, nothing without a name."""
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 1, f"at {width} pixels it is {wide} too wide"
        count, faint = page.evaluate(FAINT)
        assert count > 2 and not faint, f"at {width} pixels: " + "\n".join(faint)
        assert not nameless(page), f"at {width} pixels: {nameless(page)}"


def nameless(page: Page) -> list[str]:
    """What can be operated and has no name, as the browser tells a screen reader."""
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    found = [node for node in tree if node.get("role", {}).get("value") in OPERABLE]
    assert found
    bare = [
        node["backendDOMNodeId"]
        for node in found
        if not node["ignored"] and not node.get("name", {}).get("value", "").strip()
    ]
    described = [session.send("DOM.describeNode", {"backendNodeId": n})["node"] for n in bare]
    session.detach()
    return [f"{node['nodeName']} {node.get('attributes')}" for node in described]


def focus_is_seen(page: Page, steps: int) -> None:
    seen = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus is None:  # past the last one
            break
        name, changed, there = focus
        seen.append(name)
        assert changed or not there, f"nothing shows the focus on {name}"
    assert len(seen) >= min(steps, 5), seen


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_and_can_be_read(
    open_page: Any, project: ServedProject, path: str, scheme: str
) -> None:
    page = open_page(f"{project.url}{path}", dark=scheme == "dark")
    expect(page.locator(".gradio-container")).to_be_visible()
    open_all(page, path)
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    fine(page)
    page.locator("nav a").first.focus()
    focus_is_seen(page, 24)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_conversation_fits_and_can_be_read(
    open_page: Any, talked: ServedProject, scheme: str
) -> None:
    page = open_page(f"{talked.url}/chat", dark=scheme == "dark")
    open_all(page, "/chat")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat-votes")).to_be_hidden()
    model = page.locator("#chat-right-model")
    model.locator("input").click()
    model.get_by_role("option", name="base", exact=True).click()
    expect(model.get_by_role("option")).to_have_count(0)
    tokens = page.get_by_label("number input for Longest answer, in tokens")
    tokens.fill("16")
    tokens.press("Tab")
    page.get_by_label("Your message").fill(MARKDOWN)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-votes")).to_be_visible()
    fine(page)
    page.set_viewport_size({"width": 360, "height": 740})
    high_enough(page, "#chat-votes button, .ask button, .small-buttons button", 5)


def test_vote_buttons_can_be_hit_with_a_finger(open_page: Any, project: ServedProject) -> None:
    page = open_page(project.url, width=360, height=740, has_touch=True, is_mobile=True)
    expect(part(page, "item")).to_be_visible()
    high_enough(page, ".vote-widget .votes button", 10)


def high_enough(page: Page, buttons: str, at_least: int) -> None:
    """Forty pixels each, and inside the window."""
    boxes = [box.bounding_box() for box in page.locator(f":is({buttons}):visible").all()]
    assert len(boxes) >= at_least
    for box in boxes:
        assert box and box["height"] >= 40 and box["width"] >= 32, box
        assert box["x"] >= 0 and box["x"] + box["width"] <= 361, box


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_login_fits_and_can_be_read(
    open_page: Any, serve: Any, tmp_path: Path, scheme: str
) -> None:
    project = create(tmp_path / "project")
    set_password(project.store(), "ann", "quiet harbour 7")
    server = serve(project.folder, "--no-model", "--lan")
    page = open_page(server.url, dark=scheme == "dark")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    open_page.allow("401")
    fine(page)
    focus_is_seen(page, 2)
