"""ROCm and XPU builds of PyTorch, and Apple's GPU: simulated by what they answer.

The CPU stands in for the device that is tried: its product is the real one of bitsandbytes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorarlhf.backbone import devices, four_bit
from lorarlhf.backbone.base_files import open_base
from lorarlhf.backbone.devices import best_device, find_device, unused_card
from lorarlhf.backbone.sampler import _pick
from lorarlhf.cli import doctor
from lorarlhf.cli.preflight import free_for_us
from lorarlhf.runtime import checkpoints
from lorarlhf.runtime.errors import UserError

CPU = torch.device("cpu")
REAL = four_bit.product
Product = Callable[..., tuple[torch.Tensor, ...]]


@pytest.fixture(autouse=True)
def tried_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was found of a device counts for one test."""
    monkeypatch.setattr(devices, "AMD_DRIVER", Path("/nowhere"))
    monkeypatch.setattr(devices, "nvidia_card", lambda: "")
    four_bit.trouble.cache_clear()
    yield
    four_bit.trouble.cache_clear()


@pytest.fixture
def device_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Product], None]:
    """`device_with(kind, product)`: a device is there, and computes 4-bit products so."""

    def make(kind: str, product: Product) -> None:
        module = torch.backends.mps if kind == "mps" else torch.xpu
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda emulated=True: True)
        monkeypatch.setattr(
            four_bit,
            "product",
            lambda device, *more: (product if device.type == kind else REAL)(CPU, *more),
        )

    return make


def wrong(device: torch.device, dtype: torch.dtype, rows: int) -> tuple[torch.Tensor, ...]:
    """A product whose first row is right and whose gradient is that of another weight."""
    found, gradient = REAL(device, dtype, rows)
    return found, gradient.roll(1, dims=1)


def missing(*args: Any) -> tuple[torch.Tensor, ...]:
    raise NotImplementedError("no kernel\nfor this device")


def not_a_number(device: torch.device, dtype: torch.dtype, rows: int) -> tuple[torch.Tensor, ...]:
    return tuple(part * float("nan") for part in REAL(device, dtype, rows))


# ---- the check itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_real_kernels_pass_in_every_dtype(dtype: torch.dtype) -> None:
    assert four_bit.trouble("cpu", dtype) is None


def test_the_product_is_that_of_the_quantised_weight() -> None:
    weight, inputs = four_bit.weight_and_inputs()
    found, gradient = REAL(CPU, torch.float32, 8)
    assert 0.05 < four_bit.difference(found, inputs @ weight.T) < 0.15
    assert 0.05 < four_bit.difference(gradient, 2 * found @ weight) < 0.15


