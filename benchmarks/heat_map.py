"""Milliseconds to draw an answer as a heat map, after the model's forward.

    .venv/bin/python benchmarks/heat_map.py
    .venv/bin/python benchmarks/heat_map.py --tokens 100 500 2000 --base smollm2-135m

A reward role with a random head on the small base reads an answer of so many tokens. The forward is
in a column of its own. Drawing is all that comes after it: the text of each token, the words with
their shares, and the HTML.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import bundled, read_rows
from lorarlhf.evaluation.heat_map import WordShares, heat_map
from lorarlhf.rewards.role import encode_answer, token_scores
from lorarlhf.rewards.token_shares import TokenShares, token_texts, words_of

PROMPT = [{"role": "user", "content": "What is a good way to start the day?"}]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    backbone = Backbone.load(args.base)
    backbone.add_role("reward")
    head = backbone.heads["reward"]
    head.full_weight = torch.randn(
        len(head.full_weight), generator=torch.Generator().manual_seed(0)
    )
    print("| tokens | words | forward, ms | drawing, ms (median) | the slowest |")
    print("|---|---|---|---|---|")
    for count in args.tokens:
        print(measure(backbone, answer_of(backbone, count), args.rounds), flush=True)


def answer_of(backbone: Backbone, count: int) -> str:
    """The bundled demonstrations one after the other, cut to so many tokens."""
    rows = read_rows(bundled("demonstrations"))
    text = "\n\n".join(row["completion"] for _, row in rows)
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    return backbone.tokenizer.decode(ids[:count])


def measure(backbone: Backbone, answer: str, rounds: int) -> str:
    """A row of the table."""
    encoded = encode_answer(backbone, PROMPT, answer)
    ids = encoded.ids[encoded.start : encoded.end]
    forward, scores = timed(lambda: token_scores(backbone, encoded), 3)
    drawing, (words, _) = timed(lambda: draw(backbone, ids, scores.tolist()), rounds)
    return (
        f"| {len(ids):,} | {words:,} | {median(forward):.0f} | {median(drawing):.1f} | "
        f"{max(drawing):.1f} |"
    )


def draw(backbone: Backbone, ids: list[int], shares: list[float]) -> tuple[int, str]:
    """The number of words, and their HTML."""
    found = TokenShares(sum(shares), token_texts(backbone, ids), shares, 0.0, exact=True)
    words = words_of(found)
    return len(words), heat_map(WordShares(found.score, words, found.rest, found.exact))


def timed(work: Callable[[], Any], rounds: int) -> tuple[list[float], Any]:
    """Milliseconds of each round, and the last result."""
    spans, result = [], None
    for _ in range(rounds):
        started = time.perf_counter()
        result = work()
        spans.append(1000 * (time.perf_counter() - started))
    return spans, result


if __name__ == "__main__":
    main()
