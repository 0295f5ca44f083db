"""Step 3 of 7, with ORPO instead of PPO: learn from the votes directly, without a reference.

There is no sampling and no reward model. TRL's ORPOTrainer makes the chosen answers more likely, as
supervised fine-tuning does, and raises the odds of the chosen answer over the rejected one.

    python recipes/3_orpo.py

Costs: a little less than DPO; the progress bar shows the remaining time.
You should see: the loss falls. In metrics.jsonl, the share of training pairs that the policy orders
like the voter (rewards/accuracies) rises. At the end, the script prints how many comparisons the
new answers win on held-out prompts.
You get: runs/3_orpo with adapters/policy, metrics.jsonl, comparison.jsonl (the answers before and
after), samples.jsonl (a few answers during the training) and summary.json. If you run it again, the
earlier run is kept in runs/3_orpo/earlier-1.

A larger BETA gives the votes more weight against the likelihood of the chosen answers.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, UserError, generate, train_direct
from lorarlhf.data import as_conversation, bundled, read_preferences, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.dpo_orpo import ORPOSettings

BASE = "smollm2-135m"
METHOD = "orpo"
BETA = 5.0  # weight of the odds ratio against the likelihood
EPOCHS = 3  # passes over the votes
LEARNING_RATE = None  # by the base's width and the votes, at most 5e-4
BATCH_SIZE = 8  # votes per optimizer step
MAX_NEW_TOKENS = 64  # length of the answers in the comparison
RATER = "cheerful"  # judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / f"3_{METHOD}"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    votes_file = args.out / "2_reward_model" / "preferences.jsonl"
    for needed, recipe in ((supervised, "1_supervised.py"), (votes_file, "2_reward_model.py")):
        if not needed.exists():
            raise UserError(f"There is no {needed} yet. Run first: python recipes/{recipe}")
    votes = read_preferences(votes_file)[: 4 if args.quick else None]

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    backbone.load_role("policy", supervised)
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = 12 if args.quick else MAX_NEW_TOKENS
    before = generate(backbone, chats, max_new_tokens=length, seed=SEED)

    settings = ORPOSettings(
        beta=BETA,
        epochs=1 if args.quick else EPOCHS,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
    )
    archive_earlier_run(folder)
    run = Run(folder, METHOD, {"seed": SEED, **vars(settings)})
    run.base(backbone)
    trained = train_direct(backbone, votes, run, METHOD, settings)

    after = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer.of(completion) for completion in side] for side in (before, after))
    figures, samples = judge(Rater.named(RATER, noise=0), prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "comparison.jsonl", samples)
    summary = run.finish("done", trained | figures)
    write_json(folder / "summary.json", summary)

    won = summary["win_rate"]
    low, high = won["ci95"]
    print(f"\nLoss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}.")
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"The policy won {won['rate']:.0%} of {won['n']} comparisons ({interval}).")
    print(f"Wrote {folder}. Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
