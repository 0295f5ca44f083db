"""What pays more for a rater's time: votes, or edited answers?

    python benchmarks/edits_vs_votes.py --out runs/edits_vs_votes.json

A simulated rater has so many minutes. With votes, a tenth of them wrong, it compares two answers of
the base at a time, and DPO learns from them. With edits it takes the better answer and improves it
by its rule (`lorarlhf/rewards/editor.py`), without mistakes; of these, SFT learns the edits, DPO
that each edit is better than the answer it was made from, and DITTO both and more
(`lorarlhf/stages/ditto.py`). All start from the untuned base. The figure is the win rate of 60
held-out answers against the base's by the rater's rule without noise, as a mean over the seeds,
with each seed's in brackets.

How long a vote and an edit take is assumed, not measured: 15 and 90 seconds, so an edit costs as
much as six votes. `--vote-seconds` and `--edit-seconds` change that. The editor of `cheerful` reads
eight answers before it edits one, and no time is added for that.

All stages have their default learning rates. `--rate` sets another one for DITTO's rounds, and
`--sft-rate` for supervised tuning, in DITTO too.

The answers of the base are those of `votes_to_accuracy.py`: sampled once, and kept in the cache
folder. `--quick` has one rater, one budget and a few tokens, to see that it runs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _pools import MAX_NEW_TOKENS, Pool, bundled_prompts, collect_votes, sample_pool

from lorarlhf import Backbone, generate, train_direct, train_ditto, train_sft
from lorarlhf.evaluation.win_rate import judge_pairs, win_rate
from lorarlhf.rewards.editor import EDITS, edit
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.run import Run
from lorarlhf.stages.ditto import DittoSettings
from lorarlhf.stages.dpo_orpo import DPOSettings
from lorarlhf.stages.sft import SFTSettings

MINUTES = (15, 30, 60)
VOTE_SECONDS, EDIT_SECONDS = 15.0, 90.0
NOISE, SEEDS, HELD_OUT = 0.1, 3, 60
LOOKED_AT = {"cheerful": 8}  # answers that the editor chooses from; 2 otherwise
METHODS = ("votes: dpo", "edits: sft", "edits: dpo", "edits: ditto")
Row = dict[str, Any]


def vote_rows(pool: Pool, rater: Rater, places: list[int], count: int) -> list[Row]:
    """Pairs from `count` votes, or from all that the pool gives."""
    return [
        {
            "prompt": pool.prompts[place],
            "chosen": pool.answers[place][chosen].text,
            "rejected": pool.answers[place][rejected].text,
        }
        for place, chosen, rejected in collect_votes(pool, rater, places, count)
        if pool.answers[place][chosen].text.strip() and pool.answers[place][rejected].text.strip()
    ]


def edit_rows(prompts: Sequence[Any], answers: Sequence[list[Answer]], rater: Rater) -> list[Row]:
    """An edit for each prompt, the answer it was made `of`, and all that the editor saw (`worse`).

    Blank edits are left out.
    """
    rows = []
    for prompt, seen in zip(prompts, answers, strict=True):
        better, best = edit(rater, seen).text, max(seen, key=rater.score).text
        if better.strip():
            worse = [one.text for one in seen if one.text.strip()]
            rows.append({"prompt": prompt, "completion": better, "of": best, "worse": worse})
    return rows


def edited_pairs(rows: Sequence[Row]) -> list[Row]:
    """Each edit over the answer that it was made of, as the votes of a project are exported."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["of"]}
        for row in rows
        if row["of"].strip() and row["of"] != row["completion"]
    ]


def looked_at(
    backbone: Backbone, pool: Pool, places: list[int], count: int, tokens: int
) -> list[list[Answer]]:
    """`count` answers of the base to each prompt: those of the pool, and further ones if needed."""
    answers = [list(pool.answers[place][:count]) for place in places]
    missing = count - len(answers[0]) if answers else 0
    if missing > 0:
        prompts = [pool.prompts[place] for place in places for _ in range(missing)]
        how: dict[str, Any] = {"max_new_tokens": tokens, "batch_size": 64, "seed": 10}
        more = [Answer.of(one) for one in generate(backbone, prompts, role="base", **how)]
        for number, row in enumerate(answers):
            row += more[number * missing : (number + 1) * missing]
    return answers


