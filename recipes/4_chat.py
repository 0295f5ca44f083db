"""Step 4 of 7: chat with the tuned model and with the base.

Both answer a few questions, streamed token by token. In a terminal you can then ask your own
questions; `/role base` and `/role policy` switch between the two.

    python recipes/4_chat.py

Costs: a second an answer on two CPU cores, no training.
You should see: the same knowledge (that of a small model, often wrong) in another tone.
The script uses the newest policy of step 3. Set RUN to choose one.
"""

import argparse
import sys
from pathlib import Path

from lorarlhf import Backbone, UserError
from lorarlhf.backbone.generation import stream
from lorarlhf.cli.conversation import Conversation, run
from lorarlhf.runtime.errors import exit_on_user_error

BASE = "smollm2-135m"
RUN = None  # for example "3_dpo"; None takes the newest
QUESTIONS = [
    "What is a good way to start the day?",
    "My plant has yellow leaves. What should I do?",
    "Write a short birthday message for my aunt.",
]
MAX_NEW_TOKENS = 64
TEMPERATURE = 0.7
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one question, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    weights = args.out.glob(f"{RUN or '3_*'}/adapters/policy/adapter_model.safetensors")
    found = sorted(weights, key=lambda file: file.stat().st_mtime)
    if not found:
        where = args.out / RUN if RUN else args.out
        raise UserError(
            f"There is no tuned policy in {where} yet. Run first: python recipes/3_ppo.py"
        )

    backbone = Backbone.load(args.base, log=print)
    backbone.load_role("policy", found[-1].parent)
    print(f"The policy is the one in {found[-1].parent}.")

    length = 12 if args.quick else MAX_NEW_TOKENS
    for question in QUESTIONS[: 1 if args.quick else None]:
        print(f"\n> {question}")
        prompt = [{"role": "user", "content": question}]
        for role in ("base", "policy"):
            print(f"  {role + ':':8}", end="", flush=True)
            for piece in stream(
                backbone,
                prompt,
                role=role,
                max_new_tokens=length,
                temperature=TEMPERATURE,
                seed=SEED,
            ):
                print(piece.replace("\n", " "), end="", flush=True)
            print()

    if sys.stdin.isatty() and not args.quick:
        print()
        run(Conversation(backbone, "policy", ["policy", "base"], temperature=TEMPERATURE))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
