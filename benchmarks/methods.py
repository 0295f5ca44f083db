"""Every method on one set of simulated votes: `lorarlhf compare-methods`, by raters and seeds.

    python benchmarks/methods.py --seeds 3 --results benchmarks/results/methods
    python benchmarks/methods.py --rater brief --seeds 1 --minutes 3 --methods dpo ppo best-of-4
    python benchmarks/methods.py --quick

For each rater and seed the base answers bundled prompts twice, and the rater votes, a tenth of the
time against its own rule, until 150 of its votes name a better answer; its ties stay in the votes.
Where the prompts do not suffice, the base answers them again: `brief` calls most pairs of cut-off
answers equal. Then every method trains for the same minutes on the votes and is compared with the
base on the 60 held-out prompts, by the rater's rule without noise.

Every comparison is a folder in --out with its own table. What is done there is kept: the same
command goes on where it was stopped. With 8 methods of 8 minutes a comparison takes about 65
minutes on one core (`OMP_NUM_THREADS=1`). What each has found is also written to --results, and a
comparison that is there is not run again: so several computers that are alike can share the
comparisons. `--picture` writes win rate over KL, with the means over all comparisons.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
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
from lorarlhf.runtime.files import read_json, write_bytes, write_json

Row = dict[str, Any]
NOISE, TEMPERATURE = 0.1, 1.0
BATCH_SIZE = 64
PASSES = 10  # over the prompts, at most
SETTINGS = ("base", "votes", "minutes", "tokens", "methods")  # and the contents of --config


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
    parser.add_argument("--results", type=Path, help="one file a comparison (default: in --out)")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="write the picture here")
    parser.add_argument("--quick", action="store_true", help="few votes, seconds, two methods")
    args = parser.parse_args()
    if args.quick:
        args.votes, args.minutes, args.tokens = 12, 0.1, 24
        args.rater, args.methods = args.rater or ["cheerful"], args.methods or ["dpo", "grpo"]
    results = args.results or args.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(args, key) for key in SETTINGS}
    settings["config"] = args.config and args.config.read_text(encoding="utf-8")
    found = []
    for rater in args.rater or RATERS:
        for seed in range(args.seeds):
            known = results / f"{rater}-{seed}.json"
            one = stored(known, settings)
            if one is None:
                folder = args.out / f"{rater}-{seed}"
                make_project(folder, Rater.named(rater, NOISE, seed), args)
                one = compare(folder, rater, seed, args) | {"settings": settings}
                if not one.pop("failed"):
                    write_json(known, one)
            found.append(one)
    rows = means(found)
    counted = f"{len(found)} comparison{'s' if len(found) > 1 else ''}"
    print(f"\n## Means of {counted}\n\n{table(rows)}", flush=True)
    if args.picture:
        write_bytes(args.picture, draw(rows).encode("utf-8"))


def stored(file: Path, settings: Row) -> Row | None:
    """The result that a file has, or None; results of other settings end the program."""
    found = read_json(file)
    if found and found["settings"] != settings:
        raise SystemExit(f"{file} was measured with other settings: name another --results.")
    return found or None


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


def cast(
    backbone: Backbone, role: str, rater: Rater, prompts: Sequence[Any], wanted: int, tokens: int
) -> list[ImportedVote]:
    """Votes on two answers of a role to each prompt, until so many of them name a better one.

    After the last prompt the role answers them all again. After `PASSES` times the votes are fewer.
    """
    votes: list[ImportedVote] = []
    decided = 0
    for number, start in product(range(PASSES), range(0, len(prompts), BATCH_SIZE)):
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
                seed=100_000 * rater.seed + 10_000 * number + 10 * start + side,
            )
            for side in range(2)
        ]
        for prompt, *pair in zip(some, *sides, strict=True):
            if decided < wanted:
                votes.append(vote(rater, prompt, [Answer.of(one) for one in pair]))
                decided += is_decided(votes[-1])
    print(
        f"{rater.name}, seed {rater.seed}: {len(votes)} votes on answers of the {role}, {decided} "
        "of them name a better answer",
        file=sys.stderr,
        flush=True,
    )
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
    compared = (folder / "results" / "comparison.md").read_text(encoding="utf-8")
    print(f"\n## {rater}, seed {seed}\n\n{compared}", flush=True)
    methods = read_json(folder / "results" / "comparison.json")["methods"]
    rows = [figures(row) for row in methods if row["judges"]]
    return {"methods": rows, "failed": done.returncode == 1}


def figures(row: Row) -> Row:
    """One comparison's figures of a method, by the first judge, who is the rater."""
    won, answers = next(iter(row["judges"].values())), row["answers"]
    controlled, skills, kl = won["length_controlled"], row["skills"], answers["kl"]
    return {
        "method": row["method"],
        "rate": won["rate"],
        "ci95": won["ci95"],
        "equal": controlled["rate"] if controlled else None,
        "kl": answers["kl_bound"] if kl is None else kl,
        "kl_is_bound": kl is None,
        "length": answers["length"],
        "tasks": skills["change"] if skills else None,
        "minutes": row.get("minutes"),
        "peak_mb": row.get("peak_mb"),
    }


def means(found: Sequence[Row]) -> list[Row]:
    """For each method its figures' means over the comparisons, and the `rates` of each."""
    names = list(dict.fromkeys(row["method"] for one in found for row in one["methods"]))
    averaged = ("rate", "equal", "kl", "length", "tasks", "minutes", "peak_mb")
    rows = []
    for name in names:
        parts = [row for one in found for row in one["methods"] if row["method"] == name]
        row = {"method": name, "rates": [part["rate"] for part in parts]}
        row["ci95"] = [fmean(ends) for ends in zip(*(part["ci95"] for part in parts), strict=True)]
        for key in averaged:
            known = [part[key] for part in parts if part[key] is not None]
            row[key] = fmean(known) if known else None
        rows.append(row | {"kl_is_bound": parts[0]["kl_is_bound"]})
    return rows


def table(rows: Sequence[Row]) -> str:
    """The means as Markdown."""
    head = ["method", "win rate", "each", "at equal length", "KL, nats", "tokens", "tasks"]
    lines = [[*head, "minutes", "peak, GB"], ["---"] * 9]
    for row in rows:
        bound = "at most " if row["kl_is_bound"] else ""
        cells = [row["method"], f"{row['rate']:.0%}"]
        cells += [", ".join(f"{rate:.0%}" for rate in row["rates"])]
        cells += ["-" if row["equal"] is None else f"{row['equal']:.0%}"]
        cells += ["-" if row["kl"] is None else f"{bound}{row['kl']:.2f}", f"{row['length']:.1f}"]
        cells += ["-" if row["tasks"] is None else f"{100 * row['tasks']:+.0f}"]
        cells += ["-" if row["minutes"] is None else f"{row['minutes']:.1f}"]
        lines.append([*cells, "-" if row["peak_mb"] is None else f"{row['peak_mb'] / 1e3:.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(rows: Sequence[Row]) -> str:
    """Mean win rate over mean KL; the bars are the mean ends of the intervals."""
    results = [
        {"candidate": row["method"], "rate": row["rate"], "ci95": row["ci95"]} for row in rows
    ]
    shown = []
    for row in rows:
        name, bound = row["method"], row["kl_is_bound"]
        kl = {"kl": None if bound else row["kl"], "kl_bound": row["kl"] if bound else None}
        shown.append({"method": name, "candidate": name, "answers": kl})
    return picture(0, {"judge": "the rater's rule", "results": results}, shown)


if __name__ == "__main__":
    main()
