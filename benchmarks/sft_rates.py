"""Supervised tuning by learning rate and passes: how likely held-out demonstrations become.

    python benchmarks/sft_rates.py
    python benchmarks/sft_rates.py --rates 2e-4 1e-3 --epochs 3 --folds 1

Of the 70 bundled demonstrations each fold holds out another fifth. The policy is tuned from the
base on the rest, at the default batch size. The figures are the mean log-probability of a token, in
nats, of the held-out answers and of those that were learned: means over the folds. A rate is too
low where the first is still far from its best, and too high where it falls while the second rises.
"""

import argparse
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import as_conversation, bundled, read_demonstrations
from lorarlhf.rewards.role import encode_answer
from lorarlhf.runtime.run import Run
from lorarlhf.stages.preference_watch import likelihoods
from lorarlhf.stages.sft import SFTSettings, train_sft

PARTS = 5
Row = dict[str, Any]
Figures = tuple[float, float]


def measure(backbone: Backbone, held: list[Row], learned: list[Row]) -> Figures:
    """Log-probability of a token: (of held-out answers, of learned ones)."""
    sides = [
        [
            encode_answer(backbone, as_conversation(row["prompt"]), row["completion"], "last")
            for row in rows
        ]
        for rows in (held, learned)
    ]
    found = likelihoods(backbone, *sides)
    return found["chosen_logp"], found["rejected_logp"]


def tune(backbone: Backbone, rows: list[Row], rate: float, epochs: float, seed: int) -> None:
    """Supervised tuning of the policy from the base on."""
    with TemporaryDirectory() as folder:
        settings = SFTSettings(learning_rate=rate, epochs=epochs, save_steps=0)
        train_sft(backbone, rows, Run(folder, "sft", {"seed": seed}), settings)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3, 2e-3])
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0, 3.0], help="passes")
    parser.add_argument("--folds", type=int, default=3, choices=range(1, PARTS + 1))
    parser.add_argument("--quick", action="store_true", help="10 rows, one rate, one fold")
    args = parser.parse_args()
    rows = read_demonstrations(bundled("demonstrations"))
    if args.quick:
        rows, args.rates, args.epochs, args.folds = rows[:10], [1e-3], [1.0], 1
    backbone = Backbone.load(args.base)
    start = [weight.detach().clone() for weight in backbone.parameters_of("policy")]
    print("| rate | passes | held-out answers | learned answers |\n|---|---|---|---|", flush=True)
    combinations = [(0.0, 0.0), *((rate, n) for n in args.epochs for rate in args.rates)]
    for rate, epochs in combinations:
        found: list[Figures] = []
        for fold in range(args.folds):
            for weight, first in zip(backbone.parameters_of("policy"), start, strict=True):
                weight.data.copy_(first)
            held = rows[fold::PARTS]
            learned = [row for place, row in enumerate(rows) if place % PARTS != fold]
            if rate:
                tune(backbone, learned, rate, epochs, fold)
            found.append(measure(backbone, held, learned))
        unseen, seen = (fmean(column) for column in zip(*found, strict=True))
        name = f"{rate:g} | {epochs:g}" if rate else "the base |"
        print(f"| {name} | {unseen:.3f} | {seen:.3f} |", flush=True)


if __name__ == "__main__":
    main()
