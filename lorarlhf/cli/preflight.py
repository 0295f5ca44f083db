"""Will a training fit into memory? Counted before the base is loaded.

`backbone/memory.py` counts. Here a command's settings become a plan, and a plan that does not fit
becomes advice.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.backbone.base_files import BaseFiles
from lorarlhf.backbone.limits import count_adapter_layers
from lorarlhf.backbone.memory import base_bytes, estimate
from lorarlhf.backbone.memory_plan import MACHINES, Plan
from lorarlhf.backbone.shape import Shape
from lorarlhf.cli.row_checks import Length
from lorarlhf.project.settings import Settings
from lorarlhf.project.stage import Stage
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.machine import main_memory
from lorarlhf.stages.trl.arguments import batch_arguments

if TYPE_CHECKING:
    import torch

GB = 1e9
TRL_SIZES = {
    *("per_device_train_batch_size", "steps_per_generation", "generation_batch_size", "use_vllm"),
}
"""Fields of TRL's that change what RLOO and GRPO hold at once."""


def free_for_us(device: "torch.device") -> int:
    """Bytes that this process may fill on a device, including what it holds there already."""
    from lorarlhf.backbone.devices import CARDS, card_memory

    if device.type in CARDS:
        import torch

        reserved = torch.get_device_module(device).memory_reserved(device)
        return card_memory(device)[0] + reserved + MACHINES["cuda"].runtime  # the context
    import psutil

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share this machine
    return main_memory()[0] // here + psutil.Process().memory_info().rss


@dataclass(frozen=True)
class MemoryEstimate:
    """The plan of a stage and the memory that it takes.

    Attributes:
        shape: of the base; plan: of the stage.
        smaller: the micro-batch sizes below the plan's that its settings would take.
        new_adapters: whether the adapters' shape can be chosen, as no run is started from.
        reward_models: bytes of separate reward models.
    """

    shape: Shape
    plan: Plan
    smaller: tuple[int, ...] = ()
    new_adapters: bool = True
    reward_models: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, and their `total`."""
        return self._parts(self.plan)

    def _parts(self, plan: Plan) -> dict[str, int]:
        parts = estimate(self.shape, plan)
        if extra := self.reward_models:
            parts |= {"reward_models": extra, "total": parts["total"] + extra}
        return parts

    def describe(self, free: int) -> str:
        """One line for the terminal."""
        parts, plan = self.parts, self.plan
        total = parts.pop("total")
        largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
        named = ", ".join(f"{name.replace('_', ' ')} {size / GB:.1f}" for name, size in largest)
        longest = plan.prompt_tokens + plan.answer_tokens
        sort = (
            ""
            if MACHINES[plan.device].measured
            else "; computed, not measured on this kind of card"
        )
        return (
            f"Memory: about {total / GB:.1f} GB at the peak, {free / GB:.1f} GB free ({named}; "
            f"{plan.micro_batch_size} at a time, the longest of {longest} tokens{sort})."
        )

    def check(self, free: int) -> None:
        """See that the plan fits into `free` bytes.

        Raises:
            UserError: it does not. The message names single settings that would make it fit, or
                else all of them at once.
        """
        if self.parts["total"] <= free:
            return
        ways = [
            f"--set {name}={value} ({size / GB:.1f} GB)"
            for name, value, changed in self._ways()
            if (size := self._parts(replace(self.plan, **changed))["total"]) <= free
        ]
        advice = f"What would fit: {'; '.join(ways)}." if ways else self._all_changes(free)
        raise UserError(
            f"{self.describe(free)} That does not fit. {advice} `lorarlhf estimate` shows every "
            "part; --no-memory-check starts it anyway."
        )

    def _ways(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Setting, value, and the change of the plan; the cheapest first."""
        plan, upper = self.plan, self.plan.adapter_layers
        for size in self.smaller:
            yield "micro_batch_size", size, {"micro_batch_size": size}
        if not plan.checkpointed:
            name = ("" if plan.needs.samples else "trl.") + "gradient_checkpointing"
            yield name, "true", {"gradient_checkpointing": True}
        if plan.bits > 4:
            yield "bits", 4, {"bits": 4}
        if self.new_adapters and upper is not None and upper > 1:
            yield "adapter_layers", upper // 2, {"adapter_layers": upper // 2}
        half = plan.answer_tokens // 2
        if plan.stage != "reward" and half:
            tokens = half if plan.needs.samples else plan.prompt_tokens + half
            name = "max_new_tokens" if plan.needs.samples else "max_tokens"
            yield name, tokens, {"answer_tokens": half}

    def _all_changes(self, free: int) -> str:
        """The advice where no single change is enough."""
        ways = {name: (value, changed) for name, value, changed in self._ways()}
        changes: dict[str, Any] = {}
        for _, changed in ways.values():  # of sizes the last, which is the smallest
            changes |= changed
        size = self._parts(replace(self.plan, **changes))["total"]
        if size > free:
            return "Take a smaller base, or shorter texts."
        named = " ".join(f"--set {name}={value}" for name, (value, _) in ways.items())
        return f"All of these together would fit: {named} ({size / GB:.1f} GB)."


