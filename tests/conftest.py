"""Settings for every test (no network through the hub, no telemetry) and the tiny base models."""

import contextlib
import gc
import os
import re
import sys
import tempfile

# Set before any test module imports a library that reads these only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nothing here is compiled, but bitsandbytes would import torch's whole compiler to be able to: two
# seconds of every program that a test starts.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lorarlhf.backbone.base_cache import cache_folder

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone

# Several test processes share the cores: with more threads than cores, torch's threads would wait
# for one another most of the time. The programs that tests start inherit it.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // WORKERS)))


def own_cache() -> tempfile.TemporaryDirectory[str]:
    """A cache folder for these tests and the programs that they start.

    What takes long to make, and can't hide an error of the code under test, is the user's.
    """
    own, real = tempfile.TemporaryDirectory(prefix="lorarlhf-cache-"), cache_folder()
    for name in ("bases", "axes", "converter"):
        (real / name).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # Windows allows it to some only; then it is made anew
            (Path(own.name) / name).symlink_to((real / name).resolve())
    os.environ["LORARLHF_CACHE"] = own.name
    return own


CACHE = own_cache()


# What Python has on Windows only in part: signals that end a process, processes by fork, rights.
NOT_ON_WINDOWS = re.compile(
    r"signal\.SIG(KILL|HUP|TERM)|os\.(kill|fork|mkfifo|symlink|geteuid)|killpg|tests\.forked|"
    r"chmod\(|symlink_to|/proc/"
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On Windows, leave out the files that use what it does not have; see CONTRIBUTING.md."""
    if sys.platform != "win32" or not collection_path.name.startswith("test_"):
        return None
    return True if NOT_ON_WINDOWS.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the browser files among the others: they wait much of their time, others compute."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [file for file in files if file.parent.name == "browser"]
    computing = [file for file in files if file.parent.name != "browser"]
    between = len(computing) // max(1, len(waiting))
    order: list[Path] = []
    for number, file in enumerate(waiting):
        order += [file, *computing[number * between : (number + 1) * between]]
    order += computing[len(waiting) * between :]
    items[:] = [item for file in order for item in files[file]]


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later search for garbage: half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny random base: `make_base(seed=1, ...)`, as `tiny.write_base`."""
    from tests.tiny import write_base

    return lambda *args, **changes: write_base(tmp_path_factory.mktemp("base"), *args, **changes)


@pytest.fixture(scope="session")
def tiny_base(make_base: Callable[..., Path]) -> Path:
    """The folder of a four-layer random Llama in float32 with a byte-level tokenizer."""
    return make_base()


@pytest.fixture
def tiny(tiny_base: Path) -> "Backbone":
    """A backbone of the tiny base in float32, two of its four layers with adapters of rank 4."""
    from lorarlhf.backbone.base import Backbone

    return Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
    )


@pytest.fixture(scope="session")
def randomise() -> Callable[..., None]:
    """`randomise(backbone, role, seed=0)`: give a role's adapter and head random weights."""
    import torch

    def fill(backbone: "Backbone", role: str, seed: int = 0, std: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in backbone.parameters_of(role):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)
        if role in backbone.heads:
            head = backbone.heads[role]
            head.full_weight = torch.randn(head.full_weight.shape, generator=generator) * std

    return fill


@pytest.fixture(scope="session")
def batch() -> Callable[..., Any]:
    """`batch(backbone, lengths, seed=0)`: random ids (B, T) padded left, and their mask (B, T)."""
    import torch

    from lorarlhf.backbone.sampler import pad_left

    def make(backbone: "Backbone", lengths: list[int], seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        size = len(backbone.tokenizer)
        rows = [torch.randint(3, size, (n,), generator=generator).tolist() for n in lengths]
        return pad_left(rows, backbone.pad_id, backbone.device)

    return make


@pytest.fixture(scope="session")
def small_base() -> "Backbone":
    """The real small base in 4 bit, shared by all tests: leave its roles as you found them.

    pip fetches it where it is not in the cache yet. Mark the tests that use it `slow`.
    """
    from lorarlhf.backbone.base import Backbone

    return Backbone.load()
