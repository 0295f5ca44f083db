"""Whether a training run fits, told before the base is loaded: the estimate and what is free.

What is counted is in `memory.py`; here a command's settings become its plan, and a plan that does
not fit becomes advice.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.errors import UserError
from lorarlhf.memory import MACHINES, Plan, Shape, estimate

if TYPE_CHECKING:
    import torch

    from lorarlhf.row_checks import Length
    from lorarlhf.settings import Settings

CGROUP = Path("/sys/fs/cgroup")
GB = 1e9


def container_limit() -> tuple[int, int] | None:
    """(limit, used) in bytes of the control group this process is in; None without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = (CGROUP / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    cache = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
    return (int(limit), max(0, used - cache)) if limit.isdecimal() else None


def main_memory() -> tuple[int, int]:
    """(free, total) bytes of this machine, or of the container that this process is in."""
    import psutil

    here = psutil.virtual_memory()
    if (limit := container_limit()) is None:
        return here.available, here.total
    return min(here.available, limit[0] - limit[1]), min(here.total, limit[0])


def free_for_us(device: "torch.device") -> int:
    """Bytes that this process may fill on a device, what it holds there already included."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share this machine
    return main_memory()[0] // here + psutil.Process().memory_info().rss


@dataclass(frozen=True)
class Foretold:
    """A stage's plan and the bytes by part that it takes."""

    shape: Shape
    plan: Plan

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, and their `total`."""
        return estimate(self.shape, self.plan)

    def told(self, free: int) -> str:
        """One line for the person who waits."""
        parts, plan = self.parts, self.plan
        total = parts.pop("total")
        largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
        named = ", ".join(f"{name.replace('_', ' ')} {size / GB:.1f}" for name, size in largest)
        longest = plan.prompt_tokens + plan.answer_tokens
        sort = "" if MACHINES[plan.device].measured else "; computed, not measured on such a card"
        return (
            f"Memory: about {total / GB:.1f} GB at the peak, {free / GB:.1f} GB free ({named}; "
            f"{plan.micro_batch_size} at a time, the longest of {longest} tokens{sort})."
        )

    def check(self, free: int) -> None:
        """See that the plan fits into `free` bytes.

        Raises:
            UserError: it does not; says which single settings would make it fit.
        """
        total = self.parts["total"]
        if total <= free:
            return
        ways = [
            f"--set {name}={value} ({size / GB:.1f} GB)"
            for name, value, plan in self._ways()
            if (size := estimate(self.shape, plan)["total"]) <= free
        ]
        if not ways:
            smallest = self._smallest()
            size = estimate(self.shape, smallest)["total"]
            if size <= free:
                changed = ", ".join(f"{n}={v}" for n, v in self._changes(smallest).items())
                ways = [f"all of these together: {changed} ({size / GB:.1f} GB)"]
        advice = f"What would fit: {'; '.join(ways)}." if ways else "Take a smaller base."
        raise UserError(
            f"{self.told(free)} That does not fit. {advice} `lorarlhf estimate` shows every part; "
            "--no-memory-check starts it all the same."
        )

    def _ways(self) -> Iterator[tuple[str, Any, Plan]]:
        """Single changes by setting, those that cost least in quality and time first."""
        plan, upper = self.plan, self.plan.adapter_layers
        size = plan.micro_batch_size
        while size > 1:
            size //= 2
            changed = replace(plan, micro_batch_size=size)
            yield "micro_batch_size", size, changed
        if not plan.checkpointed:
            name = "gradient_checkpointing"
            name = name if plan.stage == "ppo" else f"trl.{name}"
            yield name, "true", replace(plan, gradient_checkpointing=True)
        if plan.bits > 4:
            yield "bits", 4, replace(plan, bits=4)
        if upper is not None and upper > 1:
            yield "adapter_layers", max(1, upper // 2), replace(plan, adapter_layers=upper // 2)

    def _smallest(self) -> Plan:
        """One at a time, checkpointed, in 4 bit, a quarter of the layers."""
        upper = min(self.plan.adapter_layers or self.shape.layers, max(1, self.shape.layers // 4))
        small: dict[str, Any] = {"micro_batch_size": 1, "gradient_checkpointing": True}
        return replace(self.plan, **small, bits=4, adapter_layers=upper)

    def _changes(self, other: Plan) -> dict[str, Any]:
        names = ("micro_batch_size", "gradient_checkpointing", "bits", "adapter_layers")
        pairs = ((name, getattr(other, name)) for name in names)
        return {name: value for name, value in pairs if value != getattr(self.plan, name)}


def foretell(
    stage: str,
    config: Any,
    settings: "Settings",
    device: "torch.device",
    float_bytes: int,
    longest: "Length",
    has_reference: bool,
) -> Foretold | None:
    """What a training command will take; None where its base or method can't be counted.

    Args:
        config: the base's configuration.
        has_reference: whether the reference is an adapter of its own.
    """
    from lorarlhf.backbone.anatomy import count_adapter_layers
    from lorarlhf.stages.common import batch_arguments

    own, trl = settings.own, settings.trl
    if own.get("algorithm") == "rloo":
        return None
    try:
        shape = Shape.of(config.to_dict())
        layers = count_adapter_layers(settings.backbone["adapter_layers"], shape.layers)
    except (KeyError, TypeError, ValueError):
        return None  # a family of another shape, or a number that is refused at load
    size = own["micro_batch_size"]
    if stage != "ppo":
        named = batch_arguments(own["batch_size"], size)["per_device_train_batch_size"]
        size = trl.get("per_device_train_batch_size", named)
    return Foretold(
        shape,
        Plan(
            stage,
            bits=settings.backbone["bits"],
            adapter_layers=layers,
            lora_rank=settings.backbone["lora_rank"],
            micro_batch_size=size,
            rollout_batch_size=own.get("rollout_batch_size", 1),
            prompt_tokens=longest.prompt,
            answer_tokens=longest.answer,
            float_bytes=float_bytes,
            device="cuda" if device.type == "cuda" else "cpu",
            gradient_checkpointing=(own if stage == "ppo" else trl).get("gradient_checkpointing"),
            reference=has_reference,
            value_adapter=own.get("value_adapter", True),
            value_layers=own.get("value_layers"),
        ),
    )
