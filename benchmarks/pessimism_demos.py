"""PPO of finished demos once more, with pessimism: does it win where there are few votes?

    python benchmarks/demo_seeds.py --raters cheerful --pairs 100 --out runs/hundred
    python benchmarks/pessimism_demos.py runs/hundred/* --pessimism 0 1

A demo's votes, reward role, settings and seed are taken from its folder; only PPO and the answers
to the held-out prompts are made anew, with so many standard deviations of the fit subtracted from
each score. 0 is the demo's own PPO again, up to rounding. What is done is kept in --out. A row
takes three to four minutes on two free cores.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.data.readers import as_conversation, bundled, read_prompts, read_rows
from lorarlhf.evaluation.comparison import judge
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.rewards.deviation import ScoreDeviation
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.files import read_json, write_json
from lorarlhf.runtime.run import Run
from lorarlhf.stages.conversations import prompt_conversations
from lorarlhf.stages.inputs import RewardSpec
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.trl.arguments import Placement, trl_arguments

Row = dict[str, Any]
SAMPLES, BATCH_SIZE = 2, 60  # as in the demo


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demos", type=Path, nargs="+", metavar="FOLDER", help="finished demos")
    parser.add_argument("--pessimism", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/pessimism_demos"))
    args = parser.parse_args()
    print("| rater | seed | votes | pessimism | wins (95%) | wins, ties, losses | KL, nats |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for demo in args.demos:
        about = read_json(demo / "summary.json")
        if not about:
            print(f"{demo} is no finished demo; it is left out", file=sys.stderr)
            continue
        for pessimism in args.pessimism:
            found = redo(demo, about, pessimism, args.out / f"{demo.name}-{pessimism:g}")
            won = found["win_rate"]
            low, high = won["ci95"]
            cells = [about["rater"], about["seed"], about["pairs"], f"{pessimism:g}"]
            cells += [f"{won['rate']:.1%} ({low:.0%} to {high:.0%})"]
            cells += [f"{won['wins']}, {won['ties']}, {won['losses']}", f"{found['kl']:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def redo(demo: Path, about: Row, pessimism: float, out: Path) -> Row:
    """Train PPO on a demo's reward role and judge its answers, unless that is done."""
    if done := read_json(out / "judged.json"):
        return done
    size, seed = read_json(demo / "size.json"), about["seed"]
    backbone = Backbone.load(
        about["base"], bits=about["bits"], adapter_layers=about["adapter_layers"], seed=seed
    )
    backbone.load_role("reward", demo / "adapters" / "reward")
    deviation = ScoreDeviation.load(demo / "votes.safetensors", backbone)
    run = Run(out, "ppo", {"seed": seed})
    settings = about["settings"] | {"reward_pessimism": pessimism}
    trained = train_ppo(
        backbone,
        prompt_conversations(read_prompts(bundled("prompts"))[: size["prompts"]], plain=False),
        run,
        trl_arguments(PPOConfig, Placement.of(backbone, run), settings, {}),
        RewardSpec(deviation=deviation),
        samples=False,
    )
    rows = [row for _, row in read_rows(demo / "heldout_base.jsonl")]
    tuned = [
        generate(
            backbone,
            [as_conversation(row["prompt"]) for row in rows],
            role="policy",
            max_new_tokens=settings["max_new_tokens"],
            temperature=settings["temperature"],
            batch_size=BATCH_SIZE,
            seed=1000 * seed + 700 + sample,
        )
        for sample in range(SAMPLES)
    ]
    after = [Answer.of(one) for answers in zip(*tuned, strict=True) for one in answers]
    before = [Answer(**answer) for row in rows for answer in row["answers"]]
    prompts = [row["prompt"] for row in rows for _ in range(SAMPLES)]
    found, _ = judge(Rater.named(about["rater"], 0.0, seed), prompts, before, after, seed)
    found |= {"kl": trained["kl_per_sequence"]}
    write_json(out / "judged.json", found)
    return found


if __name__ == "__main__":
    main()
