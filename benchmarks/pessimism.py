"""Does it help to trust a score less where the votes say little: score minus lambda deviations?

    python benchmarks/pessimism.py --out runs/pessimism.json

The cheap form of the question is best of 4. The pool, the raters and the splits are those of
`votes_to_accuracy.py`. A head is fitted on 150 votes, of which none, a tenth or a quarter are
wrong, and picks one of the four answers to each held-out prompt, by its score minus 0, 0.5, 1 or 2
standard deviations. What counts is the true score of the pick by the rater's rule without noise,
in standard deviations of all answers, above the mean of the four:

- best possible: of the answer that the rule itself picks;
- 0: of the pick without pessimism;
- the others: how much more the pick with pessimism has, with the 95% interval over ten seeds.

Once the answers are sampled (`votes_to_accuracy.py` takes the same), this takes a few minutes.

    python benchmarks/pessimism.py --ppo --rater cheerful --out runs/pessimism_ppo

trains the demo's PPO against a reward role with 10% and with 25% wrong votes, with and without
pessimism, until the policy is far from the base, and prints reward and rule over the KL. The rule
is the held-out judge. There are four runs of 30 updates for each rater and seed (name fewer with
`--rater`, `--seeds` and `--strengths`), so this takes hours. Runs that are done are kept; name
another folder if the settings below have changed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from _pools import (
    HELD_OUT,
    MAX_NEW_TOKENS,
    Pool,
    bundled_prompts,
    collect_votes,
    mean_and_margin,
    sample_pool,
    split_prompts,
    voted_features,
)
from votes_to_accuracy import KINDS, RULES, remembering

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.roles import SHRINK_TOKENS
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.evaluation.over_optimisation import describe, measurements
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.deviation import VOTES, ScoreDeviation
from lorarlhf.rewards.functions import rater_reward
from lorarlhf.rewards.raters import RATERS, Rater, Rule
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.run import Run
from lorarlhf.stages.conversations import prompt_conversations
from lorarlhf.stages.inputs import RewardSpec
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.trl.arguments import Placement, trl_arguments

STRENGTHS = (0.0, 0.5, 1.0, 2.0)
NOISES = (0.0, 0.1, 0.25)
WANTED = 150
SEEDS = 10
# The demo's, but for a lower price of KL and more updates, so that the policy goes too far.
PPO: dict[str, Any] = {
    "learning_rate": 5e-4,
    "value_learning_rate": 5e-4,
    "kl_coef": 0.02,
    "temperature": 0.7,
    "rollout_batch_size": 16,
    "num_minibatches": 2,
    "micro_batch_size": 8,
    "max_new_tokens": 48,
    "updates": 30,
    "eval_steps": 20,
    "eval_kl_steps": 4.0,
}
Array = np.ndarray

# ---- best of 4


def scored(
    pool: Pool, votes: list[tuple[int, int, int]], seen: list[int], unseen: list[int], axes: Any
) -> tuple[Array, Array]:
    """Scores and deviations of all answers to the held-out prompts as the reward role has them."""
    width = pool.mean.shape[-1]
    fit = VoteFit(axes, pool.mean[seen].reshape(-1, width))
    chosen, rejected = voted_features(pool.mean, votes)
    fit.add_all(chosen, rejected, [place for place, _, _ in votes])
    rows = pool.mean[unseen].reshape(-1, width)
    found = fit.posterior().scores(rows)
    counts = np.array([max(1, (o.tokens or 0) - o.ended) for p in unseen for o in pool.answers[p]])
    shape = (len(unseen), -1)
    return tuple((x * counts / (counts + SHRINK_TOKENS)).reshape(shape) for x in found)  # type: ignore[return-value]


def picked(truth: Array, values: Array) -> float:
    """The mean true score of the answers with the highest values, (P, A) each."""
    return float(np.take_along_axis(truth, values.argmax(axis=1)[:, None], axis=1).mean())


def measure(pool: Pool, rule: Rule, axes: Any, seeds: int, held_out: int) -> dict[str, Any]:
    """By noise: what each strength's picks gain over the mean of the four, one number a seed."""
    all_true = np.array([[rule.score(one) for one in row] for row in pool.answers])
    all_true = (all_true - all_true.mean()) / all_true.std()
    found: dict[str, Any] = {}
    for noise in NOISES:
        cells: dict[str, list[float]] = {"best possible": [], "votes": []}
        for seed in range(seeds):
            rater = Rater.of(rule, noise=noise, seed=seed)
            seen, unseen = split_prompts(len(pool.prompts), held_out, seed)
            votes = collect_votes(pool, rater, seen, WANTED)
            scores, deviations = scored(pool, votes, seen, unseen, axes)
            truth = all_true[unseen] - all_true[unseen].mean(axis=1, keepdims=True)
            cells["votes"].append(len(votes))
            cells["best possible"].append(picked(truth, truth))
            for strength in STRENGTHS:
                gain = picked(truth, scores - strength * deviations)
                cells.setdefault(str(strength), []).append(gain)
        found[str(noise)] = cells
    return found


def cell(values: Any, signed: bool = False) -> str:
    """The mean with its 95% interval."""
    mean, margin = mean_and_margin(list(values))
    return f"{mean:+.3f} ± {margin:.3f}" if signed else f"{mean:.2f}"


