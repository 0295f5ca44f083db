"""A sampled token's attention by torch's kernel, against the two products that training uses."""

from typing import Any

import pytest
import torch

from lorarlhf.backbone.kernels.attention import _Rules

BATCH, KEYS = 3, 11


def masks() -> dict[str, torch.Tensor | None]:
    seen = torch.ones(BATCH, 1, 1, KEYS, dtype=torch.bool)
    seen[0, ..., :4] = False
    wider = torch.cat([seen, seen[..., :2]], dim=-1)  # a cache with room for more
    added = torch.zeros(BATCH, 1, 1, KEYS).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return {"none": None, "two": seen[0, 0], "boolean": seen, "added": added, "wider": wider}


@pytest.mark.parametrize("mask", list(masks()))
@pytest.mark.parametrize(("heads", "kinds", "size", "of_values"), [(4, 2, 8, 8), (3, 3, 24, 16)])
def test_one_query_has_the_two_products_numbers(
    mask: str, heads: int, kinds: int, size: int, of_values: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((heads, 1, size), (kinds, KEYS, size), (kinds, KEYS, of_values))
    given: Any = [torch.randn(BATCH, *shape, generator=draw) for shape in shapes]
    rules = _Rules(torch.nn.Identity(), given[0], 0.3, 0.0, {})
    wanted = rules.plain(*given, masks()[mask])  # with gradients, so by the two products
    with torch.no_grad():
        ours = rules.plain(*given, masks()[mask])
    assert ours.shape == wanted.shape == (BATCH, heads, 1, of_values)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
