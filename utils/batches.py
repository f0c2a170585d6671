"""Which examples a batch holds, and how rows of different length stand in it."""

import math

import numpy as np
import torch
from torch.utils.data import Sampler


def pad(rows, value):
    """Put int64 arrays (length,) under each other, filled up with value: (batch, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, the same per update for any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of
    batch_size x accumulation_steps x num_processes examples; the last may be smaller, and no
    example stands twice. Set `epoch` before each pass, and `first_update` where a resume goes on
    within it: nothing before it is read.

    Args:
        n: number of examples, or a function that gives it for each epoch, from 0.
        batch_size: examples per process and pass.
        accumulation_steps: passes per update.
        num_processes, rank: how many processes train together, and which this is.
        seed: seed of the run, at least 0.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.seed = n, seed
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.num_processes, self.rank = num_processes, rank
        self.epoch = self.first_update = 0
        self.global_batch = batch_size * accumulation_steps * num_processes

    def __iter__(self):
        order, size = self.order(), self.global_batch
        for start in range(self.first_update * size, len(order), size):
            # Even pieces of the update, which follow each other over the processes. Of the last
            # update, some may be empty.
            pieces = np.array_split(order[start : start + size],
                                    self.accumulation_steps * self.num_processes)
            for piece in pieces[self.rank :: self.num_processes]:
                yield piece.tolist()

    def __len__(self):
        return self.updates_in(self.epoch) * self.accumulation_steps

    def order(self):
        """Draw the order of the examples of the epoch: int64, (examples,)."""
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0
        # in epoch 1.
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.permutation(self.examples_in(self.epoch))

    def examples_in(self, epoch):
        return self.n(epoch) if callable(self.n) else self.n

    def updates_in(self, epoch):
        return math.ceil(self.examples_in(epoch) / self.global_batch)

    def updates_until(self, epochs):
        """Count the updates of so many epochs, which may be a fraction."""
        updates = sum(map(self.updates_in, range(int(epochs))))
        if epochs % 1:
            rest = epochs % 1 * self.updates_in(int(epochs))
            updates += math.ceil(round(rest, 6))  # 0.1 x 50 is 5
        return updates

    def place(self, update):
        """Say where in the run an update stands: (epoch, updates of that epoch before it)."""
        epoch = 0
        while update >= self.updates_in(epoch):
            update -= self.updates_in(epoch)
            epoch += 1
        return epoch, update

    def epochs_until(self, update):
        """Count the epochs that the updates up to this one make, as a fraction."""
        epoch, done = self.place(update)
        return epoch + (done / self.updates_in(epoch) if done else 0)

    def examples_until(self, update):
        """Count the examples, of all processes, that the updates up to this one have seen."""
        epoch, done = self.place(update)
        return sum(map(self.examples_in, range(epoch))) + done * self.global_batch
