"""An export's configuration files without the paths of this machine, as others get them."""

import json
from pathlib import Path
from typing import Any

from lorarlhf.export.cards.run_facts import file_name
from lorarlhf.export.upload_check import WORDS, is_path
from lorarlhf.runtime.files import write_json

OF_BASE = ("base_model_name_or_path", "_name_or_path", "base", "base_path")
"""Fields that name the base: in PEFT's, transformers' and our own files."""


def hide_paths(folder: str | Path, base: str) -> list[str]:
    """Replace whole paths in the JSON files of a folder by names; returns the files that changed.

    A path in a field of the base becomes the base's id on the hub, or its name; any other becomes
    its own end. PEFT and transformers then load a base from the hub on any machine.

    Args:
        base: `BaseFacts.shared_name`.
    """
    changed = []
    for file in sorted(Path(folder).rglob("*.json")):
        if file.name in WORDS or file.is_symlink():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # the check of the upload looks at it as a text
        named = _named(content, "", base)
        if named != content:
            write_json(file, named)
            changed.append(file.name)
    return changed


def _named(value: Any, field: str, base: str) -> Any:
    if isinstance(value, dict):
        return {name: _named(one, str(name), base) for name, one in value.items()}
    if isinstance(value, list):
        return [_named(one, field, base) for one in value]
    if not isinstance(value, str) or not is_path(value):
        return value
    return base if base and field in OF_BASE else file_name(value)
