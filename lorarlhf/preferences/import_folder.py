"""A file of votes, or a folder of them, such as the one in which a program keeps its chats."""

from collections.abc import Sequence
from pathlib import Path

from lorarlhf.data.file_formats import PARSERS
from lorarlhf.preferences.imports import Import, read_votes
from lorarlhf.preferences.merge import Merged, merge_votes
from lorarlhf.preferences.merge_candidates import merge_candidates
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import progress_bar

ENDINGS = (*PARSERS, ".parquet")
NOT_READ = "files that can't be read"


def read_all(path: Path, answers: str | None = None, *, skip_bad: bool = False) -> list[Import]:
    """What a file gave, or each file in a folder and in the folders within it.

    Args:
        answers, skip_bad: as for `read_votes`; with `skip_bad`, files that hold no votes are left
            out, too, and named.

    Raises:
        UserError: what `read_votes` raises; no file in the folder.
    """
    if not path.is_dir():
        return [read_votes(path, answers, skip_bad=skip_bad)]
    files = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in ENDINGS]
    files = [one for one in files if one.is_file() and not one.name.startswith(".")]
    if not files:
        raise UserError(f"{path}: no file in this folder ends in {', '.join(ENDINGS)}.")
    found = []
    with progress_bar(f"Reading {path.name}", len(files)) as advance:
        for file in files:
            try:
                found.append(read_votes(file, answers, skip_bad=skip_bad))
            except UserError as error:
                if not skip_bad:
                    raise
                bad = Import(bad=[str(error)])
                bad.left_out[NOT_READ] += 1
                found.append(bad)
            advance(1)
    return found


def merge_all(store: Store, found: Sequence[Import]) -> tuple[Merged, Merged]:
    """Add what files gave to a store, all of it or nothing: the votes, and answers to rate."""
    with store.write():
        votes = [merge_votes(store, one.votes) for one in found]
        rated = [merge_candidates(store, one.candidates) for one in found]
    return _sum(votes), _sum(rated)


def _sum(merged: Sequence[Merged]) -> Merged:
    return Merged(
        sum(one.added for one in merged),
        sum(one.there for one in merged),
        sum(one.changed for one in merged),
    )


def together(found: Sequence[Import]) -> Import:
    """Several files as one: without the numbers of rows, which count in each file anew."""
    if len(found) == 1:
        return found[0]
    whole = Import()
    for one in found:
        whole.votes += one.votes
        whole.candidates += one.candidates
        whole.left_out += one.left_out
        whole.remarks += one.remarks
        whole.bad += one.bad
    return whole
