"""Three rounds of 50 votes, or one round of 150? `lorarlhf round`, by raters and seeds.

    python benchmarks/rounds.py --results benchmarks/results/rounds
    python benchmarks/rounds.py --rater brief --seeds 1 --method dpo
    python benchmarks/rounds.py --quick

With three rounds the rater votes on answers of the base, then on answers of the policy that the
first round made, and so on; the reward role learns from all votes so far. With one round all votes
are on answers of the base. A tenth of the votes go against the rater's own rule. The updates of PPO
(or the epochs of DPO) are shared out among the rounds. PPO trains for as long both ways; an epoch
of DPO is shorter in the first rounds, which have fewer votes.

Every way is a project in --out, and rounds that are done are kept: the same command goes on where
it was stopped. The last policy is compared with the base on the 60 held-out prompts by the rater's
rule without noise. A rater and a seed take about half an hour on 2 free cores. What each
way has found is also written to --results, and is not run again where it is there: so several
computers can share the work.
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from methods import NOISE, cast, stored

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.preferences.merge import add_votes
from lorarlhf.project.project import Project, create, is_project
from lorarlhf.project.rounds import KEPT, rounds
from lorarlhf.rewards.raters import RATERS, Rater
from lorarlhf.runtime.files import read_json, write_json
from lorarlhf.runtime.run import adapter_folder

VOTES, UPDATES, EPOCHS = 150, 30, 3  # together, over all rounds
WAYS = (3, 1)  # rounds
SETTINGS = ("base", "method", "votes", "updates", "epochs", "tokens")
PPO = {"rollout_batch_size": 16, "learning_rate": 5e-4, "value_learning_rate": 5e-4}


def main() -> None:
    """Run both ways for every rater and seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rater", choices=sorted(RATERS), action="append", help="several times")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", choices=("ppo", "dpo"), default="ppo")
    parser.add_argument("--tokens", type=int, default=48, help="of the longest answer")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_rounds"))
    parser.add_argument("--results", type=Path, help="one file each way (default: in --out)")
    parser.add_argument("--quick", action="store_true", help="few votes and updates, to try it")
    args = parser.parse_args()
    args.votes, args.updates, args.epochs = VOTES, UPDATES, EPOCHS
    if args.quick:
        args.votes, args.updates, args.epochs, args.tokens, args.seeds = 36, 3, 3, 12, 1
        args.rater = args.rater or ["cheerful"]
    args.results = args.results or args.out / "results"
    args.results.mkdir(parents=True, exist_ok=True)
    raters = args.rater or list(RATERS)
    found: dict[int, list[dict[str, Any]]] = {way: [] for way in WAYS}
    head = ["rater", "seed", "rounds", "wins (95%)", "KL, nats", "after each round"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    for name in raters:
        for seed in range(args.seeds):
            for way in WAYS:
                found[way].append(measure(name, seed, way, args))
                print(row(name, str(seed), way, found[way][-1]), flush=True)
    for way, results in found.items():
        mean = fmean(one["rate"] for one in results)
        print(f"| mean of {len(results)} | | {way} | {mean:.0%} | | |")


def row(name: str, seed: str, way: int, found: dict[str, Any]) -> str:
    """One row of the table."""
    low, high = found["ci95"]
    each = ", ".join(f"{rate:.0%}" for rate in found["each"])
    wins = f"{found['rate']:.0%} ({low:.0%} to {high:.0%})"
    return f"| {name} | {seed} | {way} | {wins} | {found['kl']:.1f} | {each} |"


def measure(name: str, seed: int, way: int, args: argparse.Namespace) -> dict[str, Any]:
    """The last policy of a project with so many rounds against the base, unless it is known."""
    folder = args.out / f"{name}-{seed}-{way}-{args.method}"
    known = args.results / f"{folder.name}.json"
    settings = {key: getattr(args, key) for key in SETTINGS}
    if found := stored(known, settings):
        return found
    if not is_project(folder):
        create(folder, base=args.base)
        with (folder / "project.yaml").open("a", encoding="utf-8") as file:
            file.write(f"method: {args.method}\n")
    project = Project(folder)
    for number in range(way):
        one_round(project, Rater.named(name, NOISE, seed), number, way, args)
    policies = [str(project.folder / one.steps["method"]["run"]) for one in rounds(project)[::-1]]
    results = [evaluated(policy, name, seed, args) for policy in policies]
    found = results[-1] | {"each": [one["rate"] for one in results], "settings": settings}
    write_json(known, found)
    return found


def one_round(
    project: Project, rater: Rater, number: int, way: int, args: argparse.Namespace
) -> None:
    """Votes on answers of the newest policy, then `lorarlhf round`; what is done is kept."""
    made = rounds(project)  # the newest first
    begun = len(made) > number
    if begun and (len(made) > number + 1 or made[0].verdict == KEPT):
        return
    voted = project.folder / f"voted-{number}"
    if not voted.exists():
        vote(project, rater, number, way, args)
        voted.touch()
    if not (begun and made[0].finished):
        sets = [f"max_new_tokens={args.tokens}", f"updates={args.updates // way}"]
        sets += [f"{key}={value}" for key, value in PPO.items()]
        if args.method == "dpo":
            sets = [f"epochs={args.epochs / way:g}"]
        words = [part for text in sets for part in ("--set", text)]
        lorarlhf("round", str(project.folder), "--anyway", *words)
    lorarlhf("round", str(project.folder), "--keep")


def vote(project: Project, rater: Rater, number: int, way: int, args: argparse.Namespace) -> None:
    """A round's share of the votes, on prompts of its own."""
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts"))]
    random.Random(rater.seed).shuffle(prompts)
    share = len(prompts) // way
    backbone, role = Backbone.load(args.base, seed=rater.seed), "base"
    if number:
        role, newest = "policy", project.folder / rounds(project)[0].steps["method"]["run"]
        backbone.load_role("policy", adapter_folder(newest, "policy"))
    some = prompts[number * share : (number + 1) * share]
    add_votes(project.store(), cast(backbone, role, rater, some, args.votes // way, args.tokens))


def evaluated(policy: str, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The win rate and KL of a run's policy against the base, by the rule without noise."""
    out = Path(policy) / "benchmark"
    if not (out / "eval.json").exists():
        words = ["eval", policy, "--rater", name, "--no-skills", "--best-of", "0"]
        words += ["--max-new-tokens", str(args.tokens), "--out", str(out), "--seed", str(seed)]
        lorarlhf(*words)
    data, run = read_json(out / "eval.json"), Path(policy).name
    (result,) = (one for one in data["judges"][0]["results"] if one["candidate"] == run)
    (figures,) = (one for one in data["candidates"] if one["name"] == run)
    return {"rate": result["rate"], "ci95": result["ci95"], "kl": figures["kl"]}


def lorarlhf(*words: str) -> None:
    """A command in a process of its own."""
    subprocess.run([sys.executable, "-m", "lorarlhf.cli", *words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
