"""The command `compare-methods`: several ways to learn from the same votes, side by side.

Each method trains in a process of its own, so that one that fails stops no other and the peak of
memory is its own. The budget is time, which a callback watches (`RunCallback`): steps of different
methods cost different amounts, and the time of a step depends on the answers, so that a number of
steps chosen beforehand would miss it.
"""

import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lorarlhf.cli.compare_plan import RESULTS, REWARD, ComparePlan, Method, read_plan
from lorarlhf.cli.compare_record import Record
from lorarlhf.cli.own_process import reason, run_command
from lorarlhf.cli.result import Result
from lorarlhf.evaluation.method_table import as_markdown, method_rows, picture
from lorarlhf.preferences.vote_use import VoteUse
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_bytes, write_json
from lorarlhf.runtime.lock import hold, is_held
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.table import STAGES

Row = dict[str, Any]
IN_USE = "Wait until it is done, or name another folder with --out."
LOOK_SECONDS = 1.0
NO_JUDGE = (
    "No independent judge has compared these methods. Name one with --rater or --judge-function, "
    "or compare the runs on the Compare page and give this command with the same --out again."
)


def compare_methods(args: Namespace) -> Result:
    """Train, evaluate and tabulate; status 1 if a method could not be trained."""
    plan = read_plan(args)
    with hold(plan.folder, IN_USE):
        record = Record.open(plan)
        trained = False
        if any(method.rewarded for method in plan.methods) and not plan.reward:
            trained |= _train(plan, record, REWARD)
            if record.about("reward").get("status") != "done":
                raise UserError(f"No reward role could be trained: {record.failed['reward']}")
        for method in plan.methods:
            if method.stage:
                trained |= _train(plan, record, method)
        found = _evaluate(plan, record, trained)
        return _results(plan, record, found)


def _train(plan: ComparePlan, record: Record, method: Method) -> bool:
    """Train a method, or go on with it where it was stopped; False if it was done already."""
    if method.name in record.runs:
        _wait_for(record.folder_of(method.name), method)
    about = record.about(method.name)
    if about.get("status") == "done":
        log_to_stderr(f"{method.name}: trained already, in {record.folder_of(method.name)}.")
        return False
    folder = record.folder_for(plan, method)
    if settings := plan.settings[method.name]:
        write_json(plan.config_file(method), settings)
    words = plan.words(method, folder, record.reward(plan))
    words += ["--resume"] if about.get("config") else []
    log = plan.folder / f"{method.name}.log"
    limit = "" if method == REWARD else f" for up to {plan.minutes:g} minutes"
    log_to_stderr(f"{method.name}: training{limit}; its messages are in {log}.")
    status = run_command(words, log)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        record.failed[method.name] = reason(status, log)
        log_to_stderr(f"{method.name} failed: {record.failed[method.name]}")
        record.drop_empty(method.name)
    return status == 0


def _wait_for(run: Path, method: Method) -> None:
    """Wait for the training of a comparison that was killed: its process lives until it is done."""
    if is_held(run):
        log_to_stderr(f"{method.name}: an earlier process still trains it. Waiting for its end.")
    while is_held(run):
        time.sleep(LOOK_SECONDS)


def _evaluate(plan: ComparePlan, record: Record, trained: bool) -> Row:
    """What `eval` finds; an earlier result is kept where nothing has changed since."""
    from lorarlhf.cli.evaluate import evaluate
    from lorarlhf.cli.parser import build_parser

    done = [m.name for m in plan.methods if record.about(m.name).get("status") == "done"]
    words = plan.eval_words([record.folder_of(name) for name in done], record.reward(plan))
    if not words:
        return {}
    earlier = read_json(plan.folder / RESULTS)
    same = earlier.get("eval_words") == words
    if same and not trained and earlier.get("people") == plan.people():
        log_to_stderr(f"The answers of {plan.folder / 'eval'} are kept.")
        return read_json(plan.folder / "eval" / "eval.json")
    folder = plan.folder / "eval"
    if not (folder / "eval.json").is_file():  # what a stopped one has left there is not complete
        shutil.rmtree(folder, ignore_errors=True)
    result = evaluate(build_parser().parse_args(words))
    return {name: value for name, value in result.data.items() if name != "answers"}


