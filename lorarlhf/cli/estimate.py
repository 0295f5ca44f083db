"""The command `estimate`: the peak memory of each stage on a base, as a table."""

from argparse import Namespace
from typing import Any

from lorarlhf.backbone.limits import count_adapter_layers
from lorarlhf.backbone.memory import estimate, largest
from lorarlhf.backbone.memory_plan import COUNTED, MACHINES, Plan
from lorarlhf.backbone.shape import Shape, read_shape
from lorarlhf.runtime.errors import UserError

GB = 1e9
FIELDS = (
    *("bits", "lora_rank", "micro_batch_size", "rollout_batch_size"),
    *("prompt_tokens", "answer_tokens", "device", "gradient_checkpointing"),
    *("reference", "value_adapter", "policy_layers", "value_layers"),
)


def run(args: Namespace) -> dict[str, Any]:
    """The command's result: settings, bytes by stage and part, what fits.

    Raises:
        UserError: the base does not exist or is not a decoder, or a number is out of range.
    """
    shape = read_shape(args.base)
    named = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    for name, value in named.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is 1 or more, not {value}.")
    if args.card is not None and not args.card > 0:
        raise UserError(f"--card is above 0 gigabytes, not {args.card:g}.")
    named["float_bytes"] = 4 if args.compute_dtype == "float32" else 2
    layers = _layers(args.adapter_layers, shape)
    plans = [
        Plan(stage, adapter_layers=layers, **named)
        for stage in ([args.stage] if args.stage else COUNTED)
    ]
    result: dict[str, Any] = {
        "base": args.base,
        "measured": MACHINES[plans[0].device].measured,
        "bytes": {plan.stage: estimate(shape, plan) for plan in plans},
    }
    if args.card is not None:
        room = round(args.card * GB)
        result |= {
            "card": room,
            "fits": {name: parts["total"] <= room for name, parts in result["bytes"].items()},
            "largest": {p.stage: largest(shape, p, room) for p in plans},
        }
    return result


def _layers(wanted: str, shape: Shape) -> int:
    try:
        return count_adapter_layers(wanted, shape.layers)
    except ValueError as error:
        raise UserError(
            f"--adapter-layers is upper-half, all or a number from 1 to {shape.layers}, not "
            f"{wanted}."
        ) from error


def as_text(result: dict[str, Any]) -> str:
    """A table of gigabytes, and what fits."""
    stages = list(result["bytes"])
    parts = list(result["bytes"][stages[0]])
    lines = [f"{'GB':14}" + "".join(f"{stage:>9}" for stage in stages)]
    for part in parts:
        figures = (result["bytes"][stage][part] / GB for stage in stages)
        lines.append(f"{part:14}" + "".join(f"{figure:9.2f}" for figure in figures))
    if "card" in result:
        fits = ("yes" if result["fits"][stage] else "NO" for stage in stages)
        lines.append(f"{'fits':14}" + "".join(f"{word:>9}" for word in fits))
        for name in ("micro_batch_size", "answer_tokens"):
            most = (result["largest"][stage][name] or "none" for stage in stages)
            lines.append(f"{'most ' + name.split('_')[0]:14}" + "".join(f"{n:>9}" for n in most))
        lines.append(
            f"On {result['card'] / GB:g} GB: the largest micro_batch_size at these lengths, and the"
            " most answer tokens at this micro_batch_size."
        )
    if not result["measured"]:
        lines.append("kv_cache and the memory of learning are not in use at the same time.")
        lines.append("Computed, not measured on this kind of card.")
    return "\n".join(lines)
