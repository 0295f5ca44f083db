"""`lorarlhf doctor`: checks of the machine and the installation, with a fix for each problem.

The checks are independent: a broken library fails only the checks that need it.
"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata

from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.backbone.fetch import PACKAGED
from lorarlhf.runtime.installer import find_uv, has_pip, install_command
from lorarlhf.runtime.machine import main_memory
from lorarlhf.runtime.terminal import as_typed

BASE = "smollm2-135m"
NEEDED_RAM = 2.0e9  # bytes; the demo's peak
NEEDED_CARD = 2.0e9
IMPORTED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, what was found, and how to fix it."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """All checks, in the order they are shown."""
    checks = [_safe("python", python)]
    checks += _safe_all("libraries", lambda: list(libraries()))
    plain = {"device": device, "compute dtype": compute_dtype, "4-bit": four_bit}
    plain |= {"LM head": lm_head}
    plain |= {"memory": memory, "card memory": card_memory, "disk": disk, "base": small_base}
    checks += [_safe(name, check) for name, check in plain.items()]
    return [replace(check, fix="") if check.ok else check for check in checks]


def as_text(checks: list[Check]) -> str:
    """A line for each check, with the fix below each check that failed."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'OK   ' if check.ok else 'WRONG'}  {check.name:{width}}  {check.found}")
        if not check.ok:
            lines.append(f"{'':{width + 9}}fix: {check.fix}")
    wrong = sum(not check.ok for check in checks)
    lines.append("Nothing is wrong." if not wrong else f"{wrong} of {len(checks)} are wrong.")
    return "\n".join(lines)


def _safe(name: str, check: Callable[[], Check]) -> Check:
    return _safe_all(name, lambda: [check()])[0]


def _safe_all(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check(name, False, f"could not be checked ({why})", install_command("lorarlhf"))]


# ---- versions


def python() -> Check:
    """This Python against the package's own range."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("lorarlhf")["Requires-Python"]
    here = platform.python_version()
    ok = SpecifierSet(wanted).contains(here, prereleases=True)
    fix = "make a new environment with a supported Python: python3.12 -m venv .venv"
    return Check("python", ok, f"{here} ({wanted}), {platform.system()}", fix)


def libraries() -> Iterator[Check]:
    """Every required library: installed, in the tested range, and importable where it is large."""
    from packaging.requirements import Requirement

    for text in metadata.requires("lorarlhf") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield _library(requirement.name, wanted, str(requirement.specifier))


def _library(name: str, wanted: str, specifier: str) -> Check:
    from packaging.specifiers import SpecifierSet

    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, f"not installed ({specifier})", install_command(wanted))
    if not SpecifierSet(specifier).contains(found, prereleases=True):
        return Check(name, False, f"{found}; needed: {specifier}", install_command(wanted))
    if name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken build may raise anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            fix = install_command(wanted, reinstall=True)
            return Check(name, False, f"{found} is broken ({why})", fix)
    return Check(name, True, f"{found} ({specifier})")


# ---- device


def device() -> Check:
    """The device that training would use; a failure if there is a card that PyTorch can't use."""
    import torch

    from lorarlhf.backbone import devices

    best, build = devices.best_device(4), devices.build_name()
    if best.type in devices.CARDS:
        name = torch.get_device_module(best).get_device_name(best)
        return Check("device", True, f"{name} ({best}, {build})")
    if best.type == "mps":
        return Check("device", True, "Apple's GPU (mps)")
    threads = f"CPU, {torch.get_num_threads()} threads"
    if card := devices.nvidia_card():
        fix = (
            "install a PyTorch with CUDA (https://pytorch.org/get-started/locally has the line for "
            f"this system; here is one for {build}), or a newer driver"
        )
        return Check("device", False, f"{threads}; found {card}, but torch can't use it", fix)
    for kind, name in devices.OTHERS.items():
        if devices.is_there(kind):
            why = f"{name} in 16 bit alone, since 4 bit fails there: {devices.unfit(kind, 4)}"
            return Check("device", True, f"{threads}; {why}")
    if devices.has_amd_driver() and torch.version.hip is None:
        more = f"AMD's driver is here; a PyTorch for ROCm may use it, and this is one for {build}"
        return Check("device", True, f"{threads} ({more})")
    return Check("device", True, f"{threads} (no card found)")


def compute_dtype() -> Check:
    """The dtype that training would use: bfloat16 if the device has it. The others work, too."""
    from lorarlhf.backbone.devices import best_device, compute_dtype_for

    best = best_device(4)
    used = str(compute_dtype_for(best)).removeprefix("torch.")
    ways = {
        "bfloat16": "",
        "float16": " with loss scaling, adapters in float32; this card has no bfloat16",
    }
    found = used + ways.get(used, f"; {best.type} has no fast bfloat16")
    return Check("compute dtype", True, found)


