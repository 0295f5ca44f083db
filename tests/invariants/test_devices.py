"""Read from the syntax trees: every new tensor names its device, and nothing is meant for one kind
of device alone. Nobody can run each card here, so the code must not be able to differ."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.limits import KEPT_STATE_BYTES
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.learner import Learner
from lorarlhf.ppo.micro_batches import (
    make_micro_batches,
    policy_logprobs,
    storage_device,
    token_values,
)
from lorarlhf.ppo.rollout import collect

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "lorarlhf").rglob("*.py"), *(ROOT / "ui").glob("*.py")])
FACTORIES = {
    *("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"),
    *("logspace", "scalar_tensor", "rand", "randn", "randint", "randperm", "normal", "Generator"),
}
# float32 is what sums and adapters are kept in, whatever the compute dtype.
HALVES = {"float16", "bfloat16", "half"}
# Where the compute dtype is chosen, and what bases and exports are written in.
CHOOSE = {"backbone/devices.py", "backbone/convert.py", "backbone/gguf_weights.py"}
CHOOSE |= {"export/merged.py", "export/tensor_files.py", "export/convert_process.py"}
DEVICE_FIRST = {"Generator"}  # takes its device as its first argument, too
FOR_ONE_KIND = {"cuda", "cpu", "mps", "xpu", "npu", "half", "bfloat16", "double"}


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def called(node: ast.Call) -> str | None:
    """`zeros` for `torch.zeros(...)`."""
    target = node.func
    of_torch = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "torch"
    return target.attr if of_torch else None  # type: ignore[union-attr]


def names_device(node: ast.Call, name: str) -> bool:
    keyword = any(word.arg in ("device", None) for word in node.keywords)
    return keyword or (name in DEVICE_FIRST and bool(node.args))


def without_device(tree: ast.AST) -> list[int]:
    """Lines of the factory calls that leave the device to torch's default."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [(node, called(node)) for node in calls]
    return [n.lineno for n, name in named if name in FACTORIES and not names_device(n, name)]


def moved_by_name(tree: ast.AST) -> list[int]:
    """Lines of `.cuda()` and its like, which fix a device or a dtype in passing."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in FOR_ONE_KIND - {"cpu"}
        and ast.unparse(node.func.value) != "torch"
    ] + [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for value in [*_to(node), *(word.value for word in node.keywords if word.arg == "device")]
        if isinstance(value, ast.Constant) and value.value in FOR_ONE_KIND - {"cpu"}
    ]


def _to(node: ast.Call) -> list[ast.expr]:
    is_to = isinstance(node.func, ast.Attribute) and node.func.attr == "to"
    return node.args if is_to else []


def half_precision(tree: ast.AST) -> list[int]:
    """Lines that name a 16-bit dtype otherwise than to compare with it."""
    compared = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for part in [*node.comparators, node.left]
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in HALVES
        and ast.unparse(node.value) == "torch"
        and id(node) not in compared
    ]


def test_every_new_tensor_names_its_device() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{n}" for path, tree in trees() for n in without_device(tree)
    ]
    assert found == []


def test_no_dtype_is_taken_for_granted() -> None:
    """16 bit is the backbone's compute dtype or nothing: it is named where it is chosen alone."""
    found = [
        f"{path.relative_to(ROOT)}:{n}"
        for path, tree in trees()
        for n in half_precision(tree)
        if path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix() not in CHOOSE
    ]
    assert found == []


def test_nothing_is_moved_to_a_device_by_name() -> None:
    found = [f"{path.relative_to(ROOT)}:{n}" for path, tree in trees() for n in moved_by_name(tree)]
    assert found == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("torch.zeros(3)", True),
        ("torch.zeros(3, device=x.device)", False),
        ("torch.zeros(3, **like)", False),
        ("torch.zeros_like(x)", False),
        ("x.new_zeros(3)", False),
        ("torch.Generator()", True),
        ("torch.Generator('cpu')", False),
        ("numpy.zeros(3)", False),
    ],
)
def test_what_is_found(line: str, wrong: bool) -> None:
    assert bool(without_device(ast.parse(line))) == wrong


