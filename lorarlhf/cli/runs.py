"""The command `runs`: a project's runs as a table and a tree; titles, dropping, deleting."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.cli.result import Result, excerpt
from lorarlhf.evaluation.eval_results import aligned
from lorarlhf.evaluation.run_wins import Wins, wins_by_run
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.project.run_deletion import check_deletable, delete_run, finish_deletions, votes_files
from lorarlhf.project.run_labels import set_dropped, write_title
from lorarlhf.project.run_list import RunInfo, find_run, folder_bytes, lineage, read_runs
from lorarlhf.project.run_words import duration, results_in_words, size, source_in_words

NO_RUNS = "There are no runs yet. `lorarlhf reward {folder}` or another stage makes one."
HEAD = ["run", "title", "state", "started", "took", "size", "started from", "result"]
LONGEST_TITLE, LONGEST_SOURCES = 40, 60


def runs(args: Namespace) -> Result:
    """One of: the list, --rename, --drop, --keep, --delete."""
    project = Project(args.project)
    if args.rename is not None:
        run, title = args.rename
        folder = find_run(project, run)
        named = write_title(folder, title).title
        said = (
            f"{folder.name} is called “{named}” now." if named else f"{folder.name} has no title."
        )
        return Result({"run": folder.name, "title": named}, said)
    if args.drop is not None or args.keep is not None:
        return _keep(project, args.keep or args.drop, kept=args.keep is not None)
    store = project.store()
    try:
        if args.delete is not None:
            return _delete(project, args.delete, store)
        finish_deletions(project)
        return _list(project, store)
    finally:
        store.close()


def _keep(project: Project, run: str, kept: bool) -> Result:
    folder = find_run(project, run)
    set_dropped(folder, not kept)
    how = (
        "is kept" if kept else "is dropped: no list of models shows it, and nothing starts from it"
    )
    return Result({"run": folder.name, "dropped": not kept}, f"{folder.name} {how}.")


def _delete(project: Project, name: str, store: Store) -> Result:
    folder = find_run(project, name)
    freed = folder_bytes(folder) + sum(file.stat().st_size for file in votes_files(folder))
    check_deletable(project, folder.name, store)  # before anybody is asked
    if sys.stdin.isatty():
        print(f"{folder} ({size(freed)}) will be removed for good. Delete it? [y/N] ", end="")
        if input().strip().lower() not in ("y", "yes"):
            return Result({"deleted": None}, "Nothing was deleted.")
    deleted = delete_run(project, folder.name, store)
    text = f"{deleted} is deleted ({size(freed)}). The votes on its answers stay."
    return Result({"deleted": deleted, "bytes": freed}, text)


def _list(project: Project, store: Store) -> Result:
    found = read_runs(project)
    wins = wins_by_run(store, project.evaluations())
    sizes = {run.name: folder_bytes(run.folder) for run in found}
    tree = lineage(found)
    data = {
        "runs": [_data(run, wins.get(run.name), sizes[run.name]) for run in found],
        "tree": [{"run": run.name, "depth": depth} for depth, run in tree],
    }
    if not found:
        return Result(data, NO_RUNS.format(folder=project.folder))
    rows = [_row(run, wins.get(run.name), sizes[run.name]) for run in found]
    lines = [*aligned([HEAD, *rows]), "", "What started from what:", *_tree(tree)]
    return Result(data, "\n".join(lines))


def _data(run: RunInfo, wins: Wins | None, count: int) -> dict[str, Any]:
    """A run as plain values for --json."""
    plain: Mapping[str, Any] = {
        name: getattr(run, name)
        for name in ("name", "number", "stage", "title", "label", "dropped", "state", "started")
    }
    return {
        **plain,
        "seconds": run.seconds,
        "base": run.base,
        "roles": list(run.roles),
        "sources": [vars(source) for source in run.sources],
        "results": dict(run.results),
        "win_rate": None if wins is None else vars(wins),
        "alarms": list(run.alarms),
        "bytes": count,
        "folder": str(run.folder),
    }


def _row(run: RunInfo, wins: Wins | None, count: int) -> list[str]:
    won = [] if wins is None else [wins.in_words()]
    return [
        run.name,
        excerpt(run.title, LONGEST_TITLE),
        f"{run.state}, dropped" if run.dropped else run.state,
        run.started.replace("T", " ")[:16],
        duration(run.seconds),
        size(count),
        excerpt("; ".join(map(source_in_words, run.sources)), LONGEST_SOURCES),
        "; ".join([*won, *results_in_words(run)]),
    ]


def _tree(tree: Sequence[tuple[int, RunInfo]]) -> list[str]:
    """Each run below the one that it started from; other sources stand behind it."""
    lines, base = list[str](), None
    for depth, run in tree:
        if depth == 0 and run.base_name != base:
            base = run.base_name
            lines.append(base or "an unknown base")
        above = next((source for source in run.sources if source.run), None)
        others = [source_in_words(one) for one in run.sources if depth == 0 or one is not above]
        title = f" “{run.title}”" if run.title else ""
        rest = f" ({'; '.join(others)})" if others else ""
        lines.append(f"{'  ' * (depth + 1)}{run.name}{title}{rest}")
    return lines
