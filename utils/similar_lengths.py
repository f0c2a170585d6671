"""Batches of similar length."""

import numpy as np

from utils.batches import GlobalBatchSampler


class SimilarLengthSampler(GlobalBatchSampler):
    """A GlobalBatchSampler that puts examples of similar length together, to pad little.

    The order of the epoch is cut into pools. The examples of a pool are sorted by length and cut
    into global batches, which then come in random order. Within one, examples are sorted by length
    too, so those of a micro-batch are close.

    Args:
        lengths: tokens of each example, int array of shape (examples,).
        pool: global batches that are sorted together. Fewer mix lengths more, and pad more.
    """

    def __init__(self, lengths, batch_size, accumulation_steps, num_processes, rank, seed, *,
                 pool=50):
        super().__init__(len(lengths), batch_size, accumulation_steps, num_processes, rank, seed)
        self.lengths, self.pool = np.asarray(lengths), pool

    def order(self):
        order, size = super().order(), self.global_batch
        whole = self.n - self.n % size
        pools = np.arange(self.n) // (self.pool * size)
        pools[whole:] = self.n  # the rest, a smaller batch, stays at the end
        order = order[np.lexsort((self.lengths[order], pools))]  # by pool, then by length
        shuffled = np.random.default_rng((self.seed, self.epoch, 1)).permutation(whole // size)
        return np.concatenate([order[:whole].reshape(-1, size)[shuffled].ravel(), order[whole:]])

    def padding(self):
        """Share of padding among the tokens of the epoch, from 0 to 1, on all processes."""
        order, whole = self.order(), self.n - self.n % self.global_batch
        rest = np.array_split(order[whole:], self.accumulation_steps * self.num_processes)
        batches = [*order[:whole].reshape(-1, self.batch_size), *rest]
        padded = sum(int(self.lengths[batch].max()) * len(batch) for batch in batches if len(batch))
        return 1 - int(self.lengths.sum()) / padded
