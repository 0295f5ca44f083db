"""Best of 4 and of 16 against the base: the win rate on held-out prompts, without any training.

    python benchmarks/best_of_n.py --out runs/best_of_n.json
    python benchmarks/best_of_n.py --votes 100 --temperature 0.7 --demos runs/hundred

For each of three raters and three seeds a head is fitted on votes, a tenth of them wrong, on
answers to the 280 bundled prompts. The base answers each of the 60 held-out prompts 16 times, and
the head picks the best of 16 and the best of each four. Every pick is compared, by the rater's rule
without noise, with four other answers of the base. `rule` is the win rate if the rule itself
picked. KL is the most that the choice can move the answers (`kl_bound`).

With `--demos`, the policies that `demo_seeds.py` left in that folder answer the held-out prompts
four times, and are compared with the base and with the picks. Name the temperature of their
training (0.7 in the demo), at which all answers are sampled, and their number of votes.

The answers are sampled once and kept in the cache folder: about 20 minutes on 2 free cores, half of
which `votes_to_accuracy.py` shares. Later runs take half a minute.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from _pools import (
    MAX_NEW_TOKENS,
    Pool,
    bundled_prompts,
    collect_votes,
    sample_pool,
    voted_features,
)
from votes_to_accuracy import remembering

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.backbone.roles import SHRINK_TOKENS
from lorarlhf.evaluation.win_rate import judge_pairs, win_rate
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.best_of import kl_bound
from lorarlhf.rewards.fit import HeadFit, fit_head
from lorarlhf.rewards.raters import RATERS, Answer, Rater
from lorarlhf.runtime.run import adapter_folder

COUNTS = (4, 16)
REPEATS = 4  # of a prompt in the pool of candidates, which has four answers to each: 16 together
NOISE, SEEDS = 0.1, 3
Answers = list[list[Answer]]
Array = np.ndarray


def fit_of(pool: Pool, rater: Rater, prompts: int, wanted: int, axes: Any) -> HeadFit:
    """The head fitted on votes on the first prompts of the pool."""
    seen = list(range(prompts))
    votes = collect_votes(pool, rater, seen, wanted)
    background = pool.mean[:prompts].reshape(-1, pool.mean.shape[-1])
    groups = [place for place, _, _ in votes]
    return fit_head(*voted_features(pool.mean, votes), groups, background=[background], axes=axes)


def role_scores(fit: HeadFit, features: Array, answers: Answers) -> Array:
    """Scores (P, A) as the reward role gives them: those of short answers are shrunk."""
    counts = np.array([[max(1, (one.tokens or 0) - one.ended) for one in row] for row in answers])
    return fit.score(features) * counts / (counts + SHRINK_TOKENS)


def best(values: Array, answers: Answers, count: int) -> Answers:
    """For each prompt the answer with the highest value of each `count` answers."""
    parts = values.reshape(len(values), -1, count).argmax(axis=2)
    return [
        [row[part * count + place] for part, place in enumerate(places)]
        for row, places in zip(answers, parts, strict=True)
    ]


def compare(rater: Rater, ours: Answers, theirs: Answers) -> dict[str, Any]:
    """The win rate of every answer against every answer of the other side to the same prompt."""
    pairs = [
        (place, one, other)
        for place, (row, others) in enumerate(zip(ours, theirs, strict=True))
        for one in row
        for other in others
    ]
    groups, left, right = (list(part) for part in zip(*pairs, strict=True))
    return win_rate(judge_pairs(rater, left, right, seed=0), groups).to_dict()


def measure(
    rater: Rater, fit: HeadFit, candidates: Array, texts: Answers, others: dict[str, Answers]
) -> dict[str, Any]:
    """Win rates of the picks by the head and by the rule against each other side."""
    by_role = role_scores(fit, candidates, texts)
    by_rule = np.array([[rater.score(one) for one in row] for row in texts])
    found: dict[str, Any] = {}
    for count in COUNTS:
        for picker, values in (("reward", by_role), ("rule", by_rule)):
            picks = best(values, texts, count)
            for side, theirs in others.items():
                found[f"best of {count} by {picker} against {side}"] = compare(rater, picks, theirs)
    if "ppo" in others:
        found["ppo against base"] = compare(rater, others["ppo"], others["base"])
    return found


def candidates_of(pool: Pool, prompts: int) -> tuple[Array, Answers]:
    """Features (P, 16, F) and answers of a pool whose prompts are repeated one after another."""
    width = pool.mean.shape[-1]
    features = pool.mean.reshape(REPEATS, prompts, -1, width).swapaxes(0, 1)
    answers = [
        [one for repeat in range(REPEATS) for one in pool.answers[repeat * prompts + place]]
        for place in range(prompts)
    ]
    return features.reshape(prompts, -1, width), answers


def ppo_answers(
    backbone: Backbone, run: Path, prompts: list[Any], tokens: int, temperature: float
) -> Answers:
    """Four answers of a run's policy to each prompt."""
    how: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature, "batch_size": 64}
    backbone.load_role("policy", adapter_folder(run, "policy"))
    rows: Answers = [[] for _ in prompts]
    for seed in range(4):
        sampled = generate(backbone, prompts, seed=100 + seed, **how)
        for row, one in zip(rows, sampled, strict=True):
            row.append(Answer.of(one))
    return rows


def print_table(name: str, results: list[dict[str, Any]]) -> None:
    """The mean win rate over seeds, and that of each seed."""
    for label in results[0]:
        rates = [found[label]["rate"] for found in results]
        bound = next((f"{kl_bound(n):.2f}" for n in COUNTS if f"best of {n} " in label), "")
        each = ", ".join(f"{rate:.0%}" for rate in rates)
        print(f"| {name} | {label} | {np.mean(rates):.0%} | {each} | {bound} |", flush=True)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rater", choices=sorted(RATERS), action="append", help="several times")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--temperature", type=float, default=1.0, help="of all answers")
    parser.add_argument("--votes", type=int, default=150, help="that a head is fitted on")
    parser.add_argument(
        "--demos", type=Path, help="the folder in which demo_seeds.py left policies"
    )
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="80 prompts, 24 tokens, one seed")
    args = parser.parse_args()
    prompts, seeds, held_out, tokens = bundled_prompts(), args.seeds, 60, MAX_NEW_TOKENS
    if args.quick:
        prompts, seeds, held_out, tokens = prompts[:80], 1, 20, 24
    backbone = Backbone.load(args.base)
    _, axes = style_axes(backbone, log=print)
    pool = sample_pool(backbone, tokens, args.temperature, prompts)
    # The bundled held-out prompts are the last ones.
    unseen = prompts[-held_out:]
    others = {"base": pool.answers[-held_out:]}
    repeated = sample_pool(backbone, tokens, args.temperature, unseen * REPEATS)
    features, texts = candidates_of(repeated, len(unseen))
    results: dict[str, Any] = {}
    print("| rater | comparison | wins | each seed | KL at most |\n|---|---|---|---|---|")
    for name in args.rater or RATERS:
        results[name] = []
        for seed in range(seeds):
            rater = Rater.of(remembering(RATERS[name]), noise=NOISE, seed=seed)
            fit = fit_of(pool, rater, len(prompts) - held_out, args.votes, axes)
            if args.demos:
                run = args.demos / f"{name}-{seed}"
                others["ppo"] = ppo_answers(backbone, run, unseen, tokens, args.temperature)
            results[name].append(measure(rater, fit, features, texts, others))
        print_table(name, results[name])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
