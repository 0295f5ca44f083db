"""Every method on one set of simulated votes: `lorarlhf compare-methods`, by raters and seeds.

    python benchmarks/methods.py --out runs/benchmark_methods
    python benchmarks/methods.py --rater brief --seeds 1 --minutes 3 --methods dpo ppo best-of-4
    python benchmarks/methods.py --quick

For each rater and seed the base answers bundled prompts twice, and the rater votes, a tenth of the
time against its own rule, until 150 of its votes name a better answer; its ties stay in the votes.
Then every method trains for the same minutes on them and is compared with the base on the 60
held-out prompts, by the rater's rule without noise.

Every comparison is a folder in --out with its own table. What is done there is kept: the same
command goes on where it was stopped. With 8 methods of 5 minutes a comparison takes about an hour
on 2 free cores. `--picture` writes win rate over KL, with the means over all comparisons.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.method_table import picture
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import RANKED, TIE, ImportedVote, Verdict
from lorarlhf.project.project import create, is_project
from lorarlhf.rewards.raters import RATERS, Answer, Rater
from lorarlhf.runtime.files import read_json, write_bytes

Row = dict[str, Any]
NOISE, TEMPERATURE = 0.1, 1.0
BATCH_SIZE = 64


def main() -> None:
    """Run all comparisons and print one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rater", choices=sorted(RATERS), action="append", help="several times")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--votes", type=int, default=150, help="votes that name a better answer")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each method")
    parser.add_argument("--methods", nargs="+", help="as in compare-methods (default: all)")
    parser.add_argument("--tokens", type=int, default=48, help="of the longest answer")
    parser.add_argument("--config", type=Path, help="settings of the methods")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_methods"))
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="write the picture here")
    parser.add_argument("--quick", action="store_true", help="few votes, seconds, two methods")
    args = parser.parse_args()
    if args.quick:
        args.votes, args.minutes, args.tokens = 12, 0.1, 24
        args.rater, args.methods = args.rater or ["cheerful"], args.methods or ["dpo", "grpo"]
    found = []
    for rater in args.rater or RATERS:
        for seed in range(args.seeds):
            folder = args.out / f"{rater}-{seed}"
            make_project(folder, Rater.named(rater, NOISE, seed), args)
            found.append(compare(folder, rater, seed, args))
            compared = (folder / "results/comparison.md").read_text(encoding="utf-8")
            print(f"\n## {rater}, seed {seed}\n\n{compared}")
    rows = means(found)
    print(f"\n## Means of {len(found)} comparisons\n\n{table(rows)}", flush=True)
    if args.picture:
        write_bytes(args.picture, draw(rows).encode("utf-8"))
    (args.out / "means.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def make_project(folder: Path, rater: Rater, args: argparse.Namespace) -> None:
    """A project with the rater's votes on answers of the base, unless it is there already."""
    if is_project(folder):
        return
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts"))]
    random.Random(rater.seed).shuffle(prompts)
    backbone = Backbone.load(args.base)
    votes = cast(backbone, "base", rater, prompts, args.votes, args.tokens)
    project = create(folder, base=args.base)
    add_votes(project.store(), votes)
    decided = sum(map(is_decided, votes))
    print(f"{folder}: {len(votes)} votes, {decided} of them name a better answer", flush=True)


def cast(
    backbone: Backbone, role: str, rater: Rater, prompts: Sequence[Any], wanted: int, tokens: int
) -> list[ImportedVote]:
    """Votes on two answers of a role to each prompt, until so many of them name a better one."""
    votes: list[ImportedVote] = []
    decided = 0
    for start in range(0, len(prompts), BATCH_SIZE):
        if decided >= wanted:
            break
        some = prompts[start : start + BATCH_SIZE]
        sides = [
            generate(
                backbone,
                [as_conversation(prompt) for prompt in some],
                role=role,
                max_new_tokens=tokens,
                temperature=TEMPERATURE,
                batch_size=BATCH_SIZE,
                seed=1000 * rater.seed + 10 * start + side,
            )
            for side in range(2)
        ]
        for prompt, *pair in zip(some, *sides, strict=True):
            if decided < wanted:
                votes.append(vote(rater, prompt, [Answer.of(one) for one in pair]))
                decided += is_decided(votes[-1])
    return votes


def is_decided(one: ImportedVote) -> bool:
    """Whether a vote names a better answer."""
    return one.verdict.verdict == RANKED


def vote(rater: Rater, prompt: Any, pair: Sequence[Answer]) -> ImportedVote:
    """What the rater says of two answers, as a vote for the store."""
    choice = rater.vote(prompt, *pair)
    verdict = Verdict(RANKED, [[0], [1]] if choice > 0 else [[1], [0]]) if choice else Verdict(TIE)
    texts = tuple((one.text, "base") for one in pair)
    return ImportedVote(prompt, texts, verdict, rater=rater.name)


def compare(folder: Path, rater: str, seed: int, args: argparse.Namespace) -> Row:
    """`lorarlhf compare-methods` in a process of its own; what it has found."""
    words = ["compare-methods", str(folder), "--out", str(folder / "results"), "--seed", str(seed)]
    words += ["--minutes", f"{args.minutes:g}", "--rater", rater]
    words += ["--max-new-tokens", str(args.tokens)]
    words += ["--methods", *args.methods] if args.methods else []
    words += ["--config", str(args.config)] if args.config else []
    words += ["--no-skills"] if args.quick else []
    done = subprocess.run([sys.executable, "-m", "lorarlhf.cli", *words], stdout=subprocess.PIPE)
    if done.returncode not in (0, 1):  # 1: a method failed, and the table says so
        raise SystemExit(f"{folder}: compare-methods failed; its message is above")
    return read_json(folder / "results" / "comparison.json")


def means(found: Sequence[Row]) -> list[Row]:
    """For each method the means over the comparisons, by the first judge, who is the rater."""
    names = list(dict.fromkeys(row["method"] for one in found for row in one["methods"]))
    rows = []
    for name in names:
        parts = [row for one in found for row in one["methods"] if row["method"] == name]
        wins = [next(iter(row["judges"].values())) for row in parts if row["judges"]]
        if not wins:
            continue
        answers = [row["answers"] for row in parts if row["answers"]]
        equal = [win["length_controlled"]["rate"] for win in wins if win["length_controlled"]]
        tasks = [row["skills"]["change"] for row in parts if row["skills"]]
        peaks = [row["peak_mb"] for row in parts if row.get("peak_mb")]
        kl = [one["kl"] if one["kl"] is not None else one["kl_bound"] for one in answers]
        rows.append(
            {
                "method": name,
                "rates": [win["rate"] for win in wins],
                "intervals": [win["ci95"] for win in wins],
                "equal": fmean(equal) if equal else None,
                "kl": fmean(kl) if None not in kl else None,
                "kl_is_bound": answers[0]["kl"] is None,
                "length": fmean(one["length"] for one in answers),
                "tasks": fmean(tasks) if tasks else None,
                "minutes": fmean(row.get("minutes") or 0.0 for row in parts),
                "peak_mb": fmean(peaks) if peaks else None,
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The means as Markdown."""
    head = ["method", "win rate", "each", "at equal length", "KL, nats", "tokens", "tasks"]
    lines = [[*head, "minutes", "peak, GB"], ["---"] * 9]
    for row in rows:
        bound = "at most " if row["kl_is_bound"] else ""
        cells = [row["method"], f"{fmean(row['rates']):.0%}"]
        cells += [", ".join(f"{rate:.0%}" for rate in row["rates"])]
        cells += ["-" if row["equal"] is None else f"{row['equal']:.0%}"]
        cells += ["-" if row["kl"] is None else f"{bound}{row['kl']:.2f}", f"{row['length']:.1f}"]
        cells += ["-" if row["tasks"] is None else f"{100 * row['tasks']:+.0f}"]
        peak = row["peak_mb"]
        lines.append(
            [*cells, f"{row['minutes']:.1f}", "-" if peak is None else f"{peak / 1e3:.1f}"]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(rows: Sequence[Row]) -> str:
    """Mean win rate over mean KL; the bars are the mean ends of the intervals."""
    results, shown = [], []
    for row in rows:
        lows, highs = zip(*row["intervals"], strict=True)
        ends = [fmean(lows), fmean(highs)]
        results.append({"candidate": row["method"], "rate": fmean(row["rates"]), "ci95": ends})
        bound = row["kl_is_bound"]
        kl = {"kl": None if bound else row["kl"], "kl_bound": row["kl"] if bound else None}
        shown.append({"method": row["method"], "candidate": row["method"], "answers": kl})
    return picture(0, {"judge": "the rater's rule", "results": results}, shown)


if __name__ == "__main__":
    main()
