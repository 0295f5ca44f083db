"""The order in which training prompts are used."""

import torch


class PromptOrder:
    """Shuffled passes over the prompts: each is used once before one is used again.

    Attributes:
        remaining: row numbers that the current pass has not used; the next one is at the end.
        generator: shuffles each pass.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.remaining: list[int] = []
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def take(self, number: int) -> list[int]:
        """The next `number` row numbers; a new pass begins where one is used up."""
        rows: list[int] = []
        while len(rows) < number:
            if not self.remaining:
                order = torch.randperm(self.count, generator=self.generator, device="cpu")
                self.remaining = order.tolist()
            rows.append(self.remaining.pop())
        return rows
