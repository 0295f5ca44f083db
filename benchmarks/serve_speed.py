"""`lorarlhf serve` with 1, 4 and 16 clients: requests a second, the first token, the reward.

    .venv/bin/python benchmarks/serve_speed.py runs/demo
    .venv/bin/python benchmarks/serve_speed.py mine --requests 32 --tokens 128

The target is a run, or a project with a policy. The same prompts with the same seeds are asked of a
server, by so many clients at once, and answered one after another as `lorarlhf chat` does it. Where
there is a reward role, all answers are scored. In 16 bit other batches, and an adapter that is not
merged into the weights, round differently, so that answers soon differ from those of chat; with
`--set compute_dtype=float32` all of them are the same. Needs the extra `test` for OpenAI's client.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from _memory import environment
from openai import OpenAI

from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.serve.models import Model, Models

PORT = 7871
TEMPERATURE = 0.7
Prompt = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """An answer: its text, its tokens, and the seconds until its first and its last one."""

    text: str
    tokens: int
    first: float
    last: float


def main() -> None:
    """Print a Markdown table, and how the answers compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="a run's folder, or a project's")
    parser.add_argument("--requests", type=int, default=32, help="of each row")
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--set", action="append", default=[], help="as of lorarlhf serve")
    args = parser.parse_args()
    rows = read_prompts(bundled("prompts"))[: args.requests]
    prompts = [as_messages(row["prompt"]) for row in rows]
    table = [
        "| | requests a second | tokens a second | first token, s (median) | the slowest |",
        "|---|---|---|---|---|",
    ]
    found: dict[int, list[Asked]] = {}
    with server(args):
        ask(prompts[0], 0, args.tokens)  # the first request loads the adapter
        for clients in args.clients:
            started = time.perf_counter()
            found[clients] = at_once(prompts, clients, args.tokens)
            seconds = time.perf_counter() - started
            table.append(row_of(f"serve, {clients} at once", found[clients], seconds))
            print(table[-1], file=sys.stderr, flush=True)
    texts = {clients: [one.text for one in answers] for clients, answers in found.items()}
    alone, seconds, scores = one_after_another(args, prompts, texts)
    table.append(row_of("chat, one after another", alone, seconds))
    print("\n".join(table) + "\n")
    for clients, ours in texts.items():
        same = sum(text == one.text for text, one in zip(ours, alone, strict=True))
        reward = f", with a mean reward of {mean(scores[clients]):.4f}" if scores else ""
        print(f"{clients} at once: {same} of {len(alone)} answers are those of chat{reward}.")
    if scores:
        print(f"The mean reward of chat's answers: {mean(scores[0]):.4f}.")


def as_messages(prompt: Any) -> Prompt:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def row_of(name: str, answers: Sequence[Asked], seconds: float) -> str:
    """A row of the table."""
    firsts = [one.first for one in answers if one.first]
    first = f"{median(firsts):.2f} | {max(firsts):.2f}" if firsts else " | "
    tokens = sum(one.tokens for one in answers)
    return f"| {name} | {len(answers) / seconds:.2f} | {tokens / seconds:.1f} | {first} |"


# ---- a server


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[None]:
    """A server of the target that answers, until the end of the block."""
    command = [sys.executable, "-m", "lorarlhf.cli", "serve", args.target, "--port", str(PORT)]
    command += [word for setting in args.set for word in ("--set", setting)]
    process = subprocess.Popen([*command, "--no-feedback"], env=environment(None))
    try:
        while not healthy():
            if process.poll() is not None:
                raise SystemExit("The server has ended; it said why.")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def healthy() -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=10) as answer:
            return bool(json.loads(answer.read())["status"] == "ready")
    except (OSError, urllib.error.URLError):
        return False


def at_once(prompts: Sequence[Prompt], clients: int, tokens: int) -> list[Asked]:
    """All prompts, asked by so many clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(ask, prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
        return [job.result() for job in jobs]


def ask(prompt: Prompt, seed: int, tokens: int) -> Asked:
    """One streamed answer."""
    client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0)
    started, first, text, used = time.perf_counter(), 0.0, "", 0
    asked: Any = {"model": "", "messages": prompt, "max_tokens": tokens, "seed": seed}
    asked |= {"temperature": TEMPERATURE, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            first = first or (time.perf_counter() - started if choice.delta.content else 0.0)
            text += choice.delta.content or ""
        used = chunk.usage.completion_tokens if chunk.usage else used
    return Asked(text, used, first, time.perf_counter() - started)


# ---- as chat does it


def one_after_another(
    args: argparse.Namespace, prompts: Sequence[Prompt], served: dict[int, list[str]]
) -> tuple[list[Asked], float, dict[int, list[float]]]:
    """The same answers in this process, their seconds, and scores if there is a reward role.

    The scores are by the number of clients; those of the answers in this process are under 0.
    """
    from lorarlhf.backbone.generation import generate
    from lorarlhf.project.load import load_backbone
    from lorarlhf.project.settings import resolve
    from lorarlhf.rewards.role import score_answers

    models = Models(args.target)
    settings = resolve("serve", sets=args.set, inherited=models.inherited())
    backbone = load_backbone(settings)
    model = models.find("")
    role = "base" if model.place == "base" else "policy"
    if role == "policy":
        backbone.load_role(role, model.place)
    found, started = [], time.perf_counter()
    for seed, prompt in enumerate(prompts):
        before = time.perf_counter()
        (answer,) = generate(
            backbone,
            [prompt],
            role=role,
            max_new_tokens=args.tokens,
            temperature=TEMPERATURE,
            seed=seed,
        )
        seconds = time.perf_counter() - before
        found.append(Asked(answer.text, len(answer.ids), 0.0, seconds))
    seconds = time.perf_counter() - started
    picking = best_of_model(models)
    if picking is None:
        return found, seconds, {}
    backbone.load_role("reward", picking.reward)
    texts = served | {0: [one.text for one in found]}
    scores = {clients: score_answers(backbone, prompts, some) for clients, some in texts.items()}
    return found, seconds, scores


def best_of_model(models: Models) -> Model | None:
    """The model that a reward role picks from, if there is one."""
    listed = [name for name in models.names() if name.startswith("best-of-")]
    return models.find(listed[0]) if listed else None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
