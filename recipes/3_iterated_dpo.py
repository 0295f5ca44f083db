"""Step 3 of 7, with DPO in rounds: the reward model labels new answers of the policy.

The first round learns from the votes. In each round the policy answers new prompts several times,
the reward model picks the best and the worst answer to each, and DPO learns from these pairs, too.

    python recipes/3_iterated_dpo.py

Costs: in each round 64 prompts with four answers each, and three passes of DPO; the progress bars
show the remaining time.
You should see: the score on held-out prompts rises, and the script ends after the round in which it
no longer does. At the end, it prints how many comparisons the new answers win on other prompts.
You get: runs/3_iterated_dpo with adapters/policy (that of the best round), rounds/N/pairs.jsonl,
metrics.jsonl, comparison.jsonl (the answers before and after) and summary.json. If you run it
again, the earlier run is kept in runs/3_iterated_dpo/earlier-1.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from lorarlhf import Backbone, UserError, generate, train_iterated_dpo
from lorarlhf.data import as_conversation, bundled, read_preferences, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.rewards.deviation import ScoreDeviation
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.round_inputs import IteratedDPOSettings

BASE = "smollm2-135m"
PROMPTS = bundled("prompts")
SETTINGS = IteratedDPOSettings(
    rounds=3,  # at most
    round_prompts=64,  # answered in a round
    num_generations=4,  # answers to a prompt
    least_gap=1.0,  # deviations of the reward model by which the best answer beats the worst
    max_new_tokens=64,
    epochs=3,
)
QUICK = {"rounds": 1, "round_prompts": 4, "max_new_tokens": 12, "epochs": 1}
RATER = "cheerful"  # judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "3_iterated_dpo"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    reward = args.out / "2_reward_model"
    for needed, recipe in ((supervised, "1_supervised.py"), (reward, "2_reward_model.py")):
        if not needed.is_dir():
            raise UserError(f"There is no {needed} yet. Run first: python recipes/{recipe}")
    votes = read_preferences(reward / "preferences.jsonl")[: 4 if args.quick else None]
    rows = read_prompts(PROMPTS)[: 16 if args.quick else None]

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    backbone.load_role("policy", supervised)
    backbone.load_role("reward", reward / "adapters" / "reward")
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    settings = replace(SETTINGS, **QUICK) if args.quick else SETTINGS
    length = settings.max_new_tokens
    before = generate(backbone, chats, max_new_tokens=length, seed=SEED)

    archive_earlier_run(folder)
    run = Run(folder, "dpo", {"seed": SEED, **vars(settings)})
    run.base(backbone)
    deviation = ScoreDeviation.load(reward / "votes.safetensors", backbone)
    trained = train_iterated_dpo(backbone, votes, rows, run, settings, deviation)

    after = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer.of(completion) for completion in side] for side in (before, after))
    figures, samples = judge(Rater.named(RATER, noise=0), prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "comparison.jsonl", samples)
    summary = run.finish("done", trained | figures)
    write_json(folder / "summary.json", summary)

    won = summary["win_rate"]
    low, high = won["ci95"]
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"\nScore {summary['score_first']:.2f} -> {summary['score_best']:.2f}.")
    print(f"The policy won {won['rate']:.0%} of {won['n']} comparisons ({interval}).")
    print(f"Wrote {folder}. Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
