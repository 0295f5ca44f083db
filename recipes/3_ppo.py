"""Step 3 of 4, by PPO: practise, and be scored by the reward role.

In each update the policy answers some prompts, the reward role scores the answers, and the policy
moves towards what scored well while it stays near the model of step 1 (KL).

    python recipes/3_ppo.py

Costs: some ten seconds an update on two cores; the bar says how long it still takes.
You should see: the score rise, the KL rise to a few nats an answer and not run away, and
at the end how many comparisons the new answers win on prompts that no step has seen.
You get: runs/3_ppo with adapters/policy, adapters/value, report.html, samples.jsonl, metrics.jsonl.
Running it again keeps the earlier run in runs/3_ppo/earlier-1.

Not good enough? If the KL stays under 1, halve KL_COEF. If answers become odd, double it.
A rule of your own instead of votes: give PPOTrainer `reward_funcs=[f]` with
`def f(prompts, completions, **columns): return [a number for each completion]`.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, PPOConfig, PPOTrainer, UserError, generate
from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.report import write_report
from lorarlhf.evaluation.win_rate import judge_pairs, win_rate
from lorarlhf.ppo.health import HealthWatch
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json, write_jsonl
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.callbacks import RunCallback

BASE = "smollm2-135m"
PROMPTS = bundled("prompts")
UPDATES = 30
ROLLOUT_BATCH_SIZE = 16  # prompts an update
MICRO_BATCH_SIZE = 4  # sequences in one forward; memory only
MAX_NEW_TOKENS = 64
LEARNING_RATE = 5e-4
KL_COEF = 0.1  # the price of leaving the reference; larger stays closer
RATER = "cheerful"  # who judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two updates: does it run at all?")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where all recipes write")
    args = parser.parse_args()
    folder = args.out / "3_ppo"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    reward = args.out / "2_reward_model" / "adapters" / "reward"
    for needed, recipe in ((supervised, "1_supervised.py"), (reward, "2_reward_model.py")):
        if not needed.is_dir():
            raise UserError(f"There is no {needed} yet. Run first: python recipes/{recipe}")

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    backbone.load_role("policy", supervised)
    backbone.freeze_reference()
    backbone.load_role("reward", reward)

    settings = {
        "updates": 2 if args.quick else UPDATES,
        "rollout_batch_size": 4 if args.quick else ROLLOUT_BATCH_SIZE,
        "micro_batch_size": MICRO_BATCH_SIZE,
        "max_new_tokens": 12 if args.quick else MAX_NEW_TOKENS,
        "critic_warmup": 1 if args.quick else 2,
        "learning_rate": LEARNING_RATE,
        "value_learning_rate": LEARNING_RATE,
        "kl_coef": KL_COEF,
    }
    archive_earlier_run(folder)
    run = Run(folder, "ppo", {"seed": SEED, **settings})
    run.base(backbone)
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(PROMPTS)]
    trainer = PPOTrainer(
        backbone,
        PPOConfig(output_dir=str(folder), seed=SEED, disable_tqdm=True, **settings),
        rows,
        callbacks=[
            RunCallback(run, "PPO", ("score", "kl", "completion_length")),
            HealthWatch(run, print),  # says so when something goes wrong (docs/health.md)
        ],
    )
    trainer.train()
    trainer.save_model()

    # The taste test: the policy against the model of step 1, on prompts that no step has seen.
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = settings["max_new_tokens"]
    before = generate(backbone, chats, role="reference", max_new_tokens=length, seed=SEED)
    after = generate(backbone, chats, role="policy", max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer(c.text, c.ended) for c in side] for side in (before, after))
    rater = Rater.named(RATER, noise=0)
    outcomes = judge_pairs(rater, new, old, seed=SEED)
    won = win_rate(outcomes, prompts, seed=SEED)

    samples = [
        {"prompt": p, "base": a.text, "tuned": b.text, "verdict": v}
        for p, a, b, v in zip(prompts, old, new, outcomes, strict=True)
    ]
    write_jsonl(folder / "samples.jsonl", samples)
    lengths = {
        "mean_length_before": sum(len(c.ids) for c in before) / len(before),
        "mean_length_after": sum(len(c.ids) for c in after) / len(after),
    }
    summary = run.finish("done", trainer.summary() | lengths | {"win_rate": won.to_dict()})
    write_json(folder / "summary.json", summary)
    write_report(folder)

    for sample in samples[:6]:
        print(f"\n> {sample['prompt']}")
        print("  before:", " ".join(sample["base"].split()))
        print("  after: ", " ".join(sample["tuned"].split()))
    low, high = won.ci95
    print(f"\nThe policy won {won.rate:.0%} of {won.n} comparisons (95%: {low:.0%} to {high:.0%}),")
    print(f"at a KL of {summary['kl_per_sequence']:.1f} nats. Report: {folder / 'report.html'}")
    print("Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
