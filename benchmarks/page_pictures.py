"""Takes the pictures of the pages in docs/images: a real project, the small base, a real Chromium.

    .venv/bin/python benchmarks/page_pictures.py           # about a quarter of an hour

The script makes a project, tunes the base on the demonstrations and votes by the rule of a
simulated rater. It trains a reward model and two policies as jobs. Then it takes screenshots of
each page at three widths in light colours, and at the largest width in dark colours.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.rating_pages import chromium, serving
from lorarlhf.preferences.settings import write_setting
from lorarlhf.project.jobs import list_jobs, start_job
from lorarlhf.project.project import Project, create
from lorarlhf.rewards.raters import Answer, cheerful_score

OUT = Path(__file__).parents[1] / "docs" / "images"
PAGES = ("rate", "chat", "compare", "history", "insights", "train", "runs", "settings")
SIZES = {360: 740, 768: 1024, 1280: 800}
VOTES = 30
JOBS = (("reward",), ("dpo",), ("ppo", "--set", "updates=6", "--set", "max_new_tokens=32"))
MAKING = {"max_new_tokens": 64}
QUESTION = "What is a good way to start the day?"


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--project", type=Path, help="a project with a tuned policy (default: make one)"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, chromium() as browser:
        space = Project(args.project) if args.project else tuned(Path(folder) / "my-assistant")
        with serving(space) as url:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            vote(page, url, space)
            train(space)
            chat(page, url)
            compare(page, url)
            page.close()
            photograph(browser, url, args.out)


def tuned(folder: Path) -> Project:
    """A new project whose base is tuned on the demonstrations."""
    space = create(folder)
    command = [sys.executable, "-m", "lorarlhf.cli", "sft", str(space.folder), "--data"]
    subprocess.run([*command, "recipes/data/demonstrations.jsonl"], check=True)
    write_setting(space.store(), "collect", MAKING)
    return space


def vote(page: Any, url: str, space: Project) -> None:
    """Vote with the keys, for the friendlier answer."""
    page.goto(url)
    answers = page.locator(".vote-widget[data-streaming='no'] .answer .body")
    end = time.monotonic() + 600
    while space.store().count() < VOTES:
        if time.monotonic() > end:
            raise TimeoutError("no new votes for ten minutes")
        page.wait_for_timeout(400)
        texts = answers.all_inner_texts()
        if len(texts) == 2 and all(len(text) > 1 for text in texts):
            first, second = (cheerful_score(Answer(text)) for text in texts)
            page.keyboard.press("1" if first >= second else "2")


def train(space: Project) -> None:
    """Run some stages as jobs, as the Train page does, and wait for them."""
    for stage, *words in JOBS:
        start_job(space, [stage, str(space.folder), *words], stage.upper(), stage)
    while any(job.alive for job in list_jobs(space)):
        time.sleep(1)
    failed = [f"{job.title}: {job.message}" for job in list_jobs(space) if job.state != "done"]
    if failed:
        raise RuntimeError(f"jobs failed: {'; '.join(failed)}")


def chat(page: Any, url: str) -> None:
    """Ask both models a question."""
    page.goto(f"{url}/chat")
    choose(page, "#chat-right-model", "base")
    page.locator("#chat-text textarea").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator("#chat-votes").wait_for(timeout=300_000)


def compare(page: Any, url: str) -> None:
    """Start a blind comparison and vote a few times."""
    page.goto(f"{url}/compare")
    page.locator("#compare-start").click()
    for _ in range(3):
        page.locator(".vote-widget .answer .body p").first.wait_for(timeout=300_000)
        page.wait_for_timeout(1500)
        page.keyboard.press("1")
        page.wait_for_timeout(500)
    page.locator(".vote-widget .answer .body p").first.wait_for(timeout=300_000)


def choose(page: Any, field: str, name: str) -> None:
    """Pick an entry of a dropdown."""
    page.locator(f"{field} input").click()
    page.get_by_role("option", name=name, exact=True).first.click()


def photograph(browser: Any, url: str, out: Path) -> None:
    """Save every page at three widths, and in dark colours at the widest."""
    looks = [(width, "light") for width in SIZES] + [(1280, "dark")]
    for width, scheme in looks:
        context = browser.new_context(
            viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme
        )
        page = context.new_page()
        for name in PAGES:
            page.goto(url if name == "rate" else f"{url}/{name}")
            page.wait_for_timeout(2500)
            if name == "history":
                page.locator("#history .rows > li button").first.click()
                page.wait_for_timeout(500)
            if name == "runs":
                for place in (0, 1):
                    page.locator(".runs [data-row] [type=checkbox]").nth(place).check()
                page.wait_for_timeout(1500)
            page.screenshot(path=out / f"{name}-{width}-{scheme}.png")
        context.close()


if __name__ == "__main__":
    main()
