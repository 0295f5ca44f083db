"""Each check of the doctor: what it finds, what it calls wrong, and what it says fixes it."""

import json
import os
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from lorarlhf.backbone import devices
from lorarlhf.backbone.devices import compute_dtype_for
from lorarlhf.cli import doctor
from lorarlhf.cli.main import main
from lorarlhf.runtime import machine


def found(checks: list[doctor.Check], name: str) -> doctor.Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[doctor.Check]], None]:
    """Make `examine` hand out given checks."""
    return lambda checks: monkeypatch.setattr(doctor, "examine", lambda: checks)


def test_every_required_library_is_looked_at() -> None:
    names = {check.name for check in doctor.libraries()}
    assert {"torch", "transformers", "trl", "peft", "bitsandbytes"} <= names
    assert "gradio" in names  # the pages come with the package
    assert not names & {"evalica", "pytest"}  # extras are nobody's fault


def test_this_installation_has_nothing_wrong_with_its_libraries() -> None:
    assert [check for check in doctor.libraries() if not check.ok] == []
    assert doctor.python().ok


@pytest.mark.parametrize(
    ("name", "installed", "said"),
    [("trl", "0.9", "0.9; needed: "), ("peft", None, "not installed")],
)
def test_an_old_or_missing_library_gets_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str, installed: str | None, said: str
) -> None:
    real = metadata.version

    def version(library: str) -> str:
        if library == name and installed is None:
            raise metadata.PackageNotFoundError(library)
        return str(installed) if library == name else real(library)

    monkeypatch.setattr(metadata, "version", version)
    check = found(list(doctor.libraries()), name)
    assert not check.ok and said in check.found
    assert "-m pip install --upgrade" in check.fix and f" '{name}" in check.fix


def test_a_library_that_breaks_when_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    check = found(list(doctor.libraries()), "torch")
    assert not check.ok and "libcudart.so" in check.found and "--force-reinstall" in check.fix


def test_a_python_out_of_range_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    check = doctor.python()
    assert not check.ok and check.found.startswith("3.9.1") and "python3.12" in check.fix


def test_four_bits_work_here() -> None:
    check = doctor.four_bit()
    assert check.ok and "NF4 product on" in check.found


