"""`votes --export dataset`: the votes as a data set with a card, on the disk or the hub."""

import io
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorarlhf.cli.push_options import DATASET, push_target
from lorarlhf.preferences.records import Vote
from lorarlhf.project.project import Project, project_settings
from lorarlhf.runtime.errors import UserError

LOOK = (
    "Prompts and answers are as they were typed: look through them, and choose a licence in "
    "README.md, before others get the data set."
)


def check_dataset_options(args: Namespace) -> None:
    """Refuse the options of a data set beside another form of export.

    Raises:
        UserError: it names the option.
    """
    for name in ("with_notes", "with_raters", "push", "public"):
        if getattr(args, name) and args.export != DATASET:
            raise UserError(f"--{name.replace('_', '-')} belongs to --export {DATASET}.")


def export_dataset(
    args: Namespace, votes: Sequence[Vote], left_out: dict[str, int]
) -> tuple[dict[str, Any], str]:
    """Write the data set into the folder --out, and upload it where that is asked.

    Args:
        votes: those that are wanted.
        left_out: counts of votes that are not, by reason.

    Returns:
        The data for --json, and the text for people.
    """
    from lorarlhf.export.dataset import make_dataset
    from lorarlhf.export.dataset_folder import write_dataset

    target = push_target(args, DATASET)
    project = Project(args.project)
    made = make_dataset(votes, args.with_notes, args.with_raters)
    folder = write_dataset(made, args.out, _title(project), _base(project))
    left = made.left_out | left_out
    data = {"folder": str(folder), "rows": len(made.rows), "votes": len(votes), "left_out": left}
    listed = "; ".join(f"{count} {why}" for why, count in left.items())
    rest = f" Left out: {listed}." if left else ""
    text = f"{folder}: {len(made.rows)} rows from {len(votes)} votes, with a card.{rest}\n{LOOK}"
    if target is not None:
        from lorarlhf.export.hub import push

        data["address"] = push(folder, target)
        seen = "everybody can see it" if target.public else "only you can see it"
        text += f"\nUploaded to {data['address']}; {seen}."
    return data, text


def dataset_zip(project: Project, votes: Sequence[Vote]) -> bytes:
    """The data set as a zip file, without notes and names.

    Raises:
        UserError: no vote names a better answer.
    """
    from lorarlhf.export.dataset import make_dataset
    from lorarlhf.export.dataset_folder import write_dataset

    with tempfile.TemporaryDirectory(prefix="lorarlhf-") as scratch:
        folder = write_dataset(
            make_dataset(votes), Path(scratch) / DATASET, _title(project), _base(project)
        )
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"votes/{file.name}")
    return content.getvalue()


def _title(project: Project) -> str:
    return f"Preference votes of {project.folder.resolve().name}"


def _base(project: Project) -> str:
    """The base that wrote the answers, as a name without a path."""
    from lorarlhf.export.cards.base_facts import base_facts

    settings = {item.name: item.value for item in project_settings(project)}
    return base_facts(str(settings.get("base") or ""), "").shared_name