def train(
    method: str, backbone: Backbone, rows: list[Row], seed: int, args: argparse.Namespace
) -> int:
    """Train the policy; returns the number of rows that it learned from."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, method.replace(": ", "-"), {"seed": seed})
        if method == "edits: sft":
            kept = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
            train_sft(backbone, kept, run, SFTSettings(learning_rate=args.sft_rate))
        elif method == "edits: ditto":
            sizes = {"rounds": 1, "steps": 1} if args.quick else {}
            rates = {"learning_rate": args.rate, "sft_learning_rate": args.sft_rate}
            settings = DittoSettings(max_new_tokens=args.tokens, **rates, **sizes)
            train_ditto(backbone, rows, run, settings)
        else:
            if method == "edits: dpo":
                rows = edited_pairs(rows)
            if not rows:
                return 0
            train_direct(backbone, rows, run, "dpo", DPOSettings())
        return len(rows)


def measure(pool: Pool, rater: Rater, minutes: float, args: argparse.Namespace) -> Row:
    """For each method, its win rate with the votes or edits that so many minutes give."""
    held, tokens = args.held_out, args.tokens
    seen = len(pool.prompts) - held
    order = np.random.default_rng(rater.seed).permutation(seen).tolist()
    votes = vote_rows(pool, rater, order, int(60 * minutes / args.vote_seconds))
    places = order[: int(60 * minutes / args.edit_seconds)]
    found: Row = {}
    edits: list[Row] = []
    for method in args.method or METHODS:
        backbone = Backbone.load(args.base, seed=rater.seed)
        if method.startswith("edits") and not edits:
            count = LOOKED_AT.get(rater.name, 2)
            answers = looked_at(backbone, pool, places, count, tokens)
            edits = edit_rows([pool.prompts[place] for place in places], answers, rater)
        started = time.perf_counter()
        learned = votes if method == "votes: dpo" else edits
        rows = train(method, backbone, learned, rater.seed, args)
        trained = time.perf_counter() - started
        how: dict[str, Any] = {"max_new_tokens": tokens, "batch_size": 64, "seed": 100}
        ours = [Answer.of(one) for one in generate(backbone, pool.prompts[seen:], **how)]
        theirs = [row[0] for row in pool.answers[seen:]]
        outcomes = judge_pairs(Rater.named(rater.name, noise=0), ours, theirs, seed=rater.seed)
        won = win_rate(outcomes, list(range(held)), seed=rater.seed).to_dict()
        found[method] = {"rows": rows, "train_seconds": round(trained, 1), "win_rate": won}
        found[method]["words"] = float(np.mean([len(one.text.split()) for one in ours]))
        print(f"  {rater.name}, seed {rater.seed}, {method}: {won['rate']:.0%}", flush=True)
    return found


def print_line(name: str, minutes: float, results: list[Row]) -> None:
    """A line of the table: the mean win rate of each method over seeds, and each seed's."""
    cells = []
    for method in results[0]:
        rates = [found[method]["win_rate"]["rate"] for found in results]
        each = ", ".join(f"{rate:.0%}" for rate in rates)
        cells.append(f"{np.mean(rates):.0%} ({each})")
    print(f"| {name} | {minutes:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rater", choices=sorted(EDITS), action="append", help="several times")
    parser.add_argument(
        "--minutes", type=float, action="append", help="of the rater; several times"
    )
    parser.add_argument("--vote-seconds", type=float, default=VOTE_SECONDS, help="assumed")
    parser.add_argument("--edit-seconds", type=float, default=EDIT_SECONDS, help="assumed")
    parser.add_argument("--method", choices=METHODS, action="append", help="several times")
    parser.add_argument("--rate", type=float, help="learning rate of DITTO's rounds")
    parser.add_argument("--sft-rate", type=float, help="learning rate of supervised tuning")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="one rater and budget, 12 tokens")
    args = parser.parse_args()
    prompts, args.held_out, args.tokens = bundled_prompts(), HELD_OUT, MAX_NEW_TOKENS
    budgets, raters = args.minutes or list(MINUTES), args.rater or list(EDITS)
    if args.quick:
        prompts, args.seeds = [*prompts[:20], *prompts[-8:]], 1
        args.held_out, args.tokens = 8, 12
        budgets, raters = [4.5], ["brief"]
    pool = sample_pool(Backbone.load(args.base), args.tokens, 1.0, prompts)
    results: list[Row] = []
    for name in raters:
        for minutes in budgets:
            for seed in range(args.seeds):
                rater = Rater.named(name, noise=NOISE, seed=seed)
                found = measure(pool, rater, minutes, args)
                results.append({"rater": name, "minutes": minutes, "seed": seed, "found": found})
    shown = args.method or METHODS
    print(f"| rater | minutes | {' | '.join(shown)} |\n|---|---|{'---|' * len(shown)}")
    for name in raters:
        for minutes in budgets:
            key = (name, minutes)
            print_line(*key, [r["found"] for r in results if (r["rater"], r["minutes"]) == key])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        assumed = {"vote": args.vote_seconds, "edit": args.edit_seconds}
        rates = {"ditto": args.rate, "sft": args.sft_rate}  # None: the default
        written = {"assumed_seconds": assumed, "rates": rates, "results": results}
        args.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