@pytest.mark.parametrize(
    "line", ["x.cuda()", "x.cuda(0)", "x.half()", "x.to('cuda')", "f(x, device='mps')"]
)
def test_a_device_by_name_is_found(line: str) -> None:
    assert moved_by_name(ast.parse(line)) == [1]
    assert not moved_by_name(ast.parse("x.to(d)")) and not moved_by_name(ast.parse("x.to('cpu')"))


def test_a_dtype_taken_for_granted_is_found() -> None:
    assert half_precision(ast.parse("x.to(torch.bfloat16)")) == [1]
    assert half_precision(ast.parse("torch.zeros(3, dtype=torch.float16)")) == [1]
    assert half_precision(ast.parse("y = x.dtype == torch.bfloat16")) == []


# ---- and where tensors are handed in, another kind of device is told from the base's own

META = torch.device("meta")


def test_inputs_on_another_device_are_refused_where_they_enter(tiny: Backbone) -> None:
    ids = torch.zeros(1, 4, dtype=torch.long, device="cpu")
    mask = torch.ones_like(ids)
    kept = tiny.forward.trunk(ids, mask)
    assert kept is not None
    for call in (
        lambda: tiny.forward.hidden(ids.to(META), mask),
        lambda: tiny.forward.hidden(ids, mask.to(META)),
        lambda: tiny.forward.hidden(ids, mask, kept.to(META)),
        lambda: tiny.forward.trunk(ids.to(META), mask),
        lambda: tiny.forward.packed_hidden(Pack.of([[4, 5, 6]], META)),
        lambda: tiny.forward.packed_trunk(Pack.of([[4, 5, 6]], META)),
    ):
        with pytest.raises(ValueError, match="is on meta and the backbone on cpu"):
            call()


def test_an_update_on_another_device_is_refused_where_it_enters(
    tiny: Backbone, tmp_path: Path
) -> None:
    config = PPOConfig(str(tmp_path), rollout_batch_size=2, max_new_tokens=4, use_cpu=True)
    for role in ("reward", "value"):
        tiny.add_role(role)
    rollout = collect(tiny, [{"prompt": "Hi"}, {"prompt": "Who?"}], config, seed=0)
    for micro in rollout.micro_batches:
        micro.pack.input_ids = micro.pack.input_ids.to(META)
    with pytest.raises(ValueError, match="input_ids is on meta and the backbone on cpu"):
        Learner(tiny, config).run_epochs(rollout, step=5, seed=0)


def test_many_kept_states_wait_in_the_hosts_memory() -> None:
    card: Any = SimpleNamespace(device=META, hidden_size=1000, compute_dtype=torch.bfloat16)
    assert (
        storage_device(card, KEPT_STATE_BYTES // 6000) == META
    )  # three states of 2,000 bytes a token
    assert storage_device(card, KEPT_STATE_BYTES // 6000 + 1) == torch.device("cpu")


def test_kept_states_are_brought_back_for_each_forward(tiny: Backbone) -> None:
    """`meta` holds no numbers: whoever takes states from there is told so."""
    for role in ("reward", "value"):
        tiny.add_role(role)
    answers = [Completion("", [40, 41], ended=False)]
    (micro,) = make_micro_batches(tiny, [[5, 6, 7]], answers, size=1, storage=META)
    assert micro.trunk is not None and micro.trunk.device == META
    uses: list[Callable[[], Any]] = [
        lambda: policy_logprobs(tiny, micro, 1.0),
        lambda: policy_logprobs(tiny, micro, 1.0, first=3),
        lambda: token_values(tiny, micro),
        lambda: micro.trunk_for(tiny.heads["reward"], micro.answers),
    ]
    for use in uses:
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            use()
    (micro,) = make_micro_batches(tiny, [[5, 6, 7]], answers, size=1)
    micro.storage = META
    with pytest.raises(NotImplementedError), tiny.role("value"):
        token_values(tiny, micro, first=3)
    assert micro.lower["value"][1].device == META
