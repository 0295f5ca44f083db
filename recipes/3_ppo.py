"""Step 3 of 7: PPO, which trains the policy against the reward model.

In each update the policy answers some prompts and the reward model scores the answers. The policy
then moves towards the answers with high scores, while it stays near the model of step 1 (KL).

    python recipes/3_ppo.py

Costs: about ten seconds an update on two cores; the progress bar shows the remaining time.
You should see: the score rises. The KL rises to a few nats an answer and stays there. At the end,
the script prints how many comparisons the new answers win on held-out prompts.
You get: runs/3_ppo with adapters/policy, adapters/value, report.html, samples.jsonl, metrics.jsonl.
If you run it again, the earlier run is kept in runs/3_ppo/earlier-1.

If the result is not good enough: halve `kl_coef` if the KL stays under 1, and double it if the
answers become odd. To use a rule of your own instead of votes, give train_ppo
`RewardSpec([f])` from `lorarlhf.stages.inputs`, with `def f(prompts, completions, **columns)` that
returns a number for each completion.
"""

import argparse
from pathlib import Path
from typing import Any

from lorarlhf import Backbone, PPOConfig, UserError, generate, train_ppo
from lorarlhf.data import as_conversation, bundled, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.evaluation.report import write_report
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run

BASE = "smollm2-135m"
PROMPTS = bundled("prompts")
SETTINGS = {
    "updates": 30,
    "rollout_batch_size": 16,  # prompts per update
    "micro_batch_size": 4,  # sequences in one forward; only changes memory and speed
    "max_new_tokens": 64,
    "critic_warmup": 2,  # updates that train the value alone
    "learning_rate": 5e-4,
    "value_learning_rate": 5e-4,
    "kl_coef": 0.1,  # the price of leaving the reference; larger stays closer
}
QUICK = {"updates": 2, "rollout_batch_size": 4, "max_new_tokens": 12, "critic_warmup": 1}
RATER = "cheerful"  # judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two updates, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
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

    settings: dict[str, Any] = SETTINGS | (QUICK if args.quick else {})
    archive_earlier_run(folder)
    run = Run(folder, "ppo", {"seed": SEED, **settings})
    run.base(backbone)
    config = PPOConfig(output_dir=str(folder), seed=SEED, disable_tqdm=True, **settings)
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(PROMPTS)]
    # Prints a warning if something goes wrong (docs/health.md).
    trained = train_ppo(backbone, rows, run, config, samples=False)

    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = settings["max_new_tokens"]
    before = generate(backbone, chats, role="reference", max_new_tokens=length, seed=SEED)
    after = generate(backbone, chats, role="policy", max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer.of(completion) for completion in side] for side in (before, after))
    figures, samples = judge(Rater.named(RATER, noise=0), prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "samples.jsonl", samples)
    summary = run.finish("done", trained | figures)
    write_json(folder / "summary.json", summary)
    write_report(folder)

    won = summary["win_rate"]
    low, high = won["ci95"]
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"\nThe policy won {won['rate']:.0%} of {won['n']} comparisons ({interval})")
    print(f"at a KL of {summary['kl_per_sequence']:.1f} nats. Report: {folder / 'report.html'}")
    print("Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
