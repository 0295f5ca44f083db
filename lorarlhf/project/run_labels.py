"""What a person says about a run: its title, and whether it is dropped. A file in its folder."""

import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json
from lorarlhf.runtime.run_folder import LABEL

LONGEST_TITLE = 80


@dataclass(frozen=True)
class RunLabel:
    """A run's title, or ""; and whether it is hidden from the lists of models."""

    title: str = ""
    dropped: bool = False


def read_label(run: Path) -> RunLabel:
    """The label of a run's folder; an empty one if nobody has written any."""
    about = read_json(run / LABEL)
    title = about.get("title")
    return RunLabel(title if isinstance(title, str) else "", about.get("dropped") is True)


def write_title(run: Path, title: str) -> RunLabel:
    """Give a run a title; an empty one takes it away. The folder keeps its name.

    Raises:
        UserError: the title has more than one line or is too long, or it can't be written.
    """
    title = title.strip()
    if len(title) > LONGEST_TITLE:
        raise UserError(f"A title has up to {LONGEST_TITLE} characters; this one has {len(title)}.")
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in title):
        raise UserError("A title is one line of text, without control characters.")
    return _write(run, replace(read_label(run), title=title))


def set_dropped(run: Path, dropped: bool) -> RunLabel:
    """Drop a run, or keep it again.

    Raises:
        UserError: it can't be written.
    """
    return _write(run, replace(read_label(run), dropped=dropped))


def _write(run: Path, label: RunLabel) -> RunLabel:
    try:
        if label == RunLabel():
            (run / LABEL).unlink(missing_ok=True)
        else:
            write_json(run / LABEL, asdict(label))
    except OSError as error:
        raise UserError(
            f"{run / LABEL} can't be written ({error.strerror}). Check the folder and its rights."
        ) from error
    return label
