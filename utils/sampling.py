"""The order in which examples are seen: the same on any number of processes."""

import numpy as np
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, such that update k sees the same examples on any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of batch_size x
    accumulation_steps x num_processes examples; the last may be smaller, and no example stands twice. Set `epoch`
    before each pass, and `first_update` where a resume goes on within it: nothing before it is read.

    Args:
        n: number of examples.
        batch_size: examples per process and pass. accumulation_steps: passes per update.
        num_processes, rank: how many processes train together, and which this is.
        seed: seed of the run, at least 0.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.batch_size, self.accumulation_steps = n, batch_size, accumulation_steps
        self.num_processes, self.rank, self.seed, self.epoch, self.first_update = num_processes, rank, seed, 0, 0
        self.global_batch = batch_size * accumulation_steps * num_processes
        self.updates_per_epoch = -(-n // self.global_batch)

    def __iter__(self):
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0 in epoch 1.
        order, size = np.random.default_rng((self.seed, self.epoch)).permutation(self.n), self.global_batch
        for start in range(self.first_update * size, self.n - size + 1, size):
            for i in range(self.accumulation_steps):
                at = start + (i * self.num_processes + self.rank) * self.batch_size
                yield order[at : at + self.batch_size].tolist()
        if self.n % size and self.first_update <= self.n // size:  # the rest, split evenly; a piece may be empty
            pieces = np.array_split(order[self.n - self.n % size :], self.accumulation_steps * self.num_processes)
            yield from (piece.tolist() for piece in pieces[self.rank :: self.num_processes])

    def examples_until(self, update):
        """Count the examples, of all processes, that the updates up to this one have seen."""
        epochs, updates = divmod(update, self.updates_per_epoch)
        return epochs * self.n + updates * self.global_batch
