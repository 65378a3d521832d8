"""Which items come when: an order that can be gone through again, and each process's share of it."""

from collections.abc import Iterator

import torch
from torch.utils.data import BatchSampler, Sampler


class EpochSampler(Sampler):
    """All items, shuffled by (seed, epoch) alone: any epoch can be gone through again, from any place.

    Lightning calls `set_epoch`; `skip` items of the next epoch have been served already.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch, self.skip = n, seed, 0, 0

    def __len__(self) -> int:
        return self.n

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.n, generator=generator).tolist()[self.skip :]
        self.skip = 0
        return iter(order)


class SharedBatches(BatchSampler):
    """A process's share of batches of batch_size * n_processes items: every n_processes-th from rank on.

    All shares of a batch together are the batch of one process, none twice; some of the last may be empty.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, drop_last: bool, rank: int, n_processes: int
    ) -> None:
        super().__init__(sampler, batch_size * n_processes, drop_last)
        self.rank, self.n_processes = rank, n_processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[self.rank :: self.n_processes]
