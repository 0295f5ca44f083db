"""How well the reward head orders held-out answers, by the number of votes it was fitted on.

Three simulated raters with 10% noise vote on the base's answers to the bundled prompts. For each of
five seeds, 60 prompts are held out and all votes are on the others. The fit is then judged on pairs
of answers to the held-out prompts, by the rater's rule without noise and without near ties.

    python benchmarks/votes_to_accuracy.py --out runs/votes_to_accuracy.json

The first run takes about 25 minutes on 2 free cores, because it samples 1,360 answers of 32 tokens
and 1,360 of 64 and keeps their features in the cache folder. Later runs take half a minute.
`--quick` uses 80 prompts, 24 tokens and one seed.

The columns are:

- axes: the fit with the style axes;
- no_trunk: the same on the final states alone, without the trunk's output;
- other_axes: without the axes of this rater's own preference, as for a preference that is not
  among the axes;
- no_axes: without any axes;
- last_token: a head on the last token;
- longer: "the longer answer wins" (by words);
- chance.

Near ties: the first width is the rater's own, with which it votes. If the rule's score is
continuous, a wider one follows. For `cheerful` it is 0.37, the change that one word of average
strength makes to a neutral text: VADER's words have a mean strength of 1.54, and
1.54 / sqrt(1.54^2 + 15) = 0.37. Below that, answers differ by less than one word. For `brief` it is
0.03, about five words in thirty.
"""

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.fetch import cache_folder
from lorarlhf.backbone.generation import generate
from lorarlhf.backbone.storage import fingerprint
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.features import answer_features
from lorarlhf.rewards.fit import fit_head
from lorarlhf.rewards.raters import TIE_WIDTH, Answer, Rater

ANSWERS_PER_PROMPT = 4
HELD_OUT = 60
NOISE = 0.1
VOTES = (25, 50, 100, 150, 200)
SEEDS = 5
# Only longer answers have lists and endings. Sentiment shows from the start.
MAX_NEW_TOKENS = {"cheerful": 32, "brief": 64, "plain": 64}
WIDTHS = {
    "cheerful": (TIE_WIDTH["cheerful"], 0.37),
    "brief": (TIE_WIDTH["brief"], 0.03),
    "plain": (TIE_WIDTH["plain"],),
}
OWN_AXES = {
    "cheerful": (
        "cheerful / gloomy",
        "enthusiastic / neutral",
        "encouraging / critical",
        "happy topic / sad topic",
    ),
    "brief": ("short sentences / long sentences", "direct / roundabout"),
    "plain": ("prose / list", "exclaiming / calm"),
}
COLUMNS = ("axes", "no_trunk", "other_axes", "no_axes", "last_token", "longer", "chance")


@dataclass
class Pool:
    """A answers to each of P prompts: the texts, and features (P, A, F) with two poolings."""

    prompts: list[Any]
    answers: list[list[Answer]]
    mean: np.ndarray
    last: np.ndarray


