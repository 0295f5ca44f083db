"""A data set of votes as a folder: `train.jsonl` and its card, written whole or not at all.

`datasets.load_dataset(FOLDER)` reads it, and TRL's trainers take it as it is.
"""

import secrets
import shutil
from pathlib import Path

from lorarlhf.export.cards.dataset_card import dataset_card
from lorarlhf.export.dataset import TRAIN, Dataset
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move, write_bytes, write_jsonl


def write_dataset(data: Dataset, folder: str | Path, name: str, base: str = "") -> Path:
    """Write the data set and its card into a new folder, whole or not at all.

    Args:
        name: of the data set, for the card's title.
        base: the base whose answers were rated, as a name without a path; "" if not known.

    Raises:
        UserError: the folder is there already or can't be written, or there are no rows.
    """
    out = Path(folder).expanduser()
    if out.exists():
        raise UserError(f"{out} exists already. Name another folder with --out.")
    if not data.rows:
        raise UserError(f"There is nothing to write to {out}: no vote names a better answer.")
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
        try:
            write_jsonl(draft / TRAIN, data.rows)
            write_bytes(draft / "README.md", dataset_card(data, name, base).encode())
            move(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); check the folder, its rights and the "
            "space on the disk"
        ) from error
    return out
