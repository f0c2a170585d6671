"""Batches: the order of examples is one and the same for any split of a global batch, and complete in each epoch."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.batches import GlobalBatchSampler, pad

SPLITS = [  # (batch size, accumulation steps, processes): all of them 12 examples an update
    (12, 1, 1), (6, 2, 1), (1, 12, 1), (6, 1, 2), (3, 2, 2), (2, 3, 2), (4, 1, 3), (1, 4, 3), (2, 1, 6), (1, 1, 12),
]  # fmt: skip
SIZES = [1, 5, 11, 12, 13, 23, 24, 25, 31, 100]


def pieces_of(n, split, seed=0, epoch=0, first_update=0):
    """What each process reads: pieces[update][process] is its list of micro-batches for that update."""
    batch_size, accumulation_steps, num_processes = split
    mine = []
    for rank in range(num_processes):
        sampler = GlobalBatchSampler(n, batch_size, accumulation_steps, num_processes, rank, seed)
        sampler.epoch, sampler.first_update = epoch, first_update
        batches = list(sampler)
        assert len(batches) % accumulation_steps == 0  # whole updates, so that all processes meet at each
        mine.append([batches[i : i + accumulation_steps] for i in range(0, len(batches), accumulation_steps)])
    assert len({len(updates) for updates in mine}) == 1
    return list(zip(*mine, strict=True))


def examples_in(update):
    return sorted(example for process in update for batch in process for example in batch)


def order_of(n, seed=0, epoch=0):
    """The order of an epoch, as the documentation gives it."""
    return np.random.default_rng((seed, epoch)).permutation(n).tolist()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", SIZES)
def test_update_k_sees_the_same_examples_on_any_split_of_the_global_batch(n, split):
    order = order_of(n, seed=3, epoch=2)
    expected = [sorted(order[start : start + 12]) for start in range(0, n, 12)]
    assert [examples_in(update) for update in pieces_of(n, split, seed=3, epoch=2)] == expected


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", SIZES)
def test_every_example_is_seen_exactly_once_an_epoch(n, split):
    seen = sorted(example for update in pieces_of(n, split) for example in examples_in(update))
    assert seen == list(range(n))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", SIZES)
def test_batches_are_full_but_for_the_last_update_which_is_split_evenly(n, split):
    batch_size, _, _ = split
    updates = pieces_of(n, split)
    sizes = [[len(batch) for process in update for batch in process] for update in updates]
    for full in sizes[: n // 12]:
        assert set(full) == {batch_size}
    for last in sizes[n // 12 :]:  # one, where n is no multiple of 12
        assert sum(last) == n % 12 and max(last) <= batch_size and max(last) - min(last) <= 1


def test_a_process_without_an_example_yields_as_many_pieces_as_the_others():
    [update] = pieces_of(3, (2, 2, 3))  # 3 examples for 6 pieces
    sizes = [[len(batch) for batch in process] for process in update]
    assert [len(process) for process in sizes] == [2, 2, 2]
    assert sorted(size for process in sizes for size in process) == [0, 0, 0, 1, 1, 1]


def test_a_loader_passes_an_empty_piece_on():
    sampler = GlobalBatchSampler(3, 2, 1, 4, 3, 0)  # the fourth of four processes, and three examples
    assert list(DataLoader(list("abc"), batch_sampler=sampler, collate_fn=list)) == [[]]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", [5, 12, 31, 48])
def test_a_resumed_epoch_is_the_tail_of_the_uninterrupted_one(n, split):
    whole = pieces_of(n, split, seed=1, epoch=4)
    assert len(whole) == -(-n // 12)
    for first in range(len(whole) + 1):
        assert pieces_of(n, split, seed=1, epoch=4, first_update=first) == whole[first:]


def test_each_seed_and_epoch_has_an_order_of_its_own():
    keys = [(seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)]  # (1, 0) and (0, 1) among them
    orders = {str(pieces_of(100, (4, 1, 1), seed, epoch)) for seed, epoch in keys}
    assert len(orders) == len(keys)


def test_a_sampler_can_be_read_again():
    sampler = GlobalBatchSampler(31, 3, 2, 2, 1, 0)
    assert list(sampler) == list(sampler) and list(sampler)


@pytest.mark.parametrize(("n", "updates"), [(1, 1), (11, 1), (12, 1), (13, 2), (24, 2), (25, 3)])
def test_updates_per_epoch_counts_a_smaller_last_one(n, updates):
    for batch_size, accumulation_steps, num_processes in SPLITS:
        assert GlobalBatchSampler(n, batch_size, accumulation_steps, num_processes, 0, 0).updates_in(0) == updates


def test_examples_until_an_update_by_hand():
    sampler = GlobalBatchSampler(10, 2, 1, 2, 0, 0)  # updates of 4, 4 and 2 examples
    assert [sampler.examples_until(update) for update in range(8)] == [0, 4, 8, 10, 14, 18, 20, 24]
    sampler = GlobalBatchSampler(8, 2, 1, 2, 0, 0)  # of 4 and 4
    assert [sampler.examples_until(update) for update in range(5)] == [0, 4, 8, 12, 16]


# ---------------------------------------------------------------- epochs of different length


EPOCHS = [10, 3, 4, 9]  # examples in each epoch; with 4 an update, they have 3, 1, 1 and 3 updates


def growing(rank=0, seed=0):
    return GlobalBatchSampler(lambda epoch: EPOCHS[epoch % 4], 2, 1, 2, rank, seed)


def test_examples_and_updates_of_each_epoch_by_hand():
    assert [growing().examples_in(epoch) for epoch in range(6)] == [10, 3, 4, 9, 10, 3]
    assert [growing().updates_in(epoch) for epoch in range(6)] == [3, 1, 1, 3, 3, 1]


def test_the_place_of_an_update_by_hand():
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (5, 0)]
    assert [growing().place(update) for update in range(12)] == places


def test_the_updates_until_so_many_epochs_by_hand():
    expected = {0: 0, 0.5: 2, 1: 3, 1.5: 4, 2: 4, 2.25: 5, 3: 5, 3.5: 7, 3.75: 8, 4: 8, 4.5: 10, 5: 11, 8: 16}
    assert {epochs: growing().updates_until(epochs) for epochs in expected} == expected  # a begun update is made
    assert all(isinstance(growing().updates_until(epochs), int) for epochs in (0, 0.5, 2, 2.0, 3.5))


def test_the_epochs_until_an_update_by_hand():
    thirds = [0, 1, 2, 3, 6, 9, 10, 11, 12, 13, 14, 15, 18]
    found = [growing().epochs_until(update) for update in range(13)]
    assert found == pytest.approx([third / 3 for third in thirds])
    assert [found[update] for update in (0, 3, 4, 5, 8, 11, 12)] == [0, 1, 2, 3, 4, 5, 6]  # exactly, at their ends


def test_the_examples_until_an_update_by_hand():
    expected = [0, 4, 8, 10, 13, 17, 21, 25, 26, 30, 34, 36, 39, 43]  # the last update of an epoch has what is left
    assert [growing().examples_until(update) for update in range(14)] == expected


@pytest.mark.parametrize("first_update", [0, 1, 2])
@pytest.mark.parametrize("epoch", range(6))
def test_each_epoch_goes_over_its_own_number_of_examples(epoch, first_update):
    n = [10, 3, 4, 9, 10, 3][epoch]
    order = order_of(n, seed=5, epoch=epoch)
    expected = [sorted(order[start : start + 4]) for start in range(0, n, 4)][first_update:]
    mine = []
    for rank in (0, 1):
        sampler = growing(rank, seed=5)
        sampler.epoch, sampler.first_update = epoch, first_update
        mine.append(list(sampler))
    assert [sorted(first + second) for first, second in zip(*mine, strict=True)] == expected
    assert all(abs(len(first) - len(second)) <= 1 for first, second in zip(*mine, strict=True))


def test_a_number_and_a_function_that_gives_it_are_the_same():
    number, function = GlobalBatchSampler(10, 2, 1, 2, 0, 0), GlobalBatchSampler(lambda epoch: 10, 2, 1, 2, 0, 0)
    assert list(number) == list(function)
    for update in range(14):
        assert number.place(update) == function.place(update) == divmod(update, 3)
        assert number.epochs_until(update) == function.epochs_until(update) == pytest.approx(update / 3)
    for epochs in (0, 0.3, 1, 1.5, 2.9):
        assert number.updates_until(epochs) == function.updates_until(epochs) == -(-epochs * 3 // 1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", SIZES)
def test_its_length_is_the_number_of_micro_batches_of_a_whole_epoch(n, split):
    for rank in range(split[2]):
        sampler = GlobalBatchSampler(n, *split, rank, 0)
        assert len(sampler) == len(list(sampler))


# ---------------------------------------------------------------- pad


def test_rows_stand_under_each_other_filled_up_to_the_longest():
    rows = [np.array(row, dtype=np.int64) for row in ([5, 6], [], [7, 8, 9])]
    padded = pad(rows, -100)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[5, 6, -100], [-100, -100, -100], [7, 8, 9]]
    assert pad(rows[1:2], 0).shape == (1, 0)
