"""Documents: the sentences that can make pairs, by number; plans in which none of them is lost."""

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from run_pretraining import plan_segments
from utils.pairs import Documents, plan_sentences, truncate_pair


def rows_of(documents):
    """The table's rows for documents that are lists of sentences, which are lists of ids: (ids, numbers)."""
    return [ids for document in documents for ids in document], [n for n, doc in enumerate(documents) for _ in doc]


def table_of(documents):
    ids, numbers = rows_of(documents)
    columns = {"ids": pa.array(ids, pa.large_list(pa.int32())), "document": pa.array(numbers, pa.int64())}
    return Dataset(pa.table(columns)).with_format("arrow")


def of_lengths(*lengths):
    """Documents whose sentences have so many tokens; ids count from 100, so that each tells its place."""
    ids = iter(range(100, 10**9))
    return Documents(table_of([[[next(ids) for _ in range(n)] for n in document] for document in lengths]))


def sentences_of(documents):
    """All that is left: documents as lists of sentences of ids, by way of the public names."""
    return [[documents.ids(s, s + 1).tolist() for s in range(*bounds)] for bounds in pairwise(documents.starts)]


def assert_share(count, total, share):
    """The count of independent events is within 4 standard errors of what its share promises."""
    standard_error = np.sqrt(total * share * (1 - share))
    assert abs(count - total * share) <= 4 * standard_error, f"{count} of {total}, expected {share}"


# ---------------------------------------------------------------- documents


GIVEN = [
    [[1, 2], [3]],
    [[4]],  # a single sentence
    [[], [5], []],  # a single one that is left
    [[], []],  # none
    [[6], [], [7, 8, 9]],
    [[10], [11], [12], [13], [14]],
]


def test_sentences_without_tokens_and_documents_of_one_sentence_are_left_out():
    documents = Documents(table_of(GIVEN))
    assert sentences_of(documents) == [GIVEN[0], [[6], [7, 8, 9]], GIVEN[5]]
    assert len(documents) == 3 and documents.single == 2
    assert documents.starts.tolist() == [0, 2, 4, 9] and documents.starts.dtype == np.int64
    assert documents.lengths.tolist() == [2, 1, 1, 3, 1, 1, 1, 1, 1] and documents.lengths.dtype == np.int64


def test_ids_of_several_sentences_stand_one_after_the_other():
    documents = Documents(table_of(GIVEN))
    assert documents.ids(0, 2).tolist() == [1, 2, 3]
    assert documents.ids(2, 4).tolist() == [6, 7, 8, 9]  # an empty one stands between them
    assert documents.ids(4, 9).tolist() == [10, 11, 12, 13, 14]
    assert documents.ids(3, 3).tolist() == documents.ids(9, 9).tolist() == []
    assert documents.ids(0, 2).dtype == documents.ids(3, 3).dtype == np.int64


def test_around_a_sentence_is_its_document():
    documents = Documents(table_of(GIVEN))
    around = [tuple(map(int, documents.around(sentence))) for sentence in range(9)]
    assert around == [(0, 2)] * 2 + [(2, 4)] * 2 + [(4, 9)] * 5


@pytest.mark.parametrize("given", [[[[], []], [[]]], [[[1]], [[2], []]], [[[1]]]])
def test_there_may_be_no_document_of_two_sentences(given):
    documents = Documents(table_of(given))
    assert len(documents) == 0 and documents.starts.tolist() == [0] and documents.lengths.tolist() == []
    assert documents.single == sum(sum(map(bool, document)) == 1 for document in given)
    assert plan_sentences(documents, 0, 0).shape == (0, 4)
    assert plan_segments(documents, 0, 0, size=8, short_seq_prob=0.1, swap=False).shape == (0, 4)