def four_bit() -> Check:
    """Quantise a small matrix to NF4 on the device and multiply by it, forward and backward.

    The mean error of NF4 on normal weights is about a tenth of their deviation; a kernel that
    does not work is far off. On a card or a GPU the result is compared with the CPU's, too.
    """
    from lorarlhf.backbone import four_bit
    from lorarlhf.backbone.devices import best_device, compute_dtype_for

    best = best_device(4)
    dtype = compute_dtype_for(best)
    weight, inputs = four_bit.weight_and_inputs()
    got = four_bit.product(best, dtype, len(inputs))[0]
    error = four_bit.difference(got, inputs @ weight.T)
    ok = error < 0.2  # false for NaN too
    found = f"NF4 product on {best.type} with an error of {error:.0%} (at most 20%)"
    if best.type != "cpu" and (why := four_bit.trouble(best.type, dtype)) is not None:
        ok, found = False, f"NF4 product on {best.type}: {why}"
    return Check("4-bit", ok, found, install_command("bitsandbytes"))


def lm_head() -> Check:
    """Run TRL's fused LM head, forward and backward, on a few numbers.

    With Triton, on a card, its kernels are compiled when they first run, which needs a C compiler.
    """
    import torch
    from trl.kernels import ChunkedLogProbFunction

    from lorarlhf.backbone.devices import best_device

    best = best_device(4)
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((4, 16), (64, 16))
    hidden, weight = (torch.randn(*n, generator=generator, device="cpu").to(best) for n in sizes)
    hidden.requires_grad_()
    targets = torch.arange(4, device=best)
    wanted = (hidden @ weight.T).log_softmax(dim=1)[targets, targets]
    triton = _uses_triton(best.type)
    kind = "Triton's kernels" if triton else "torch's operations"
    try:
        found = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32)[0]
        grads = [torch.autograd.grad(x.sum(), hidden)[0] for x in (found, wanted)]
    except Exception as error:  # a compiler or a driver may fail in any way
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        compiler = "install a C compiler (on Debian and Ubuntu: sudo apt install gcc python3-dev)"
        fix = compiler if triton else install_command("trl")
        return Check(
            "LM head", False, f"sft and dpo would fail: it does not run by {kind} ({why})", fix
        )
    off = max((a - b).detach().abs().max().item() for a, b in ((found, wanted), grads))
    text = f"TRL's for sft and dpo, by {kind}, is off by {off:.0e} (at most 1e-02)"
    return Check("LM head", off < 1e-2, text, install_command("trl"))


def _uses_triton(device: str) -> bool:
    from transformers.utils import is_triton_available

    return device == "cuda" and is_triton_available()


# ---- memory and disk


def memory() -> Check:
    """Memory that is free now, within the container's limit."""
    free, total = main_memory()
    fix = "close other programs; a run of the small base takes about 2 GB"
    found = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    return Check("memory", free >= NEEDED_RAM, found, fix)


def card_memory() -> Check:
    """Memory of the card, where there is one."""
    from lorarlhf.backbone import devices

    best = devices.best_device(4)
    if best.type not in devices.CARDS:
        return Check("card memory", True, "no card with memory of its own")
    free, total = devices.card_memory(best)
    fix = "close other programs on the card (nvidia-smi or rocm-smi lists them), or use device=cpu"
    found = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    return Check("card memory", free >= NEEDED_CARD, found, fix)


def disk() -> Check:
    """Disk space for the base in the cache folder, and whether it is writable."""
    folder = cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    needed = 0 if _is_fetched() else PACKAGED[BASE].needed_bytes
    fix = "free some space, or name another disk: export LORARLHF_CACHE=/path/to/folder"
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Check("disk", False, f"{folder} can't be written", fix)
    if free < needed:
        return Check("disk", False, f"{found}; fetching the base needs {needed / 1e9:.1f} GB", fix)
    return Check("disk", True, found)


def small_base() -> Check:
    """Whether the small base is in the cache, or pip or uv can fetch it."""
    if _is_fetched():
        return Check("base", True, f"{BASE} is fetched")
    if not has_pip() and find_uv() is None:
        found = f"{BASE} is not fetched yet, and here is neither pip nor uv to do it"
        return Check("base", False, found, as_typed([sys.executable, "-m", "ensurepip"]))
    return Check("base", True, f"{BASE} is not fetched yet: 93 MB when it is first used")


def _is_fetched() -> bool:
    return (cache_folder() / "bases" / BASE / "config.json").is_file()