def sample_pool(
    backbone: Backbone, max_new_tokens: int, temperature: float, prompts: list[Any]
) -> Pool:
    """Sample answers and compute features, or read them from the cache."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    where = f"{fingerprint(backbone)}-{backbone.split}"
    name = f"votes-{where}-{len(prompts)}x{max_new_tokens}-t{temperature}"
    path = cache_folder() / "benchmarks" / f"{name}.safetensors"
    if path.is_file():
        with safe_open(str(path), framework="numpy") as file:
            note = json.loads(file.metadata()["answers"])
            if note["prompts"] == prompts:
                answers = [[Answer(*one) for one in row] for row in note["answers"]]
                return Pool(prompts, answers, file.get_tensor("mean"), file.get_tensor("last"))
    rows: list[list[Answer]] = [[] for _ in prompts]
    features: dict[str, list[np.ndarray]] = {"mean": [], "last": []}
    for seed in range(ANSWERS_PER_PROMPT):
        started = time.perf_counter()
        sampled = generate(
            backbone,
            prompts,
            role="base",
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=64,
            seed=seed,
        )
        texts = [one.text for one in sampled]
        for pooling, kept in features.items():
            kept.append(answer_features(backbone, prompts, texts, pooling=pooling))
        for row, one in zip(rows, sampled, strict=True):
            row.append(Answer(one.text, one.ended, len(one.ids)))
        seconds = time.perf_counter() - started
        print(f"  {len(prompts)} answers of {max_new_tokens} tokens in {seconds:.0f} s", flush=True)
    stacked = {pooling: np.stack(kept, axis=1) for pooling, kept in features.items()}
    note = {"prompts": prompts, "answers": [[vars(one) for one in row] for row in rows]}
    note["answers"] = [[[o["text"], o["ended"], o["tokens"]] for o in r] for r in note["answers"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stacked, str(path), metadata={"answers": json.dumps(note)})
    return Pool(prompts, rows, stacked["mean"], stacked["last"])


def collect_votes(
    pool: Pool, rater: Rater, prompts: list[int], wanted: int
) -> list[tuple[int, int, int]]:
    """Votes (prompt, chosen, rejected) without ties, one pair of every prompt at a time."""
    votes: list[tuple[int, int, int]] = []
    # The first two pairs share no answer; the others repeat answers.
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)):
        for place in prompts:
            one, other = pool.answers[place][a], pool.answers[place][b]
            vote = rater.vote(pool.prompts[place], one, other)
            if vote and len(votes) < wanted:
                votes.append((place, a, b) if vote > 0 else (place, b, a))
    return votes


def held_out_pairs(
    scores: np.ndarray, prompts: list[int], width: float
) -> list[tuple[int, int, int]]:
    """All pairs (prompt, better, worse) whose true scores (P, A) differ by more than `width`."""
    return [
        (place, a, b) if scores[place, a] > scores[place, b] else (place, b, a)
        for place in prompts
        for a, b in itertools.combinations(range(scores.shape[1]), 2)
        if abs(scores[place, a] - scores[place, b]) > width * (1 + 1e-9)
    ]


def pair_accuracy(scores: np.ndarray, pairs: list[tuple[int, int, int]]) -> float:
    """Share of pairs that the scores (P, A) order correctly; ties count half."""
    margins = np.array([scores[place, a] - scores[place, b] for place, a, b in pairs])
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def fitted_scores(
    features: np.ndarray, votes: list[tuple[int, int, int]], seen: list[int], axes: Any
) -> np.ndarray:
    """Scores (P, A) of all answers, from a head fitted on the votes."""
    fit = fit_head(
        np.stack([features[place, a] for place, a, _ in votes]),
        np.stack([features[place, b] for place, _, b in votes]),
        [place for place, _, _ in votes],
        background=[features[seen].reshape(-1, features.shape[-1])],
        axes=axes,
    )
    return fit.score(features)


def measure(
    pool: Pool, name: str, axes: tuple[list[str], np.ndarray], seeds: int, held_out: int
) -> dict[str, Any]:
    """accuracies[width][votes][column], one number per seed, and the counts of pairs and votes."""
    names, directions = axes
    others = directions[[axis not in OWN_AXES[name] for axis in names]]
    lengths = np.array([[len(one.text.split()) for one in row] for row in pool.answers], float)
    accuracies: dict[float, dict[int, dict[str, list[float]]]] = {
        width: {wanted: {column: [] for column in COLUMNS} for wanted in VOTES}
        for width in WIDTHS[name]
    }
    counts: dict[str, list[Any]] = {"votes": [], "fit_seconds": []}
    counts |= {f"pairs_{width}": [] for width in WIDTHS[name]}
    for seed in range(seeds):
        rater = Rater.named(name, noise=NOISE, seed=seed)
        truth = np.array([[rater.score(one) for one in row] for row in pool.answers])
        order = np.random.default_rng(seed).permutation(len(pool.prompts)).tolist()
        unseen, seen = order[:held_out], order[held_out:]
        all_votes = collect_votes(pool, rater, seen, max(VOTES))
        counts["votes"].append(len(all_votes))
        pairs = {width: held_out_pairs(truth, unseen, width) for width in WIDTHS[name]}
        for width in WIDTHS[name]:
            counts[f"pairs_{width}"].append(len(pairs[width]))
        for wanted in VOTES:
            votes = all_votes[:wanted]
            started = time.perf_counter()
            scores = {"axes": fitted_scores(pool.mean, votes, seen, directions)}
            counts["fit_seconds"].append(time.perf_counter() - started)
            final = slice(-pool.last.shape[-1], None)
            scores["no_trunk"] = fitted_scores(
                pool.mean[..., final], votes, seen, directions[:, final]
            )
            scores["other_axes"] = fitted_scores(pool.mean, votes, seen, others)
            scores["no_axes"] = fitted_scores(pool.mean, votes, seen, None)
            scores["last_token"] = fitted_scores(pool.last, votes, seen, None)
            scores |= {"longer": lengths, "chance": np.zeros_like(lengths)}
            for width in (width for width in WIDTHS[name] if pairs[width]):
                for column, found in scores.items():
                    cell = accuracies[width][wanted][column]
                    cell.append(pair_accuracy(found, pairs[width]))
    return {"accuracies": accuracies, **counts}


def print_tables(name: str, result: dict[str, Any]) -> None:
    """Print a table for each width: means over seeds in percent, and the deviation of `axes`."""
    for width, by_votes in result["accuracies"].items():
        counts = result[f"pairs_{width}"]
        print(f"\n{name}: pairs whose scores differ by more than {width} (n = {counts} by seed)")
        print(f"{'votes':>6}" + "".join(f"{column:>12}" for column in COLUMNS) + "  sd of axes")
        for wanted, cells in by_votes.items():
            if not cells["axes"]:
                continue
            reached = min(wanted, min(result["votes"]))
            mark = "" if reached == wanted else f"  (one seed has only {reached} votes)"
            means = "".join(f"{100 * np.mean(cells[column]):>11.1f}%" for column in COLUMNS)
            print(f"{wanted:>6}{means}{100 * np.std(cells['axes']):>11.1f}{mark}")
    print(f"longest fit: {max(result['fit_seconds']):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument(
        "--rater", choices=sorted(WIDTHS), action="append", help="can be given several times"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="for all raters (default: depends on the rater)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="for sampling the answers")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="80 prompts, 24 tokens, one seed")
    args = parser.parse_args()
    rows = [row for name in ("prompts", "prompts_heldout") for row in read_prompts(bundled(name))]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    seeds, held_out = args.seeds, HELD_OUT
    if args.quick:
        prompts, seeds, held_out = prompts[:80], 1, 20
    backbone = Backbone.load(args.base)
    axes = style_axes(backbone, log=print)
    results: dict[str, Any] = {}
    for name in args.rater or WIDTHS:
        tokens = args.max_new_tokens or (24 if args.quick else MAX_NEW_TOKENS[name])
        pool = sample_pool(backbone, tokens, args.temperature, prompts)
        results[name] = measure(pool, name, axes, seeds, held_out)
        results[name]["max_new_tokens"] = tokens
        print_tables(name, results[name])
    if args.out:
        settings = {"base": args.base, "temperature": args.temperature, "noise": NOISE}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(settings | results, indent=1) + "\n", encoding="utf-8")
        print(f"\nWritten to {args.out}")


if __name__ == "__main__":
    main()
