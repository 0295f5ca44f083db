"""The settings of each method in `compare-methods`, from one file for all of them.

The file is like that of a training command, and blocks may also be named after methods: `grpo:`
adds to what `ppo:` says for GRPO, and `iterated-dpo:` to `dpo:`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorarlhf.project.settings import resolve
from lorarlhf.project.settings_sources import from_file
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.table import STAGES

Row = dict[str, Any]


def read_config(path: str | None) -> Row:
    """The keys and blocks of a settings file; empty without one. Raises a `UserError`."""
    return {item.name: item.value for item in from_file(Path(path))} if path else {}


def method_settings(config: Mapping[str, Any], name: str, stage: str, blocks: set[str]) -> Row:
    """What the file says for one method, as a file for the command of its stage.

    Args:
        name: of the method; stage: whose command trains it.
        blocks: the names of all blocks.
    """
    found = {key: value for key, value in config.items() if key not in blocks}
    block: Row = dict(config.get(stage) or {})
    if name in STAGES["ppo"].configs:  # RLOO and GRPO refuse what is PPO's alone
        used = STAGES["ppo"].keys_for(name)
        block = {key: value for key, value in block.items() if key in used}
    if name != stage:
        block |= config.get(name) or {}
    return found | ({stage: block} if block else {})


def check_settings(settings: Row, name: str, stage: str, path: str) -> frozenset[str]:
    """The keys that a method's settings give.

    Raises:
        UserError: the stage has no such setting, or not such a value; it names the file.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")
        try:
            return resolve(STAGES[stage], config=file).given
        except UserError as error:
            said = str(error).replace(f"{file}, line 1", f"{path}, for {name}")
            raise UserError(said) from None