def print_gains(title: str, by_noise: dict[str, Any]) -> None:
    """One row of a Markdown table for each noise."""
    for noise, cells in by_noise.items():
        plain = np.array(cells["0.0"])
        more = [cell(np.array(cells[str(s)]) - plain, signed=True) for s in STRENGTHS[1:]]
        row = [title, f"{float(noise):.0%}", cell(cells["best possible"]), cell(plain), *more]
        print("| " + " | ".join(row) + " |", flush=True)


def best_of_four(args: argparse.Namespace) -> None:
    """Measure, print and keep what pessimism does for the best of 4."""
    prompts, seeds, held_out, tokens = bundled_prompts(), args.seeds, HELD_OUT, MAX_NEW_TOKENS
    if args.quick:
        prompts, seeds, held_out, tokens = prompts[:80], 1, 20, 24
    backbone = Backbone.load(args.base)
    _, axes = style_axes(backbone, log=print)
    pool = sample_pool(backbone, tokens, 1.0, prompts)
    del backbone  # the fits need the features alone
    results: dict[str, Any] = {}
    head = ["rater", "wrong votes", "best possible", "0", *(f"{s} more" for s in STRENGTHS[1:])]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in args.rater or RULES:
        results[name] = measure(pool, remembering(RULES[name]), axes, seeds, held_out)
        print_gains(name, results[name])
    for kind, rules in KINDS.items():
        some = [results[name] for name in rules if name in results]
        if len(some) > 1:
            means = {
                noise: {key: np.mean([r[noise][key] for r in some], axis=0) for key in cells}
                for noise, cells in some[0].items()
            }
            print_gains(f"mean of those {kind}", means)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# ---- PPO


def train(args: argparse.Namespace, name: str, noise: float, strength: float, seed: int) -> Path:
    """One PPO run with the rule as its judge; a finished one is kept."""
    folder = args.out / f"{name}-noise{noise}-pessimism{strength}-seed{seed}"
    if (folder / "run.json").exists() and '"done"' in (folder / "run.json").read_text(
        encoding="utf-8"
    ):
        return folder
    backbone = Backbone.load(args.base)
    train_rows, heldout = (read_prompts(bundled(n)) for n in ("prompts", "prompts_heldout"))
    settings = PPO | {"reward_pessimism": strength}
    tokens = MAX_NEW_TOKENS
    if args.quick:
        train_rows, heldout, tokens = train_rows[:40], heldout[:4], 12
        settings |= {"updates": 2, "max_new_tokens": 12, "rollout_batch_size": 4}
        settings |= {"micro_batch_size": 2, "critic_warmup": 0}
    chats = [[{"role": "user", "content": row["prompt"]}] for row in train_rows]
    pool = sample_pool(backbone, tokens, 1.0, chats)
    rater = Rater.named(name, noise=noise, seed=seed)
    votes = collect_votes(pool, rater, list(range(len(chats))), WANTED)
    pairs = [
        {
            "prompt": train_rows[place]["prompt"],
            "chosen": pool.answers[place][a].text,
            "rejected": pool.answers[place][b].text,
        }
        for place, a, b in votes
    ]
    run = Run(folder, "ppo", {"seed": seed})
    run.base(backbone)
    train_reward_model(backbone, pairs, run, RewardSettings(epochs=0.0))
    deviation = ScoreDeviation.load(folder / VOTES, backbone)
    spec = RewardSpec(judges=[rater_reward(rater)], deviation=deviation)
    config = trl_arguments(PPOConfig, Placement.of(backbone, run), settings, {})
    rows, others = (prompt_conversations(part, plain=False) for part in (train_rows, heldout))
    run.finish("done", train_ppo(backbone, rows, run, config, spec, eval_rows=others))
    return folder


def print_course(folder: Path, strength: float) -> None:
    """Reward without pessimism, and rule, over the KL of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    deviations = {
        row["step"]: row.get("eval_reward_deviation", 0.0) for row in rows if "eval_score" in row
    }
    measured = measurements(rows)
    print(f"\n{folder.name}\n\n| KL, nats | reward | rule |\n|---|---|---|")
    for one in measured:
        reward = one.score + strength * deviations[one.step]
        print(f"| {one.kl:.1f} | {reward:.2f} | {one.judge:.3f} ± {one.judge_error:.3f} |")
    if len(measured) > 1:
        print(f"\n{describe(measured)}", flush=True)


def ppo(args: argparse.Namespace) -> None:
    """Train and print every combination."""
    args.out = args.out or Path("runs/pessimism_ppo")
    for seed in range(args.seeds):
        for name in args.rater or RATERS:
            for noise in (0.1, 0.25):
                for strength in args.strengths:
                    print_course(train(args, name, noise, strength, seed), strength)


def main() -> None:
    """Best of 4, or PPO."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rater", choices=sorted(RULES), action="append", help="several times")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--ppo", action="store_true", help="train PPO instead of picking answers")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0], help="of --ppo")
    parser.add_argument("--out", type=Path, help="a JSON file; with --ppo a folder for the runs")
    parser.add_argument("--quick", action="store_true", help="few prompts, short answers, one seed")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 1
    ppo(args) if args.ppo else best_of_four(args)


if __name__ == "__main__":
    main()
