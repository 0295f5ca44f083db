"""The commands `votes` and `raters`: a project's votes, their import and export, and logins."""

import getpass
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorarlhf.cli.export_votes import check_dataset_options, export_dataset
from lorarlhf.cli.push_options import DATASET
from lorarlhf.preferences.accounts import (
    OWNER,
    remove_password,
    set_password,
    set_role,
    with_password,
)
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.import_folder import merge_all, read_all, together
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.statistics import (
    FEWEST_OVERLAPS,
    agreement,
    count_by_rater,
    count_votes,
    self_agreement,
)
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

Output = tuple[dict[str, Any], str]  # for --json, and for people
PURPOSES = {"train": "training", "compare": "blind comparisons"}


# ---- votes


def votes(args: Namespace) -> Output:
    """One of: counts, --import, --export, --backup."""
    _check_options(args)
    store = Project(args.project).store()
    try:
        if args.import_file is not None:
            return _import(store, args.import_file, args.answers, args.skip_bad)
        if args.export is not None:
            return _export(store, args)
        if args.backup is not None:
            made = store.backup(Path(args.backup).expanduser())
            count = store.count()
            return {"backup": str(made), "votes": count}, f"{made} holds all {count} votes."
        return _summary(store)
    finally:
        store.close()


def _check_options(args: Namespace) -> None:
    for name, option in (("out", "--out"), ("purpose", "--purpose"), ("rater", "--rater")):
        if getattr(args, name) is not None and args.export is None:
            raise UserError(f"{option} belongs to --export FORM.")
    if args.answers is not None and args.import_file is None:
        raise UserError("--answers belongs to --import FILE.")
    if args.skip_bad and args.import_file is None:
        raise UserError("--skip-bad belongs to --import FILE.")
    check_dataset_options(args)
    if args.export == DATASET and args.out is None:
        raise UserError(f"--export {DATASET} needs a folder to write: --out FOLDER.")
    if args.export is not None and args.out is None:
        raise UserError("--export needs a file to write: --out FILE.jsonl.")


def _import(store: Store, file: str, answers: str | None, skip_bad: bool) -> Output:
    files = read_all(Path(file).expanduser(), answers, skip_bad=skip_bad)
    merged, rated = merge_all(store, files)
    found = together(files)
    data: dict[str, Any] = {"added": merged.added, "there_already": merged.there}
    data |= {"corrected": merged.changed} if merged.changed else {}
    if found.candidates:
        data |= {"to_rate": rated.added, "to_rate_there_already": rated.there}
    data |= {"left_out": dict(sorted(found.left_out.items()))}
    data |= {"left_out_rows": found.rows_of} if found.rows_of else {}
    data |= {"remarks": dict(sorted(found.remarks.items()))} if found.remarks else {}
    data |= {"bad_rows": found.bad} if found.bad else {}
    lines = [f"Added {_many(merged.added, 'vote')} from {file}.{found.rest(merged, rated)}"]
    lines += found.to_rate(rated)
    if found.remarks:
        lines.append(f"Look at these: {found.remarked()}.")
    if found.bad:
        lines.append(found.first_bad())
    return data, "\n".join(lines)


def _export(store: Store, args: Namespace) -> Output:
    out, purpose = Path(args.out).expanduser(), args.purpose or "train"
    if out.exists():
        what = "folder" if args.export == DATASET else "file"
        raise UserError(f"{out} exists already. Name another {what} with --out.")
    found = store.votes(rater=args.rater and store.rater_name(args.rater))
    if args.rater is not None and not found:
        raise UserError(f"There are no votes of {args.rater}.{_names(store)}")
    wanted = [vote for vote in found if purpose in ("all", vote.purpose)]
    other = _of_other_purposes(found, wanted)
    if args.export == DATASET:
        return export_dataset(args, wanted, other)
    export = EXPORTS[args.export](wanted)
    left = export.missing() | other
    if not export.rows:
        raise UserError(f"There is nothing to write to {out}.{_rest(left)}")
    write_jsonl(out, export.rows)
    data = {"file": str(out), "rows": len(export.rows), "votes": len(found), "left_out": left}
    rows = f"{_many(len(export.rows), 'row')} from {_many(len(found), 'vote')}"
    return data, f"{out}: {rows}.{_rest(left)}"


