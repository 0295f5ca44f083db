"""Step 6 of 7: rounds of votes, where each round rates what the last one has learned.

Votes on old answers say little about what a tuned policy writes. So in each round the newest policy
answers new prompts twice, a rater votes, and DPO tunes the policy on these votes. Here the rater is
simulated.

    python recipes/6_rounds.py

Costs: in each round 80 votes and three passes of DPO over them; progress bars show how long it
takes.
You should see: the share of comparisons that the policy wins against the model of step 1. It need
not rise in every round: with this few votes, a change of a few percent is chance.
You get: runs/6_rounds/round_1, round_2, ... with adapters/policy and preferences.jsonl each, and
runs/6_rounds/summary.json.

With your own votes: `lorarlhf ui PROJECT`, rate, train, and open the pages again, whose answers are
then those of the newest policy.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from lorarlhf import Backbone, UserError, generate, train_direct
from lorarlhf.data import as_conversation, bundled, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge
from lorarlhf.rewards.raters import Answer, Rater, vote_pairs
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.dpo_orpo import DPOSettings

BASE = "smollm2-135m"
ROUNDS = 3
PROMPTS = 80  # in each round, answered twice, with one vote each
RATER = "cheerful"  # votes, and judges at the end of each round without noise
NOISE = 0.1  # fraction of votes that are wrong
MAX_NEW_TOKENS = 64
SETTINGS = DPOSettings(epochs=3, beta=0.1)
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "6_rounds"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    if not supervised.is_dir():
        raise UserError(f"There is no {supervised} yet. Run first: python recipes/1_supervised.py")
    rounds, size, held_out, length = ROUNDS, PROMPTS, 60, MAX_NEW_TOKENS
    settings = SETTINGS
    if args.quick:
        rounds, size, held_out, length = 2, 12, 6, 12
        settings = replace(SETTINGS, epochs=1)

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    backbone.load_role("policy", supervised)
    train = [row["prompt"] for row in read_prompts(bundled("prompts"))]
    heldout = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))][:held_out]
    start = answers(backbone, heldout, length, SEED)
    results = []
    for number in range(1, rounds + 1):
        prompts = train[(number - 1) * size : number * size]
        sides = [answers(backbone, prompts, length, SEED + 10 * number + side) for side in (0, 1)]
        votes = vote_pairs(Rater.named(RATER, NOISE, SEED), prompts, *sides)
        if not votes:
            raise UserError("All pairs of this round are ties. Raise PROMPTS or MAX_NEW_TOKENS.")

        place = folder / f"round_{number}"
        archive_earlier_run(place)
        run = Run(place, "dpo", {"seed": SEED, "round": number, **vars(settings)})
        run.base(backbone)
        write_jsonl(place / "preferences.jsonl", votes)
        trained = train_direct(backbone, votes, run, "dpo", settings)
        now = answers(backbone, heldout, length, SEED + 1)
        figures, _ = judge(Rater.named(RATER, noise=0), heldout, start, now, SEED)
        write_json(place / "summary.json", run.finish("done", trained | figures))
        results.append({"round": number, "votes": len(votes), **figures["win_rate"]})
        low, high = figures["win_rate"]["ci95"]
        print(f"Round {number}: {len(votes)} votes, and the policy won", end=" ")
        print(f"{results[-1]['rate']:.0%} of comparisons (95%: {low:.0%} to {high:.0%}).")
    write_json(folder / "summary.json", {"rounds": results})
    print(f"Wrote {folder}. Next: python recipes/7_export_votes.py")


def answers(backbone: Backbone, prompts: list[str], length: int, seed: int) -> list[Answer]:
    """One answer of the newest policy to each prompt."""
    chats = [as_conversation(prompt) for prompt in prompts]
    sampled = generate(backbone, chats, max_new_tokens=length, seed=seed, batch_size=32)
    return [Answer.of(completion) for completion in sampled]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
