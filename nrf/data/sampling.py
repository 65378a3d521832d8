"""Which items come when, and where training is among them: an order that any run can take up at any place."""

import dataclasses
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


@dataclasses.dataclass
class Position:
    """Where training is in its data, counted in items trained on by all processes together.

    The order of an epoch follows from (seed, epoch) alone, whatever the batch size and the number of
    processes or of workers, and however far these have read ahead.
    """

    seed: int = 0
    shuffled: bool = True
    epoch: int = 0  # epochs that are over
    items: int = 0  # of this epoch, trained on
    of: int = 0  # of this epoch, to train on in all; counts once there are `items`

    def advance(self, items: int, of: int) -> None:
        """`items` more have been trained on, in an epoch of `of`."""
        self.of = self.of if self.items else of
        self.items = min(self.items + items, self.of)

    def end_epoch(self) -> None:
        """To the next epoch, if this one is over."""
        if self.items and self.items == self.of:
            self.epoch, self.items = self.epoch + 1, 0

    def order(self, n: int) -> list[int]:
        """The order of n items in this epoch."""
        if not self.shuffled:
            return list(range(n))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(n, generator=generator).tolist()


class Batches(Sampler):
    """A process's share of batches of batch_size * n_processes items: every n_processes-th from rank on.

    All shares of a batch together are the batch of one process, none twice; some of the last may be empty.
    They start at the position, which is read when they are iterated over; their number is that of a whole
    epoch.
    """

    def __init__(
        self, n: int, batch_size: int, drop_last: bool, position: Position, rank: int, n_processes: int
    ) -> None:
        self.n, self.size, self.position = n, batch_size * n_processes, position
        self.rank, self.n_processes = rank, n_processes
        self.n_batches = n // self.size if drop_last else -(-n // self.size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        begun = self.position.items
        items = self.position.order(self.n)[begun : self.position.of if begun else len(self) * self.size]
        for start in range(0, len(items), self.size):
            yield items[start : start + self.size][self.rank :: self.n_processes]
