"""Step 7 of 7: take the votes elsewhere, as files that other tools read.

The votes of step 2 are put into a project, as `lorarlhf votes PROJECT --import FILE` does, and are
then written in several forms: TRL's pairs, KTO's good and bad answers, HH dialogues, ShareGPT,
arena records, and our own form, which keeps everything.

    python recipes/7_export_votes.py

Costs: seconds; no model is loaded.
You should see: for each form how many rows the votes give, and what it has no place for.
You get: runs/7_export_votes with a project and one file a form. If the project is there already,
its votes stay, and each vote is added once.

With a project of your own: `lorarlhf votes PROJECT --export trl --out votes.jsonl`.
"""

import argparse
from pathlib import Path

from lorarlhf import UserError
from lorarlhf.data import write_jsonl
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.project.project import Project, create, is_project
from lorarlhf.runtime.errors import exit_on_user_error

BASE = "smollm2-135m"  # written into the project's settings
FORMS = ("own", "trl", "kto", "hh", "sharegpt", "arena")
VOTES = None  # your own file of votes; None takes those of step 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the same; it is quick anyway")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "7_export_votes"
    file = Path(VOTES) if VOTES else args.out / "2_reward_model" / "preferences.jsonl"
    if not file.is_file():
        raise UserError(f"There is no {file} yet. Run first: python recipes/2_reward_model.py")

    place = folder / "project"
    project = Project(place) if is_project(place) else create(place, base=args.base)
    store = project.store()
    merged = merge_votes(store, read_votes(file).votes)
    print(f"{merged.added} votes added, {merged.there} were there already.")
    votes = store.votes()
    store.close()
    for form in FORMS:
        export = EXPORTS[form](votes)
        write_jsonl(folder / f"{form}.jsonl", export.rows)
        lost = "; ".join(f"{count} {reason}" for reason, count in export.missing().items())
        print(f"{form:9} {len(export.rows):4} rows" + (f"; left out: {lost}" if lost else ""))
    print(f"Wrote {folder}.")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
