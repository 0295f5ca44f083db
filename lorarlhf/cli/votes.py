"""The commands `votes` and `raters`: what is in a project's store, files in and out, logins."""

import getpass
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from lorarlhf.preferences.accounts import remove_password, set_password, with_password
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

Told = tuple[dict[str, Any], str]  # for --json, and for people
FEWEST_OVERLAPS = 20
"""Pairs of votes on the same answers, below which a share of agreement says nothing."""
PURPOSES = {"train": "training", "compare": "taste tests"}


# ---- votes


def votes(args: Namespace) -> Told:
    """One of: counts, --import, --export, --backup."""
    _fits_together(args)
    store = Project(args.project).store()
    try:
        if args.import_file is not None:
            return _import(store, args.import_file, args.answers)
        if args.export is not None:
            return _export(store, args)
        if args.backup is not None:
            made = store.backup(Path(args.backup).expanduser())
            count = store.count()
            return {"backup": str(made), "votes": count}, f"{made} holds all {count} votes."
        return _summary(store)
    finally:
        store.close()


def _fits_together(args: Namespace) -> None:
    for name, option in (("out", "--out"), ("purpose", "--purpose"), ("rater", "--rater")):
        if getattr(args, name) is not None and args.export is None:
            raise UserError(f"{option} belongs to --export FORM.")
    if args.answers is not None and args.import_file is None:
        raise UserError("--answers belongs to --import FILE.")
    if args.export is not None and args.out is None:
        raise UserError("--export needs a file to write: --out FILE.jsonl.")


def _import(store: Store, file: str, answers: str | None) -> Told:
    found = read_votes(file, answers)
    merged = merge_votes(store, found.votes)
    left = dict(sorted(found.left_out.items()))
    data = {"added": merged.added, "there_already": merged.there, "left_out": left}
    rest = _rest(left | ({"there already": merged.there} if merged.there else {}))
    return data, f"{_many(merged.added, 'vote')} from {file} came in.{rest}"


def _export(store: Store, args: Namespace) -> Told:
    out, purpose = Path(args.out).expanduser(), args.purpose or "train"
    if out.exists():
        raise UserError(f"{out} is there already. Name another file with --out.")
    found = store.votes(rater=args.rater)
    if args.rater is not None and not found:
        raise UserError(f"There are no votes of {args.rater}.{_names(store)}")
    wanted = [vote for vote in found if purpose in ("all", vote.purpose)]
    export = EXPORTS[args.export](wanted)
    if not export.rows:
        raise UserError(f"There is nothing to write to {out}.{_rest(_left(export, found, wanted))}")
    left = _left(export, found, wanted)
    write_jsonl(out, export.rows)
    data = {"file": str(out), "rows": len(export.rows), "votes": len(found), "left_out": left}
    rows = f"{_many(len(export.rows), 'row')} from {_many(len(found), 'vote')}"
    return data, f"{out}: {rows}.{_rest(left)}"


def _left(export: Any, found: list[Any], wanted: list[Any]) -> dict[str, int]:
    left = dict(sorted(export.left_out.items()))
    for purpose, count in Counter(v.purpose for v in found).items():
        used = sum(vote.purpose == purpose for vote in wanted)
        if count > used:
            left[f"of {PURPOSES[purpose]} (--purpose all takes them)"] = count - used
    return left


def _summary(store: Store) -> Told:
    rows = store.rows(
        "SELECT c.verdict, r.name AS rater, i.purpose, count(*) AS votes FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id "
        "JOIN item i ON i.id = p.item_id WHERE c.verdict != 'undone' GROUP BY 1, 2, 3"
    )
    data: dict[str, Any] = {"votes": sum(row["votes"] for row in rows)}
    lines = [_many(data["votes"], "vote")]
    for name in ("verdict", "rater", "purpose"):
        counts = Counter[str]()
        for row in rows:
            counts[row[name]] += row["votes"]
        data[name] = dict(counts.most_common())
        lines.append(f"by {name}: " + (_listed(counts) or "none"))
    data["agreement"] = both = agreement(store)
    data["repeats"] = again = repeats(store)
    if again["repeats"]:
        share = f"{again['same']} of {_many(again['repeats'], 'pair')}"
        lines.append(f"asked a second time, sides swapped: {share} judged as before")
    if len(data["rater"]) > 1:
        share = f"{both['same'] / both['pairs']:.0%} say the same" if both["pairs"] else "none"
        few = f"too few to say how far raters agree ({FEWEST_OVERLAPS} are needed)"
        said = share if both["pairs"] >= FEWEST_OVERLAPS else few
        lines.append(f"{_many(both['pairs'], 'pair')} of votes of two raters on one item: {said}")
    return data, "\n".join(lines)