@pytest.mark.parametrize(
    ("product", "said"),
    [
        (wrong, "off by 1"),
        (missing, "NotImplementedError: no kernel for this device"),
        (not_a_number, "off by nan"),
    ],
)
@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_what_does_not_compute_is_not_used_and_told(
    kind: str,
    product: Product,
    said: str,
    device_with: Callable[[str, Product], None],
    tiny_base: Path,
) -> None:
    device_with(kind, product)
    assert best_device(4) == best_device(8) == CPU
    assert best_device(16).type == kind
    told: list[str] = []
    assert open_base(str(tiny_base), log=told.append).device == CPU
    (notice,) = (text for text in told if "--set bits=16" in text)
    assert said in notice and devices.OTHERS[kind] in notice
    assert unused_card(16) is None and "8 bit has not been tried" in str(unused_card(8))
    with pytest.raises(UserError, match="4-bit layers do not work there"):
        find_device(kind, 4)
    assert find_device(kind, 16).type == kind
    check = doctor.device()
    assert check.ok and check.found.startswith("CPU") and "4 bit fails there" in check.found


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_what_computes_as_the_cpu_is_used(
    kind: str, device_with: Callable[[str, Product], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device_with(kind, REAL)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc B580")
    assert best_device(4).type == best_device(16).type == kind
    assert best_device(8) == CPU
    assert unused_card() is None
    assert find_device(kind, 4).type == kind
    found = doctor.device().found
    assert found == "Apple's GPU (mps)" if kind == "mps" else found.startswith("Arc B580 (xpu, ")
    check = doctor.four_bit()
    assert check.ok and f"NF4 product on {kind}" in check.found


def test_a_real_gpu_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stand-in: this PyTorch says that Apple's GPU is there, and can't compute on it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device(4) == CPU
    assert "Apple's GPU is not used with 4-bit weights (" in str(unused_card())


def test_the_doctor_compares_a_card_with_the_cpu(
    device_with: Callable[[str, Product], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device_with("xpu", wrong)
    monkeypatch.setattr(devices, "best_device", lambda bits: torch.device("xpu"))
    check = doctor.four_bit()
    assert not check.ok and "off by" in check.found and "bitsandbytes" in check.fix


# ---- AMD


def test_amd_s_cards_are_cuda_to_pytorch_and_named_by_the_doctor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AMD Radeon RX 7900 XTX")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000_000_000, 24_000_000_000))
    assert best_device(4) == best_device(8) == torch.device("cuda", 0)
    assert doctor.device().found == "AMD Radeon RX 7900 XTX (cuda:0, ROCm 7.1)"
    assert doctor.card_memory().found == "20.0 GB free of 24.0 GB"
    assert unused_card() is None


def test_a_build_without_rocm_says_what_amd_s_gpu_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(devices, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    check = doctor.device()  # no failure: the driver of a notebook's processor is the same
    assert check.ok and "a PyTorch for ROCm may use it" in check.found
    assert "CUDA 13.0" in check.found


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ({"hip": "7.1", "cuda": None}, "ROCm 7.1"),
        ({"hip": None, "cuda": "13.0"}, "CUDA 13.0"),
        ({"hip": None, "cuda": None, "xpu": "20250300"}, "XPU"),
        ({"hip": None, "cuda": None, "xpu": None}, "CPU"),
    ],
)
def test_the_build_is_named(
    versions: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library, version in versions.items():
        monkeypatch.setattr(torch.version, library, version, raising=False)
    assert devices.build_name() == name


# ---- NVIDIA's card with a build for the CPU


@pytest.mark.parametrize(("system", "told"), [("win32", True), ("linux", False)])
def test_the_build_that_windows_gets_is_told_of(
    system: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere somebody has chosen a build for the CPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "nvidia_card", lambda: "GPU 0: NVIDIA A10")
    monkeypatch.setattr(devices.sys, "platform", system)
    assert (unused_card() is not None) == told
    assert not told or "built for the CPU alone" in str(unused_card())
    check = doctor.device()
    assert not check.ok and "here is one for CPU" in check.fix


# ---- what runs there


def test_memory_and_random_states_are_asked_of_the_device_s_own_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states: dict[str, torch.Tensor] = {}
    module = SimpleNamespace(
        mem_get_info=lambda device: (7_000_000_000, 8_000_000_000),
        memory_reserved=lambda device: 1_000_000_000,
        get_rng_state=lambda device: torch.tensor([1, 2], dtype=torch.uint8),
        set_rng_state=lambda state, device: states.update({str(device): state}),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    for name in ("xpu", "cuda:0"):
        device = torch.device(name)
        assert free_for_us(device) > 8_000_000_000
        kept = checkpoints.rng_tensors(device)
        assert set(kept) == {"rng.torch", f"rng.{device.type}"}
        checkpoints.set_rng_state(checkpoints.rng_numbers(), kept, device)
        assert states[name].tolist() == [1, 2]
    kept = checkpoints.rng_tensors(CPU)
    checkpoints.set_rng_state(
        checkpoints.rng_numbers(), kept | {"rng.cuda": kept["rng.torch"]}, CPU
    )
    assert len(states) == 2


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_tokens_are_drawn_without_float64_where_there_is_none(kind: str) -> None:
    asked: list[Any] = []

    class Logits:
        device = SimpleNamespace(type=kind)
        shape = (1, 3)

        def float(self) -> torch.Tensor:
            return torch.zeros(1, 3)

    real = torch.Tensor.cumsum

    def cumsum(self: torch.Tensor, dim: int, dtype: Any) -> torch.Tensor:
        asked.append(dtype)
        return real(self, dim, dtype=dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cumsum", cumsum)
        picked = _pick(Logits(), torch.tensor([0.5], dtype=torch.float64), 1.0)  # type: ignore[arg-type]
    assert asked == [torch.float32] and picked.tolist() == [1]