class NotANumber(torch.nn.Linear):
    """Stands in for `Linear4bit`."""

    def __init__(self, rows: int, columns: int, **kwargs: Any) -> None:
        super().__init__(rows, columns, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() * float("nan")


def test_a_kernel_that_returns_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit", NotANumber)
    assert not doctor.four_bit().ok


def test_the_lm_head_is_run() -> None:
    check = doctor.lm_head()
    assert check.ok and "by torch's operations" in check.found, check.found


@pytest.mark.parametrize(
    ("triton", "fix"), [(True, "sudo apt install gcc"), (False, "pip install")]
)
def test_an_lm_head_that_does_not_compile_is_wrong(
    monkeypatch: pytest.MonkeyPatch, triton: bool, fix: str
) -> None:
    def apply(*args: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr("trl.kernels.ChunkedLogProbFunction.apply", apply)
    monkeypatch.setattr(doctor, "_uses_triton", lambda device: triton)
    check = doctor.lm_head()
    assert not check.ok and "RuntimeError: Failed to find C compiler. Please" in check.found
    assert fix in check.fix


def test_an_lm_head_with_other_numbers_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(hidden: torch.Tensor, *args: Any) -> Any:
        return (hidden.sum(dim=1),)

    monkeypatch.setattr("trl.kernels.ChunkedLogProbFunction.apply", apply)
    assert not doctor.lm_head().ok


def test_a_check_that_raises_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> doctor.Check:
        raise RuntimeError("no such\nkernel")

    quick = ("libraries", "compute_dtype", "device", "card_memory", "memory", "disk", "small_base")
    for name in quick:
        monkeypatch.setattr(doctor, name, lambda: doctor.Check("fine", True, "", "unused"))
    monkeypatch.setattr(doctor, "libraries", lambda: iter([]))
    monkeypatch.setattr(doctor, "lm_head", lambda: doctor.Check("fine", True, ""))
    monkeypatch.setattr(doctor, "four_bit", raises)
    checks = doctor.examine()
    broken = found(checks, "4-bit")
    assert not broken.ok and "RuntimeError: no such kernel" in broken.found
    assert all(check.fix == "" for check in checks if check.ok)


# ---- device


def test_a_card_that_torch_cannot_use_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    listed = SimpleNamespace(returncode=0, stdout="GPU 0: NVIDIA A10 (UUID: GPU-1)\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *a, **k: listed)
    check = doctor.device()
    assert not check.ok and "found GPU 0: NVIDIA A10, but torch" in check.found
    assert "pytorch.org" in check.fix


def test_no_card_is_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.device().ok and "CPU" in doctor.device().found
    assert doctor.card_memory().ok


def test_a_driver_that_hangs_counts_as_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*args: Any, **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(devices.subprocess, "run", hangs)
    assert devices.nvidia_card() == ""


def test_a_full_card_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500_000_000, 8_000_000_000))
    check = doctor.card_memory()
    assert not check.ok and check.found == "0.5 GB free of 8.0 GB"


@pytest.mark.parametrize(
    ("has_it", "found"),
    [
        (True, "bfloat16"),
        (False, "float16 with loss scaling, adapters in float32; this card has no bfloat16"),
    ],
)
def test_a_card_without_bfloat16_gets_float16_with_loss_scaling(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Of emulated bfloat16, which is slow, torch says yes unless emulation is left out.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: has_it or emulated)
    check = doctor.compute_dtype()
    assert check.ok and check.found == found
    assert str(compute_dtype_for(torch.device("cuda", 0))) == f"torch.{found.split()[0]}"


# ---- memory and disk


def test_little_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", Path("/nowhere"))
    here = SimpleNamespace(total=8e9, available=1.2e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: here)
    check = doctor.memory()
    assert not check.ok and check.found == "1.2 GB free of 8.0 GB"


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    here = SimpleNamespace(total=64e9, available=60e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: here)
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3500000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000000\n")
    assert doctor.memory().found == "1.5 GB free of 4.0 GB"  # what the cache holds can be freed
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory().found == "60.0 GB free of 64.0 GB"


def test_a_disk_without_room_for_the_base_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "not" / "yet"))
    assert doctor.disk().ok  # the folder is made when it is needed
    usage = SimpleNamespace(free=100_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    check = doctor.disk()
    assert not check.ok and "0.1 GB free" in check.found and "LORARLHF_CACHE" in check.fix
    base = tmp_path / "not" / "yet" / "bases" / doctor.BASE
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    assert doctor.disk().ok  # nothing needs to be fetched any more


def test_a_cache_that_cannot_be_written_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "file"))
    assert "can't be written" in doctor.disk().found
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not doctor.disk().ok


def test_an_environment_without_pip_cannot_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    assert doctor.small_base().ok  # not fetched yet, but pip is there
    monkeypatch.setattr(doctor, "has_pip", lambda: False)
    monkeypatch.setattr(doctor, "find_uv", lambda: "/usr/bin/uv")
    assert doctor.small_base().ok
    monkeypatch.setattr(doctor, "find_uv", lambda: None)
    check = doctor.small_base()
    assert not check.ok and check.fix.endswith("-m ensurepip")


# ---- the command

FINE = doctor.Check("python", True, "3.11")
BROKEN = doctor.Check("trl", False, "not installed", 'pip install "trl>=1"')
FIXES = f"fix: {BROKEN.fix}"


@pytest.mark.parametrize(
    ("checks", "status", "lines"),
    [
        ([FINE], 0, ["OK     python  3.11", "Nothing is wrong."]),
        (
            [FINE, BROKEN],
            1,
            ["OK     python  3.11", "WRONG  trl     not installed", FIXES, "1 of 2 are wrong."],
        ),
    ],
)
def test_the_command_shows_every_check_and_its_status(
    checks: list[doctor.Check],
    status: int,
    lines: list[str],
    only: Callable[[list[doctor.Check]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(checks)
    assert main(["doctor"]) == status
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == lines


def test_the_command_gives_json(
    only: Callable[[list[doctor.Check]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    only([FINE, BROKEN])
    assert main(["doctor", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    assert printed["checks"][1] == {
        "name": "trl",
        "ok": False,
        "found": "not installed",
        "fix": 'pip install "trl>=1"',
    }