def _of_other_purposes(found: list[Vote], wanted: list[Vote]) -> dict[str, int]:
    left = {}
    for purpose, count in Counter(v.purpose for v in found).items():
        used = sum(vote.purpose == purpose for vote in wanted)
        if count > used:
            left[f"of {PURPOSES[purpose]} (--purpose all takes them)"] = count - used
    return left


def _summary(store: Store) -> Output:
    counted = count_votes(store)
    data: dict[str, Any] = {"votes": sum(group.votes for group in counted)}
    lines = [_many(data["votes"], "vote")]
    for name in ("verdict", "rater", "purpose"):
        counts = Counter[str]()
        for group in counted:
            counts[getattr(group, name)] += group.votes
        data[name] = dict(counts.most_common())
        lines.append(f"by {name}: " + (_listed(counts) or "none"))
    data["agreement"] = between = agreement(store)
    data["repeats"] = again = self_agreement(store)
    if again["repeats"]:
        share = f"{again['same']} of {_many(again['repeats'], 'pair')}"
        lines.append(f"asked a second time with the sides swapped: {share} got the same verdict")
    if len(data["rater"]) > 1:
        share = f"{between['same'] / between['pairs']:.0%} agree" if between["pairs"] else "none"
        few = f"too few to measure agreement ({FEWEST_OVERLAPS} are needed)"
        shown = share if between["pairs"] >= FEWEST_OVERLAPS else few
        lines.append(
            f"{_many(between['pairs'], 'pair')} of votes by two raters on one item: {shown}"
        )
    return data, "\n".join(lines)


# ---- raters


def raters(args: Namespace) -> Output:
    """One of: a list, --add, --change, --remove."""
    if args.password_stdin and args.add is None:
        raise UserError("--password-stdin belongs to --add NAME.")
    if args.role is not None and args.add is None and args.change is None:
        raise UserError("--role belongs to --add NAME or --change NAME.")
    if args.change is not None and args.role is None:
        raise UserError("--change NAME needs the new role: --role owner or --role rater.")
    store = Project(args.project).store()
    try:
        if args.add is not None:
            return _add(store, args)
        if args.change is not None:
            set_role(store, args.change, args.role)
            return {"changed": args.change, "role": args.role}, f"{args.change} is {_a(args.role)}."
        if args.remove is not None:
            remove_password(store, args.remove)
            text = f"{args.remove} can't log in any more. The votes stay."
            return {"removed": args.remove}, text
        return _list(store)
    finally:
        store.close()


def _add(store: Store, args: Namespace) -> Output:
    name = args.add
    known = store.rater_name(name) in with_password(store)
    set_password(store, name, _password(name, args.password_stdin), args.role)
    found = next(one for one in count_by_rater(store) if one.name == store.rater_name(name))
    role = _a(found.role)
    new = f"has a new password and is {role}; earlier logins have ended"
    text = f"{name} {new if known else f'can log in as {role}'}."
    return {"added": name, "had_password": known, "role": found.role}, text


def _a(role: str) -> str:
    return "an owner" if role == OWNER else "a rater"


def _password(name: str, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UserError(
            "There is no terminal to type a password in. Give it as a line on standard input, with "
            "--password-stdin."
        )
    try:
        first = getpass.getpass(f"Password for {name}: ")
        second = getpass.getpass("Once more: ")
    except EOFError as error:
        raise UserError("No password was typed; nothing was changed.") from error
    if first != second:
        raise UserError("The two passwords differ; nothing was changed. Try it again.")
    return first


def _list(store: Store) -> Output:
    raters = count_by_rater(store)
    width = max((len(rater.name) for rater in raters), default=0)
    lines = [
        f"{rater.name:{width}}  {_many(rater.votes, 'vote')}, "
        f"{f'can log in as {_a(rater.role)}' if rater.can_log_in else 'no password'}"
        for rater in raters
    ]
    text = "\n".join(lines) or "Nobody has voted yet. Add raters with --add NAME."
    return {"raters": [asdict(rater) for rater in raters]}, text


# ---- text


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.most_common())


def _rest(left: dict[str, int]) -> str:
    listed = "; ".join(f"{count} {reason}" for reason, count in left.items())
    return f" Left out: {listed}." if left else ""


def _names(store: Store) -> str:
    names = [rater.name for rater in count_by_rater(store) if rater.votes]
    return f" There are votes of {', '.join(names)}." if names else ""
