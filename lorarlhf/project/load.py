"""The backbone that a command's settings describe."""

from typing import TYPE_CHECKING, Any

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.base_files import BaseFiles

FILE_SETTINGS = ("bits", "device", "compute_dtype", "chat_template", "thinking")
"""The settings that `open_base` takes."""


def open_base_of(settings: Settings) -> "BaseFiles":
    """Find the base that the settings name; raises what `open_base` raises."""
    from lorarlhf.backbone.base_files import open_base

    how = {name: settings.backbone[name] for name in FILE_SETTINGS}
    return open_base(settings.base, log=log_to_stderr, **how)


def load_backbone(settings: Settings, base: "BaseFiles | None" = None) -> "Backbone":
    """Load the base as the settings say, and log a line first because it takes a while.

    Args:
        base: from `open_base_of`, if it is open already.

    Raises:
        UserError: as in `Backbone.load`; also if there are more adapter layers than layers.
    """
    from lorarlhf.backbone.base import Backbone

    base = base or open_base_of(settings)
    log_to_stderr(f"Loading {settings.base} in {settings.backbone['bits']} bit ...")
    how: dict[str, Any] = {
        name: value
        for name, value in settings.backbone.items()
        if name == "bits" or name not in FILE_SETTINGS
    }
    try:
        return Backbone.load(base, seed=settings.seed, log=log_to_stderr, **how)
    except ValueError as error:
        if str(error).startswith("adapter_layers"):  # the limit is known only now
            raise UserError(f"{error}.") from error
        raise