def _results(plan: ComparePlan, record: Record, found: Row) -> Result:
    """Write the table, the data and the pictures."""
    rows = method_rows(_methods(plan, record, found), found)
    judges = [judge for judge in found.get("judges", []) if judge["results"]]
    notes = _notes(plan, record, rows, found)
    table = as_markdown(rows, judges)
    pictures = []
    for number, judge in enumerate(judges):
        if svg := picture(number, judge, rows):
            name = "win_rate_over_kl.svg" if not number else f"win_rate_over_kl-{number + 1}.svg"
            pictures.append(str(write_bytes(plan.folder / name, svg.encode("utf-8"))))
    text = "\n\n".join([table, "\n".join(f"- {note}" for note in notes)])
    write_bytes(plan.folder / "comparison.md", (text + "\n").encode("utf-8"))
    words = plan.eval_words(
        [record.folder_of(row["method"]) for row in rows if row.get("run")], record.reward(plan)
    )
    data = {"minutes": plan.minutes, "methods": rows, "judges": judges, "notes": notes}
    data |= {"pictures": pictures, "eval_words": words, "folder": str(plan.folder)}
    data["people"] = plan.people()
    write_json(plan.folder / RESULTS, data)
    text += f"\n\nThe table, its data and the pictures are in {plan.folder}."
    if record.failed:
        text += (
            " The same command tries again what has failed; for another comparison, name a folder "
            "with --out."
        )
    return Result(data, text, status=1 if record.failed else 0)


def _methods(plan: ComparePlan, record: Record, found: Row) -> dict[str, Row]:
    """What is known of each method's training."""
    candidates = {
        str(Path(one["run"]).resolve()): one["name"]
        for one in found.get("candidates", [])
        if one["run"]
    }
    methods: dict[str, Row] = {}
    if plan.init and str(Path(plan.init).resolve()) in candidates:
        methods["the start"] = {"candidate": candidates[str(Path(plan.init).resolve())]}
    for method in plan.methods:
        row: Row = {"candidate": None}
        if method.learns_from_votes(plan.reward):
            row["votes"] = record.use(method.form).as_dict()
        if not method.stage:
            methods[method.name] = row | {"candidate": f"best of {method.best_of}", "minutes": 0.0}
            continue
        about = record.about(method.name)
        if about.get("status") == "done":
            folder = record.folder_of(method.name)
            row["run"], row["candidate"] = str(folder), candidates.get(str(folder.resolve()))
            row["minutes"] = about.get("trained_seconds", 0.0) / 60
            row["peak_mb"] = about.get("peak_card_mb") or about.get("peak_rss_mb")
        else:
            row["failed"] = record.failed.get(method.name, "it is not done")
        methods[method.name] = row
    return methods


def _notes(plan: ComparePlan, record: Record, rows: list[Row], found: Row) -> list[str]:
    """What to know beside the table: the budget, the reward role, votes that are not used."""
    notes = [
        f"Each method trained for at most {plan.minutes:g} minutes, and less where it was done "
        "before. `tasks` is the change of the share of short tasks that are done, in points.",
        f"All start from {plan.init or 'the base'}, and all answers are compared with the base's.",
    ]
    reward = record.reward(plan)
    kept = False
    if reward is not None and any(method.rewarded for method in plan.methods):
        about = read_json(Path(reward) / "run.json")
        kept = bool((about.get("summary") or {}).get("adapter_steps_kept"))
        took = f", trained in {about['seconds'] / 60:.1f} minutes" if "seconds" in about else ""
        names = ", ".join(method.name for method in plan.methods if method.rewarded)
        notes.append(f"The reward role of {names} is that of {reward}{took}.")
        if not plan.reward:  # else it has learned from votes that nobody knows here
            # The fit knows only which answer is better; the training on top knows by how much.
            strengths = STAGES["reward"].strengths and kept
            notes.append(record.use("trl").sentence("The reward role", strengths))
    for method in plan.methods:
        if method.stage and (not method.rewarded or method.stage == "dpo"):
            use: VoteUse = record.use(method.form)
            notes.append(use.sentence(method.name, STAGES[method.stage].strengths))
    notes += [f"{row['method']} failed: {row['failed']}" for row in rows if row.get("failed")]
    if not any(judge["independent"] for judge in found.get("judges", []) if judge["results"]):
        notes.append(NO_JUDGE)
    return notes + list(found.get("notes", []))