def agreement(store: Store) -> dict[str, int]:
    """Pairs of two raters' votes on the same two answers, and how many of them say the same.

    A vote says that the first is better, the second, or neither; skips and repeats don't count.
    """
    rows = store.rows(
        "WITH said AS (SELECT p.item_id, p.rater_id, CASE c.verdict WHEN 'ranked' THEN "
        "json_extract(c.ranking, '$[0][0]') ELSE 'neither' END AS what FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id WHERE p.repeats IS NULL "
        "AND c.verdict NOT IN ('skip', 'undone') AND (SELECT count(*) FROM item_completion ic "
        "WHERE ic.item_id = p.item_id) = 2) "
        "SELECT count(*) AS pairs, coalesce(sum(a.what = b.what), 0) AS same FROM said a "
        "JOIN said b ON a.item_id = b.item_id AND a.rater_id < b.rater_id"
    )
    return {"pairs": rows[0]["pairs"], "same": rows[0]["same"]}


def repeats(store: Store) -> dict[str, int]:
    """Pairs that a rater was asked again, and how many of them were judged as before."""
    rows = store.rows(
        "SELECT count(*) AS repeats, coalesce(sum(a.verdict = b.verdict "
        "AND a.ranking IS b.ranking), 0) AS same FROM presentation p "
        "JOIN current_judgement b ON b.presentation_id = p.id "
        "JOIN current_judgement a ON a.presentation_id = p.repeats "
        "WHERE a.verdict NOT IN ('skip', 'undone') AND b.verdict NOT IN ('skip', 'undone') "
        "AND (SELECT count(*) FROM item_completion ic WHERE ic.item_id = p.item_id) = 2"
    )
    return {"repeats": rows[0]["repeats"], "same": rows[0]["same"]}


# ---- raters


def raters(args: Namespace) -> Told:
    """One of: a list, --add, --remove."""
    if args.password_stdin and args.add is None:
        raise UserError("--password-stdin belongs to --add NAME.")
    store = Project(args.project).store()
    try:
        if args.add is not None:
            return _add(store, args.add, args.password_stdin)
        if args.remove is not None:
            remove_password(store, args.remove)
            text = f"{args.remove} can't log in any more. The votes stay."
            return {"removed": args.remove}, text
        return _list(store)
    finally:
        store.close()


def _add(store: Store, name: str, from_stdin: bool) -> Told:
    known = name in with_password(store)
    set_password(store, name, _password(name, from_stdin))
    new = "has a new password; earlier logins have ended" if known else "can log in"
    return {"added": name, "had_password": known}, f"{name} {new}."


def _password(name: str, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UserError(
            "Nobody can type a password here. Give it as a line on standard input, with "
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


def _list(store: Store) -> Told:
    rows = store.rows(
        "SELECT r.name, r.password IS NOT NULL AS can, count(c.id) AS votes FROM rater r "
        "LEFT JOIN presentation p ON p.rater_id = r.id LEFT JOIN current_judgement c "
        "ON c.presentation_id = p.id AND c.verdict != 'undone' GROUP BY r.id ORDER BY r.name"
    )
    found = [
        {"name": row["name"], "votes": row["votes"], "can_log_in": bool(row["can"])} for row in rows
    ]
    width = max((len(str(rater["name"])) for rater in found), default=0)
    lines = [
        f"{rater['name']:{width}}  {_many(int(rater['votes']), 'vote')}, "
        f"{'can log in' if rater['can_log_in'] else 'no password'}"
        for rater in found
    ]
    return {"raters": found}, "\n".join(
        lines
    ) or "Nobody has voted yet. Add raters with --add NAME."


# ---- words


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.most_common())


def _rest(left: dict[str, int]) -> str:
    listed = "; ".join(f"{count} {reason}" for reason, count in left.items())
    return f" Left out: {listed}." if left else ""


def _names(store: Store) -> str:
    names = [rater["name"] for rater in _list(store)[0]["raters"] if rater["votes"]]
    return f" Votes are there of {', '.join(names)}." if names else ""
