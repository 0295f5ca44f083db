"""The backbone that a command's settings describe."""

from typing import TYPE_CHECKING

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    import torch

    from lorarlhf.backbone.base import Backbone


def device_of(settings: Settings) -> "torch.device":
    """The device that the settings name, or the best one.

    Raises:
        UserError: a device that is not there.
    """
    import torch

    from lorarlhf.backbone.devices import best_device

    device = settings.backbone["device"]
    if device is None:
        return best_device(settings.backbone["bits"])
    missing = (device.startswith("cuda") and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(
            f"device is {device}, and this machine has none that PyTorch can use. Leave device "
            "out, or run `lorarlhf doctor` to see what is wrong."
        )
    return torch.device(device)


def load_backbone(settings: Settings) -> "Backbone":
    """Load the base as the settings say, with a line for whoever waits.

    Raises:
        UserError: as `Backbone.load`; also a device that is not there, or more adapter layers
            than the base has layers.
    """
    from lorarlhf.backbone.base import Backbone

    device_of(settings)
    log_to_stderr(f"Loading {settings.base} in {settings.backbone['bits']} bit ...")
    try:
        return Backbone.load(
            settings.base, seed=settings.seed, log=log_to_stderr, **settings.backbone
        )
    except ValueError as error:
        if str(error).startswith("adapter_layers"):  # what it may be is known only now
            raise UserError(f"{error}.") from error
        raise