@pytest.mark.parametrize(
    ("count", "found", "single"),
    [
        (None, [[[1], [2], [3], [4], [5]], [[6], [7], [8]]], 0),
        (2, [[[1], [2]], [[3], [4], [5]], [[6], [7], [8]]], 0),  # 5 and 8 would be alone
        (3, [[[1], [2], [3]], [[4], [5]], [[6], [7], [8]]], 0),
        (4, [[[1], [2], [3], [4], [5]], [[6], [7], [8]]], 0),
        (5, [[[1], [2], [3], [4], [5]], [[6], [7], [8]]], 0),
        (100, [[[1], [2], [3], [4], [5]], [[6], [7], [8]]], 0),
    ],
)
def test_sentences_per_document_cuts_each_document_and_joins_none(count, found, single):
    given = [[[1], [], [2], [3], [], [4], [5]], [[6], [7], [8]]]  # empty ones do not count
    documents = Documents(table_of(given), sentences_per_document=count)
    assert sentences_of(documents) == found and documents.single == single


@pytest.mark.parametrize("sentences_per_document", [None, 2])
@pytest.mark.parametrize("percent", [1, 5, 20, 50, 99])
def test_drawn_documents_and_the_rest_are_all_of_them(percent, sentences_per_document):
    table = table_of([[[10 * n], [10 * n + 1], [10 * n + 2], [10 * n + 3]] for n in range(40)])
    whole, drawn, rest = (
        sentences_of(Documents(table, (which, percent), sentences_per_document)) for which in ("all", "drawn", "rest")
    )
    count = 80 if sentences_per_document else 40
    expected = {1: 2, 99: count - 2}.get(percent, count * percent // 100)  # whole numbers, but for 1 and 99 percent
    assert len(whole) == count and len(drawn) == expected
    assert sorted(drawn + rest) == whole
    assert drawn == sorted(drawn) and rest == sorted(rest)  # in their order


def test_which_documents_are_drawn_depends_on_their_number_alone():
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(3):  # every time other sentences, of another number and length
        sizes = random.integers(2, 9, size=50)
        given = [[[n] * random.integers(1, 5) for _ in range(size)] for n, size in enumerate(sizes)]
        drawn.append([document[0][0] for document in sentences_of(Documents(table_of(given), ("drawn", 20)))])
    assert len(drawn[0]) == 10 and drawn[0] == drawn[1] == drawn[2]
    assert drawn[0] != list(range(10)) and drawn[0] != list(range(40, 50))


def test_two_documents_are_drawn_and_two_are_left_where_there_are_four():
    for count, of_1_percent, of_99_percent in ((6, [2, 4], [4, 2]), (4, [2, 2], [2, 2]), (3, [1, 2], [1, 2]),
                                               (2, [0, 2], [0, 2]), (1, [0, 1], [0, 1])):  # fmt: skip
        table = table_of([[[n], [n]] for n in range(count)])
        assert [len(Documents(table, (which, 1))) for which in ("drawn", "rest")] == of_1_percent
        assert [len(Documents(table, (which, 99))) for which in ("drawn", "rest")] == of_99_percent


def test_documents_of_one_sentence_are_left_out_before_any_are_drawn():
    """Headings that stand alone do not take the place of documents that make pairs; they are counted once."""
    table = table_of([[[n], [n]] if n % 3 else [[n]] for n in range(30)])
    drawn, rest = (Documents(table, (which, 30)) for which in ("drawn", "rest"))
    assert (len(drawn), drawn.single) == (6, 0) and (len(rest), rest.single) == (14, 10)
    alternate = table_of([[[n], [n]] if n % 2 else [[n]] for n in range(8)])
    assert [len(Documents(alternate, (which, 10))) for which in ("drawn", "rest")] == [2, 2]


# ---------------------------------------------------------------- tables in pieces


@pytest.fixture
def pieces(tmp_path):
    """A table on the disk in batches of 7 rows, and what Documents should make of it, found in plain loops."""
    random = np.random.default_rng(5)
    given = [[random.integers(1000, size=random.integers(0, 6)).tolist() for _ in range(random.integers(1, 9))]
             for _ in range(60)]  # fmt: skip
    ids, numbers = rows_of(given)
    schema = pa.schema({"ids": pa.large_list(pa.int32()), "document": pa.int64()})
    path = str(tmp_path / "tokens.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(ids), 7):
            batch = {"ids": ids[start : start + 7], "document": numbers[start : start + 7]}
            writer.write_batch(pa.record_batch(batch, schema))
    filled = [[ids for ids in document if ids] for document in given]
    return Dataset.from_file(path).with_format("arrow"), [document for document in filled if len(document) > 1]


def test_sentences_are_found_in_every_batch_of_the_table(pieces):
    table, expected = pieces
    assert len(table.data["ids"].chunks) > 20
    documents = Documents(table)
    assert sentences_of(documents) == expected
    for document, (first, behind) in zip(expected, pairwise(documents.starts), strict=True):
        for start in range(first, behind):  # runs that reach over several batches
            rest = [i for ids in document[start - first :] for i in ids]
            assert documents.ids(start, behind).tolist() == rest


def test_sentences_are_found_in_slices_of_a_table():
    table = table_of([[[n, n], [n, n, n]] for n in range(100, 110)]).data.table
    sliced = pa.concat_tables([table.slice(14, 4), table.slice(3, 5)])  # 107 and 108; the end of 101 to 103
    documents = Documents(Dataset(sliced).with_format("arrow"))
    assert sentences_of(documents) == [[[n, n], [n, n, n]] for n in (107, 108, 102, 103)]
    assert documents.single == 1  # of 101


def test_the_tokens_are_not_copied_into_memory_nor_into_a_pickle(tmp_path):
    schema = pa.schema({"ids": pa.large_list(pa.int32()), "document": pa.int64()})
    path = str(tmp_path / "tokens.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for n in range(5):
            ids = np.arange(n * 100_000, (n + 1) * 100_000).reshape(100, 1000).tolist()
            writer.write_batch(pa.record_batch({"ids": ids, "document": [n] * 100}, schema))
    allocated = pa.total_allocated_bytes()
    documents = Documents(Dataset.from_file(path).with_format("arrow"))
    assert pa.total_allocated_bytes() - allocated < 100_000  # of 2 MB
    documents.ids(99, 100)
    assert pa.total_allocated_bytes() - allocated < 100_000
    pickled = pickle.dumps(documents)
    assert len(pickled) < 100_000
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.ids(97, 100), np.arange(97_000, 100_000))
    np.testing.assert_array_equal(again.ids(100, 102), np.arange(100_000, 102_000))
    assert again.starts.tolist() == documents.starts.tolist() == [0, 100, 200, 300, 400, 500]


# ---------------------------------------------------------------- plans: sentences


def test_each_sentence_but_a_documents_last_is_followed_by_the_next_one():
    plan = plan_sentences(of_lengths([1] * 3, [1] * 2, [1] * 4), 0, 0)
    assert plan[:, :3].tolist() == [[0, 1, 2], [1, 2, 3], [3, 4, 5], [5, 6, 7], [6, 7, 8], [7, 8, 9]]
    assert plan.dtype == np.int64 and set(plan[:, 3]) <= {0, 1}


def segments(documents, seed=0, epoch=0, *, size=20, short_seq_prob=0.0, swap=False):
    return plan_segments(documents, seed, epoch, size=size, short_seq_prob=short_seq_prob, swap=swap)


@pytest.mark.parametrize("planned", [plan_sentences, segments])
def test_a_plan_is_a_function_of_seed_and_epoch(planned):
    documents = of_lengths(*[[3] * 9] * 30)
    keys = [(seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)]  # (1, 0) and (0, 1) among them
    plans = {key: planned(documents, *key).tolist() for key in keys}
    np.random.seed(1)  # a generator that all share has no part in it
    for key in reversed(keys):
        assert planned(documents, *key).tolist() == plans[key]
    assert len(set(map(str, plans.values()))) == len(keys)


@pytest.mark.parametrize("planned", [plan_sentences, segments])
def test_half_of_the_labels_are_1(planned):
    documents = of_lengths(*[[2, 5, 9, 1, 30]] * 2000)
    labels = np.concatenate([planned(documents, seed, 0)[:, 3] for seed in range(4)])
    assert len(labels) > 20_000
    assert abs(labels.sum() - len(labels) / 2) <= 3 * np.sqrt(len(labels)) / 2


# ---------------------------------------------------------------- plans: segments


def test_two_sentences_are_a_pair_or_each_is_seen_in_its_own():
    """With label 1 the second one was not shown: it stands alone before another B, or joins the first."""
    plan, of_document = segments(of_lengths(*[[3, 4]] * 4000)).tolist(), [() for _ in range(4000)]
    for start, middle, end, label in plan:
        first = start // 2 * 2
        of_document[start // 2] += ((start - first, middle - first, end - first, label),)
    followed, alone, joined = ((0, 1, 2, 0),), ((0, 1, 2, 1), (1, 2, 2, 1)), ((0, 1, 2, 1), (0, 1, 2, 0))
    counts = Counter(of_document)
    assert set(counts) == {followed, alone, joined}
    assert_share(counts[followed], 4000, 1 / 2)
    assert_share(counts[alone], 4000, 1 / 4)


@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ([5, 5, 5, 5], [(0, 2), (2, 4)]),
        ([5, 5, 5, 5, 5], [(0, 2), (2, 4), (3, 5)]),  # the last one joins the one before it
        ([12, 3, 3, 3, 2], [(0, 2), (2, 5)]),  # one that is too long by itself takes the next one too
        ([3, 12, 3, 3], [(0, 2), (2, 4)]),
        ([4, 4, 3, 1, 1], [(0, 2), (2, 5)]),  # with the third, the first two would have 11
        ([1] * 23, [(0, 10), (10, 20), (20, 23)]),
        ([1] * 21, [(0, 10), (10, 20), (19, 21)]),
        ([99, 99], [(0, 2)]),
        ([99, 99, 99], [(0, 2), (1, 3)]),
    ],
)
def test_a_document_is_packed_sentence_by_sentence(lengths, chunks):
    for seed in range(20):  # of two that are swapped both are shown, so that the chunks are always the same
        plan = segments(of_lengths(lengths), seed, size=10, swap=True)
        assert [(start, end) for start, _, end, _ in plan.tolist()] == chunks
        assert (plan[:, 0] < plan[:, 1]).all() and (plan[:, 1] < plan[:, 2]).all()


def test_where_another_b_is_shown_the_true_one_begins_the_next_chunk():
    plan = segments(of_lengths(*[[1] * 50] * 200), size=10)
    for (_, middle, end, label), (start, _, _, _) in pairwise(plan.tolist()):
        if start % 50:  # of the same document
            expected = middle if label else end
            assert start == expected or start == expected - 1 == 48 + start // 50 * 50  # its last one joins the others
    assert set(plan[:, 3]) == {0, 1}


def test_the_split_is_drawn_evenly_and_leaves_b_a_quarter_of_the_room():
    plan = segments(of_lengths(*[[1] * 12] * 9000), size=12, swap=True)
    of_a = plan[:, 1] - plan[:, 0]
    assert len(plan) == 9000 and set(of_a) == set(range(1, 10))
    for length in range(1, 10):
        assert_share((of_a == length).sum(), len(plan), 1 / 9)


def test_a_sentence_of_more_than_three_quarters_is_a_by_itself():
    middles = {plan[0, 1] for plan in (segments(of_lengths([14, 1, 5]), seed, swap=True) for seed in range(50))}
    assert middles == {1, 2}  # 14 and 1 make 15 of 20
    middles = {plan[0, 1] for plan in (segments(of_lengths([15, 1, 4]), seed, swap=True) for seed in range(50))}
    assert middles == {1}  # 16 would leave less than 5


def test_short_chunks_are_drawn_evenly_from_2_to_the_size():
    documents = of_lengths([1] * 50_000)
    plan = segments(documents, size=10, short_seq_prob=1, swap=True)[:-2]  # the end of the document is cut off
    lengths = plan[:, 2] - plan[:, 0]
    assert set(lengths) == set(range(2, 11))
    for length in range(2, 11):
        assert_share((lengths == length).sum(), len(plan), 1 / 9)
    plan = segments(documents, size=10, short_seq_prob=0.1, swap=True)[:-2]
    assert_share((plan[:, 2] - plan[:, 0] < 10).sum(), len(plan), 0.1 * 8 / 9)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("short_seq_prob", [0, 0.1, 1])
@pytest.mark.parametrize("size", [4, 11, 62])
def test_chunks_stay_in_their_document_and_only_two_sentences_are_too_long(size, short_seq_prob, swap):
    random = np.random.default_rng(size)
    documents = of_lengths(*[random.geometric(0.07, size=random.integers(2, 30)).tolist() for _ in range(100)])
    seen = np.zeros(len(documents.lengths), dtype=int)
    for start, middle, end, label in segments(documents, size=size, short_seq_prob=short_seq_prob, swap=swap).tolist():
        first, behind = documents.around(start)
        assert first <= start < middle <= end <= behind
        assert middle < end or (label == 1 and not swap and end == behind == start + 1)  # none follows the last one
        assert end - start == 2 or documents.lengths[start:end].sum() <= size or middle == end
        seen[start : middle if label and not swap else end] += 1
    assert seen.min() == 1 and seen.max() <= 2
    assert (seen == 2).sum() <= len(documents)  # only that before a last one that joined it


# ---------------------------------------------------------------- truncate_pair


def one_by_one(length_a, length_b, size):
    """Lengths as the original leaves them: while there are too many, one from the longer, or else from B."""
    while length_a + length_b > size:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


@pytest.mark.parametrize(
    ("lengths", "size", "kept"),
    [
        ((3, 4), 7, (3, 4)),
        ((3, 4), 100, (3, 4)),
        ((10, 2), 8, (6, 2)),
        ((2, 10), 8, (2, 6)),
        ((10, 10), 8, (4, 4)),
        ((10, 10), 7, (4, 3)),
        ((10, 4), 7, (4, 3)),
        ((4, 10), 7, (4, 3)),
        ((3, 10), 7, (3, 4)),
        ((9, 0), 4, (4, 0)),
        ((1, 1), 2, (1, 1)),
        ((5, 5), 2, (1, 1)),
    ],
)
def test_the_longer_of_two_is_shortened_by_hand(lengths, size, kept):
    pair = truncate_pair(np.arange(lengths[0]), np.arange(lengths[1]), size, np.random.default_rng(0))
    assert tuple(map(len, pair)) == kept


def test_any_two_are_shortened_as_token_by_token():
    rng = np.random.default_rng(0)
    for length_a in range(14):
        for length_b in range(14):
            for size in range(2, 28):
                a, b = truncate_pair(np.arange(length_a), np.arange(100, 100 + length_b), size, rng)
                assert (len(a), len(b)) == one_by_one(length_a, length_b, size)
                assert len(a) + len(b) == min(size, length_a + length_b)
                for part, first, length in ((a, 0, length_a), (b, 100, length_b)):  # a run of what was there
                    assert not len(part) or first <= part[0] <= part[-1] < first + length
                    assert (np.diff(part) == 1).all()


def test_tokens_go_at_the_front_or_the_back_by_a_coin_each():
    rng = np.random.default_rng(0)
    fronts = np.array([[part[0] for part in truncate_pair(np.arange(12), np.arange(10), 14, rng)] for _ in range(4000)])
    assert set(fronts[:, 0]) == set(range(6)) and set(fronts[:, 1]) == set(range(4))  # of 5 and 3 to be taken off
    assert_share(fronts[:, 0].sum(), 4000 * 5, 0.5)
    assert_share(fronts[:, 1].sum(), 4000 * 3, 0.5)
    assert_share((fronts[:, 1] == 0).sum(), 4000, 1 / 8)
    assert abs(np.corrcoef(fronts.T)[0, 1]) < 4 / np.sqrt(4000)