def weights_of(models: Sequence[str]) -> int:
    """Bytes that separate reward models take on the device, as far as their files are here."""
    folders = (Path(name.partition("#")[0]).expanduser() for name in models)
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def estimate_memory(
    stage: Stage,
    settings: Settings,
    base: BaseFiles,
    longest: Length,
    *,
    has_reference: bool,
    new_adapters: bool = True,
    reward_models: int = 0,
) -> MemoryEstimate | None:
    """The memory that a training command will take; None where its base can't be counted.

    Args:
        has_reference: whether the reference has an adapter of its own.
        new_adapters, reward_models: see `MemoryEstimate`.
    """
    own, trl = settings.own, settings.trl
    without_critic = own.get("algorithm", "ppo") != "ppo"
    if stage.name == "reward" and own["epochs"] == 0:
        return None  # little more than the base
    if without_critic and TRL_SIZES & trl.keys():
        return None  # TRL's own fields decide
    try:
        shape = Shape.of(base.config.to_dict())
        layers = count_adapter_layers(settings.backbone["adapter_layers"], shape.layers)
        base_bytes(shape, 4)
    except (KeyError, TypeError, ValueError):
        return None  # a family of another shape, or a number that is refused at load
    size, rollout, batch = own["micro_batch_size"], 1, 0
    if stage.rewarded:
        # A process holds its share of the rollout, and a minibatch is cut into even parts.
        rollout = -(-own["rollout_batch_size"] // distributed.world_size())
        batch = own["rollout_batch_size"] // own["num_minibatches"]
        size = min(size, batch, rollout)
    else:
        named = batch_arguments(own["batch_size"], size)["per_device_train_batch_size"]
        size = trl.get("per_device_train_batch_size", named)
    plan = Plan(
        "rloo" if without_critic else stage.name,
        bits=settings.backbone["bits"],
        adapter_layers=layers,
        lora_rank=settings.backbone["lora_rank"],
        micro_batch_size=size,
        rollout_batch_size=rollout,
        prompt_tokens=longest.prompt,
        answer_tokens=longest.answer,
        float_bytes=base.dtype.itemsize,
        device="cuda" if base.device.type in ("cuda", "xpu") else "cpu",
        gradient_checkpointing=(own | trl).get("gradient_checkpointing"),
        reference=has_reference,
        value_adapter=own.get("value_adapter", True),
        policy_layers=own.get("policy_layers"),
        value_layers=own.get("value_layers"),
    )
    smaller = [n for n in range(size - 1, 0, -1) if n & (n - 1) == 0 or batch]
    smaller = [n for n in smaller if batch % n == 0 and n >= stage.smallest_micro_batch]
    return MemoryEstimate(shape, plan, tuple(smaller), new_adapters, reward_models)
