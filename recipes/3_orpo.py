"""Step 3 of 4, by DPO instead of PPO: learn from the votes directly.

No sampling and no reward role: TRL's DPOTrainer raises the probability of the chosen answers and
lowers that of the rejected ones, measured against the model of step 1.

    python recipes/3_orpo.py

Costs: a little less than DPO; the bar says how long it still takes.
You should see: the loss fall below 0.69 (where it starts), and the share of training pairs that the
policy orders as the voter did rise. At the end, how many comparisons the
new answers win on prompts that no step has seen.
You get: runs/3_orpo with adapters/policy, metrics.jsonl, samples.jsonl and summary.json. Running it
again keeps the earlier run in runs/3_orpo/earlier-1.

A smaller BETA moves further from step 1 for the same votes.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, UserError, generate, train_direct
from lorarlhf.data import (
    as_conversation,
    bundled,
    read_preferences,
    read_prompts,
    write_jsonl,
)
from lorarlhf.errors import told_plainly
from lorarlhf.evaluation.win_rate import judge_pairs, win_rate
from lorarlhf.folders import set_aside
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runs import Run, write_json
from lorarlhf.stages.direct import DirectSettings

BASE = "smollm2-135m"
METHOD = "orpo"
BETA = 0.1  # weight of the odds ratio beside the likelihood
EPOCHS = 2  # passes over the votes
LEARNING_RATE = 1e-4
BATCH_SIZE = 8  # votes an optimizer step
MAX_NEW_TOKENS = 64  # of the answers in the taste test
RATER = "cheerful"  # who judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows: does it run at all?")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where all recipes write")
    args = parser.parse_args()
    folder = args.out / f"3_{METHOD}"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    votes_file = args.out / "2_reward_model" / "preferences.jsonl"
    for needed, recipe in ((supervised, "1_supervised.py"), (votes_file, "2_reward_model.py")):
        if not needed.exists():
            raise UserError(f"There is no {needed} yet. Run first: python recipes/{recipe}")
    votes = read_preferences(votes_file)[: 4 if args.quick else None]

    backbone = Backbone.load(args.base, seed=SEED, say=print)
    backbone.load_role("policy", supervised)

    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = 12 if args.quick else MAX_NEW_TOKENS
    before = generate(backbone, chats, max_new_tokens=length, seed=SEED)

    settings = DirectSettings(
        beta=BETA,
        epochs=1 if args.quick else EPOCHS,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
    )
    set_aside(folder)
    run = Run(folder, METHOD, {"seed": SEED, **vars(settings)})
    run.base(backbone)
    trained = train_direct(backbone, votes, run, METHOD, settings)

    # The taste test: the policy against the model of step 1, on prompts that no step has seen.
    after = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer(c.text, c.ended) for c in side] for side in (before, after))
    rater = Rater.named(RATER, noise=0)
    outcomes = judge_pairs(rater, new, old, seed=SEED)
    won = win_rate(outcomes, prompts, seed=SEED)
    samples = [
        {"prompt": p, "base": a.text, "tuned": b.text, "verdict": v}
        for p, a, b, v in zip(prompts, old, new, outcomes, strict=True)
    ]
    write_jsonl(folder / "samples.jsonl", samples)
    summary = run.finish("done", trained | {"win_rate": won.to_dict()})
    write_json(folder / "summary.json", summary)

    for sample in samples[:6]:
        print(f"\n> {sample['prompt']}")
        print("  before:", " ".join(sample["base"].split()))
        print("  after: ", " ".join(sample["tuned"].split()))
    low, high = won.ci95
    print(f"\nLoss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}.")
    print(f"The policy won {won.rate:.0%} of {won.n} comparisons (95%: {low:.0%} to {high:.0%}).")
    print(f"Wrote {folder}. Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with told_plainly():
        main()
