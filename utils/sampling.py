"""The order in which examples are seen: the same on any number of processes."""

import math

import numpy as np
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, such that update k sees the same examples on any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of batch_size x
    accumulation_steps x num_processes examples; the last may be smaller, and no example stands twice. Set `epoch`
    before each pass, and `first_update` where a resume goes on within it: nothing before it is read.

    Args:
        n: number of examples, or a function that gives it for each epoch, from 0.
        batch_size: examples per process and pass. accumulation_steps: passes per update.
        num_processes, rank: how many processes train together, and which this is.
        seed: seed of the run, at least 0.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.batch_size, self.accumulation_steps = n, batch_size, accumulation_steps
        self.num_processes, self.rank, self.seed, self.epoch, self.first_update = num_processes, rank, seed, 0, 0
        self.global_batch = batch_size * accumulation_steps * num_processes

    def __iter__(self):
        n, size, order = self.examples_in(self.epoch), self.global_batch, self.order()
        for start in range(self.first_update * size, n - size + 1, size):
            for i in range(self.accumulation_steps):
                at = start + (i * self.num_processes + self.rank) * self.batch_size
                yield order[at : at + self.batch_size].tolist()
        if n % size and self.first_update <= n // size:  # the rest, split evenly; a piece may be empty
            pieces = np.array_split(order[n - n % size :], self.accumulation_steps * self.num_processes)
            yield from (piece.tolist() for piece in pieces[self.rank :: self.num_processes])

    def __len__(self):
        return self.updates_in(self.epoch) * self.accumulation_steps

    def order(self):
        """Draw the order of the examples of the epoch: int64, (examples,)."""
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0 in epoch 1.
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.examples_in(self.epoch))

    def examples_in(self, epoch):
        return self.n(epoch) if callable(self.n) else self.n

    def updates_in(self, epoch):
        return -(-self.examples_in(epoch) // self.global_batch)

    def updates_until(self, epochs):
        """Count the updates of so many epochs, which may be a fraction."""
        whole = int(epochs)
        rest = round((epochs - whole) * self.updates_in(whole), 6) if epochs > whole else 0  # 0.1 x 50 is 5
        return sum(map(self.updates_in, range(whole))) + math.ceil(rest)

    def place(self, update):
        """Say where in the run an update stands: (epoch, updates of that epoch before it)."""
        epoch = 0
        while update and update >= (updates := self.updates_in(epoch)):
            epoch, update = epoch + 1, update - updates
        return epoch, update

    def epochs_until(self, update):
        """Count the epochs that the updates up to this one make, as a fraction."""
        epoch, done = self.place(update)
        return epoch + (done / self.updates_in(epoch) if done else 0)

    def examples_until(self, update):
        """Count the examples, of all processes, that the updates up to this one have seen."""
        epoch, done = self.place(update)
        return sum(map(self.examples_in, range(epoch))) + done * self.global_batch


class SimilarLengthSampler(GlobalBatchSampler):
    """A GlobalBatchSampler that puts examples of similar length into a global batch, so that little of it is padding.

    The order of the epoch is cut into pools. The examples of a pool are sorted by length and cut into global batches,
    which then come in random order. Within one, examples are sorted by length too, so those of a micro-batch are close.

    Args:
        lengths: tokens of each example, int array of shape (examples,).
        pool: global batches that are sorted together. Fewer mix lengths more, and pad more.
    """

    def __init__(self, lengths, batch_size, accumulation_steps, num_processes, rank, seed, pool=50):
        super().__init__(len(lengths), batch_size, accumulation_steps, num_processes, rank, seed)
        self.lengths, self.pool = np.asarray(lengths), pool

    def order(self):
        order, size = super().order(), self.global_batch
        whole = self.n - self.n % size  # the rest, a smaller batch, stays at the end
        step = self.pool * size
        pools = [order[at : min(at + step, whole)] for at in range(0, whole, step)] + [order[whole:]]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        shuffled = np.random.default_rng((self.seed, self.epoch, 1)).permutation(whole // size)
        return np.concatenate([order[:whole].reshape(-1, size)[shuffled].ravel(), order[whole:]])

    def padding(self):
        """Share of padding among the tokens of the epoch, from 0 to 1, on all processes."""
        pieces, full = self.accumulation_steps * self.num_processes, self.n - self.n % self.global_batch
        order = self.order()
        batches = [*order[:full].reshape(-1, self.batch_size), *np.array_split(order[full:], pieces)]
        padded = sum(int(self.lengths[batch].max()) * len(batch) for batch in batches if len(batch))
        return 1 - int(self.lengths.sum()) / padded
