"""Step 2 of 7: a reward model, which learns from votes what a good answer is.

The tuned model answers each prompt twice, and a rater says which answer is better. Here the rater
is simulated: a fixed rule that is wrong in one vote of ten. The reward model learns to give the
better answer the higher score.

    python recipes/2_reward_model.py

Costs: about three minutes on two cores, 2.3 GB of memory.
You should see: the reward model agrees with about 60% of the votes on held-out prompts. Guessing
gives 50%. Because one vote in ten is wrong, about 90% is the most that is possible.
You get: runs/2_reward_model with adapters/reward and preferences.jsonl, which step 3 uses.

Your own votes: put your file's name in PREFERENCES. One row is one vote:

    {"prompt": "How do I brew tea?", "chosen": "Boil fresh water ...", "rejected": "Tea is ..."}

Fifty votes are enough to start, 150 are good. docs/data.md describes other columns and formats.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, generate, train_reward_model
from lorarlhf.data import (
    as_conversation,
    bundled,
    read_preferences,
    read_prompts,
    write_jsonl,
)
from lorarlhf.rewards.raters import Answer, Rater, vote_pairs
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.reward_model import RewardSettings

BASE = "smollm2-135m"
PREFERENCES = None  # your own votes, such as "my_votes.jsonl"; None uses the simulated rater
RATER = "cheerful"  # or "brief", or "plain"; docs/data.md says what each of them prefers
NOISE = 0.1  # fraction of votes that are wrong
PROMPTS = 280  # each is answered twice and gets one vote
MAX_NEW_TOKENS = 64
EPOCHS = 1.0  # epochs of training after the linear fit; 0 keeps the fit alone
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "2_reward_model"
    supervised = args.out / "1_supervised" / "adapters" / "policy"

    votes = read_preferences(PREFERENCES) if PREFERENCES else []
    backbone = Backbone.load(args.base, seed=SEED, log=print)
    if not votes:
        if supervised.is_dir():
            backbone.load_role("policy", supervised)
        else:
            print(f"There is no {supervised}, so the untuned base answers.")
        votes = simulated_votes(backbone, args.quick)

    archive_earlier_run(folder)
    run = Run(folder, "reward", {"rater": RATER, "noise": NOISE, "seed": SEED})
    run.base(backbone)
    write_jsonl(folder / "preferences.jsonl", votes)
    settings = RewardSettings(epochs=EPOCHS)
    summary = run.finish("done", train_reward_model(backbone, votes, run, settings))
    write_json(folder / "summary.json", summary)

    print(f"It agrees with {summary['heldout_accuracy']:.0%} of {summary['n']} held-out votes.")
    print(f"Wrote {folder}. Next: python recipes/3_ppo.py (or another of step 3)")


def simulated_votes(backbone: Backbone, quick: bool) -> list[dict[str, str]]:
    """Two answers per prompt from the policy, and a vote on each pair that is not a tie."""
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts"))]
    prompts = prompts[: 16 if quick else PROMPTS]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = 12 if quick else MAX_NEW_TOKENS
    print(f"Answering {len(prompts)} prompts twice ...")
    first = generate(backbone, chats, max_new_tokens=length, seed=SEED, batch_size=32)
    second = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1, batch_size=32)

    rater = Rater.named(RATER, noise=NOISE, seed=SEED)
    print(f"The rater `{rater.name}`: {rater.sentence}")
    answers = [[Answer.of(completion) for completion in side] for side in (first, second)]
    votes = vote_pairs(rater, prompts, *answers)
    print(f"{len(votes)} votes; the other {len(prompts) - len(votes)} pairs were ties.")
    return votes


if __name__ == "__main__":
    with exit_on_user_error():
        main()
