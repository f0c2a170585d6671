"""Masks: the same for an example wherever it is seen, in the promised shares, and never where nothing may be hidden."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from utils.collators import MaskingCollator, mask_tokens, pad, word_continuations

# Random tokens are drawn from below VOCAB, and [MASK] lies above: so it is known which of the two stands somewhere.
VOCAB, MASK = 1000, 5000
SETTINGS = {"mask_id": MASK, "vocab_size": VOCAB, "seed": 0, "epoch": 0, "example_id": 0}


def sentence(length=1000, seed=7):
    return np.random.default_rng(seed).integers(VOCAB, size=length)


def hide(ids, special=None, **settings):
    special = np.zeros(len(ids), dtype=bool) if special is None else special
    return mask_tokens(ids, special, **{**SETTINGS, **settings})


def assert_share(count, total, share):
    """The count of independent events is within 4 standard errors of what its share promises."""
    standard_error = np.sqrt(total * share * (1 - share))
    assert abs(count - total * share) <= 4 * standard_error, f"{count} of {total}, expected {share}"


def assert_fates(ids, masked, labels, mask_share=0.8, random_share=0.1):
    """Of the chosen tokens the promised shares became [MASK], a random token, and stayed."""
    chosen = labels != -100
    total = chosen.sum()
    random_and_other = random_share * (1 - 1 / VOCAB)  # a random token may be the one that stood there
    assert_share((masked[chosen] == MASK).sum(), total, mask_share)
    assert_share(((masked != MASK) & (masked != ids))[chosen].sum(), total, random_and_other)
    assert_share((masked == ids)[chosen].sum(), total, 1 - mask_share - random_and_other)


# ---------------------------------------------------------------- mask_tokens


def test_mask_tokens_gives_the_same_masks_in_any_order():
    def masks(order):
        return {i: hide(sentence(30, seed=i), example_id=i) for i in order}

    forward = masks(range(40))
    np.random.seed(1)  # a generator that all share has no part in it
    torch.manual_seed(1)
    backward = masks(reversed(range(40)))
    for i in range(40):
        np.testing.assert_array_equal(forward[i], backward[i])


def test_each_seed_epoch_and_example_has_masks_of_its_own():
    keys = [(seed, epoch, example) for seed in (0, 1, 42) for epoch in (0, 1, 2) for example in (0, 1, 2)]
    assert (1, 0, 0) in keys and (0, 1, 0) in keys  # which a sum of seed and epoch would confuse
    seen = {hide(sentence(), seed=s, epoch=e, example_id=i)[1].tobytes() for s, e, i in keys}
    assert len(seen) == len(keys)


def test_15_percent_are_chosen_and_of_these_80_10_10_are_masked_random_and_kept():
    ids = sentence(200_000)
    masked, labels = hide(ids)
    assert_share((labels != -100).sum(), len(ids), 0.15)
    assert_fates(ids, masked, labels)


@pytest.mark.parametrize("shares", [(1, 0), (0, 1), (0, 0), (0.5, 0.5), (0.7, 0.3), (0.3, 0.6)])
def test_the_two_share_parameters_are_the_shares_of_masked_and_random_tokens(shares):
    ids = sentence(50_000)
    masked, labels = hide(ids, mask_prob=0.5, mask_replace_prob=shares[0], random_replace_prob=shares[1])
    assert_share((labels != -100).sum(), len(ids), 0.5)
    assert_fates(ids, masked, labels, *shares)


def test_random_tokens_are_drawn_evenly_from_the_whole_vocabulary():
    masked, _ = hide(sentence(200_000), mask_prob=1, mask_replace_prob=0, random_replace_prob=1)
    counts = np.bincount(masked, minlength=VOCAB)
    assert len(counts) == VOCAB and counts.min() > 0
    assert_share(counts[: VOCAB // 2].sum(), len(masked), 0.5)
    assert_share(counts[::2].sum(), len(masked), 0.5)


def test_labels_are_the_original_ids_where_chosen_and_nothing_else_changes():
    ids, before = sentence(), sentence()
    masked, labels = hide(ids)
    chosen = labels != -100
    np.testing.assert_array_equal(labels[chosen], before[chosen])
    np.testing.assert_array_equal(masked[~chosen], before[~chosen])
    np.testing.assert_array_equal(ids, before)  # what was given stays as it was: the next epoch needs it
    assert masked.dtype == labels.dtype == np.int64 and masked.shape == labels.shape == ids.shape


@pytest.mark.parametrize("words", [None, "whole"])
def test_special_tokens_are_never_chosen(words):
    ids = sentence()
    special = np.random.default_rng(3).random(len(ids)) < 0.3
    continues = np.random.default_rng(4).random(len(ids)) < 0.5 if words else None
    masked, labels = hide(ids, special, mask_prob=1, continues=continues)
    assert (labels[special] == -100).all()
    np.testing.assert_array_equal(masked[special], ids[special])
    np.testing.assert_array_equal(labels[~special], ids[~special])  # with mask_prob 1, all others are


def test_mask_prob_0_hides_nothing():
    ids = sentence()
    masked, labels = hide(ids, mask_prob=0)
    assert (labels == -100).all()
    np.testing.assert_array_equal(masked, ids)


def test_mask_prob_1_asks_for_every_token():
    ids = sentence()
    np.testing.assert_array_equal(hide(ids, mask_prob=1)[1], ids)


@pytest.mark.parametrize("prob", [-0.1, 1.1, 15, float("nan")])
def test_a_mask_prob_that_is_no_probability_is_refused_with_its_value(prob):
    with pytest.raises(ValueError, match=f"mask_prob is {prob}"):
        hide(sentence(5), mask_prob=prob)


@pytest.mark.parametrize("shares", [(-0.1, 0.5), (0.5, -0.1), (0.8, 0.3), (1.1, 0), (0, 1.1)])
def test_shares_that_are_no_shares_of_1_are_refused_with_both_values(shares):
    with pytest.raises(ValueError, match=f"mask_replace_prob is {shares[0]} and random_replace_prob is {shares[1]}"):
        hide(sentence(5), mask_replace_prob=shares[0], random_replace_prob=shares[1])


# ---------------------------------------------------------------- whole words


def words_of(continues):
    """Number of the word of each token, by counting in a loop."""
    numbers, number = [], -1
    for goes_on in continues:
        number += not goes_on
        numbers.append(number)
    return np.array(numbers)


def random_words(length, seed=5):
    continues = np.random.default_rng(seed).random(length) < 0.6  # a word has 2.5 tokens on average, some have ten
    continues[0] = False
    return continues


def test_all_tokens_of_a_word_are_chosen_together():
    continues = random_words(5000)
    words = words_of(continues)
    _, labels = hide(sentence(5000), continues=continues, mask_prob=0.4)
    chosen = labels != -100
    assert 0 < chosen.sum() < len(chosen)
    for word in range(words[-1] + 1):
        assert len(set(chosen[words == word])) == 1


def test_a_word_is_chosen_with_mask_prob_however_long_it_is():
    continues = random_words(300_000)
    words = words_of(continues)
    lengths = np.bincount(words)
    chosen = hide(sentence(300_000), continues=continues)[1][~continues] != -100  # the first token of each word
    assert_share(chosen.sum(), len(lengths), 0.15)
    for length in (1, 2, 5):
        assert_share(chosen[lengths == length].sum(), (lengths == length).sum(), 0.15)


def test_each_token_of_a_chosen_word_meets_its_own_fate():
    ids, continues = sentence(200_000), random_words(200_000)
    masked, labels = hide(ids, continues=continues)
    assert_fates(ids, masked, labels)
    # With one fate for the whole word, the second token would be masked whenever the first is, and not in 4 of 5 cases.
    second = np.flatnonzero(continues[1:] & ~continues[:-1]) + 1
    second = second[(labels[second] != -100) & (masked[second - 1] == MASK)]
    assert_share((masked[second] == MASK).sum(), len(second), 0.8)


def test_words_of_one_token_are_hidden_as_tokens_are():
    ids = sentence()
    np.testing.assert_array_equal(hide(ids, continues=np.zeros(len(ids), dtype=bool)), hide(ids))


def test_the_rest_of_a_word_that_the_block_before_has_begun_is_hidden_as_a_word():
    ids, special = np.array([1, 20, 21, 30]), np.array([True, False, False, False])  # [CLS] ##20 ##21 30
    continues = np.array([False, True, True, False])
    labels = np.array([hide(ids, special, continues=continues, example_id=i)[1] for i in range(4000)])
    chosen = labels != -100
    assert not chosen[:, 0].any()
    np.testing.assert_array_equal(chosen[:, 1], chosen[:, 2])
    assert_share(chosen[:, 1].sum(), len(chosen), 0.15)
    assert (chosen[:, 1] != chosen[:, 3]).any()


# ---------------------------------------------------------------- word_continuations


def trained(model, trainer, pre_tokenizer, prose, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(prose[:300], trainer)
    return tokenizer


SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
           "mask_token": "[MASK]"}  # fmt: skip
TRAINING = {"special_tokens": list(SPECIAL.values()), "show_progress": False}


@pytest.fixture(scope="module")
def tokenizers(prose):
    raw = {
        "WordPiece": trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=400, **TRAINING),
                             pre_tokenizers.BertPreTokenizer(), prose, normalizers.BertNormalizer()),
        "byte-level BPE": trained(models.BPE(), trainers.BpeTrainer(vocab_size=500, **TRAINING,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
                                  pre_tokenizers.ByteLevel(add_prefix_space=False), prose),
        "Unigram": trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=300, unk_token="[UNK]", **TRAINING),
                           pre_tokenizers.Metaspace(), prose),
        "WordLevel": trained(models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(vocab_size=500, **TRAINING),
                             pre_tokenizers.Whitespace(), prose),
        "characters": trained(models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(**TRAINING),
                              pre_tokenizers.Split("", "isolated"), prose),
    }  # fmt: skip
    return {name: PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL) for name, tokenizer in raw.items()}


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "Unigram"])
def test_the_first_piece_of_a_word_starts_it_and_the_others_continue_it(tokenizers, kind):
    continues = word_continuations(tokenizers[kind])
    assert continues.dtype == bool
    words = ["the", "statements", "of", "incomprehensibilities", "zigzag", "q", "2026", "xylophones", "play"]
    ids = [tokenizers[kind](f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert max(map(len, ids)) > 5 and min(map(len, ids)) <= 2
    for word, pieces in zip(words, ids, strict=True):
        assert continues[pieces].tolist() == [False] + [True] * (len(pieces) - 1), word
    together = tokenizers[kind](" " + " ".join(words), add_special_tokens=False)["input_ids"]
    assert (~continues[together]).sum() == len(words)


def test_line_feeds_and_tabs_part_the_words_of_byte_level_bpe(tokenizers):
    tokenizer = tokenizers["byte-level BPE"]
    tokens = tokenizer.tokenize(" xylophones\n\tplay")
    continues = word_continuations(tokenizer)[tokenizer.convert_tokens_to_ids(tokens)]
    at = tokens.index("Ċ")
    assert continues[:at].tolist() == [False] + [True] * (at - 1)
    assert tokens[at : at + 2] == ["Ċ", "ĉ"] and not continues[at : at + 2].any()


def test_punctuation_is_a_word_of_its_own_in_word_piece(tokenizers):
    tokenizer = tokenizers["WordPiece"]
    ids = tokenizer("a, b. (c)", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7 and not word_continuations(tokenizer)[ids].any()


@pytest.mark.parametrize("kind", ["WordLevel", "characters"])
def test_in_a_vocabulary_without_signs_each_token_is_a_word(tokenizers, kind):
    continues = word_continuations(tokenizers[kind])
    assert len(continues) == len(tokenizers[kind]) > 50 and not continues.any()


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "Unigram"])
def test_special_tokens_and_words_that_a_user_added_start_words(tokenizers, kind, tmp_path):
    tokenizers[kind].save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # of its own, as this changes it
    before = len(tokenizer)
    tokenizer.add_tokens(["zyxw", "covfefe"])
    continues = word_continuations(tokenizer)
    assert len(continues) == before + 2
    assert not continues[tokenizer.all_special_ids].any()
    assert not continues[tokenizer.convert_tokens_to_ids(["zyxw", "covfefe"])].any()


def test_ids_behind_a_hole_in_the_vocabulary_have_their_place():
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 6, "##ed": 7}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    ids = tokenizer("playing played")["input_ids"]
    assert ids == [1, 6, 1, 7]
    assert word_continuations(tokenizer)[ids].tolist() == [False, True, False, True]


# ---------------------------------------------------------------- batches


def test_pad_puts_rows_under_each_other_and_fills_them_up():
    padded = pad([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])], -100)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[1, 2, 3], [4, -100, -100], [5, 6, -100]]


PAD_ID, CLS, SEP = 0, 1, 2


@pytest.fixture
def make_collator():
    special = np.zeros(VOCAB, dtype=bool)
    special[[PAD_ID, CLS, SEP]] = True

    def make(**settings):
        masks = {"mask_id": MASK, "vocab_size": VOCAB, "seed": 0, "mask_prob": 0.3}
        return MaskingCollator(**{"pad_id": PAD_ID, "special": special, **masks, **settings})

    return make


def examples_of(*lengths, first=0):
    """Examples [CLS] … [SEP] of the given lengths, as they come from an Arrow file."""
    rows = [np.r_[CLS, 10 + sentence(length, seed=length) % (VOCAB - 10), SEP] for length in (n - 2 for n in lengths)]
    return [{"id": np.int64(first + i), "input_ids": row.astype(np.int32)} for i, row in enumerate(rows)]


def rows_of(batch):
    """What a batch says of each of its rows: (ids without padding, {position: target})."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    rows = [(row[keep.bool()].tolist(), {}) for row, keep in zip(ids, mask, strict=True)]
    for position, target in zip(batch["positions"].tolist(), batch["targets"].tolist(), strict=True):
        rows[position // ids.shape[1]][1][position % ids.shape[1]] = target
    return rows


def test_a_batch_holds_what_mask_tokens_makes_of_each_example(make_collator):
    examples = examples_of(40, 12, 25, first=100)
    batch = make_collator(seed=3)(examples)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "input_ids": ((3, 40), torch.int64), "attention_mask": ((3, 40), torch.int64),
        "positions": ((len(batch["targets"]),), torch.int64), "targets": ((len(batch["positions"]),), torch.int64),
    }  # fmt: skip
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD_ID).all()
    assert batch["attention_mask"].sum(1).tolist() == [40, 12, 25]
    for example, (ids, targets) in zip(examples, rows_of(batch), strict=True):
        special = np.isin(example["input_ids"], [CLS, SEP])
        masked, labels = hide(example["input_ids"], special, seed=3, example_id=int(example["id"]), mask_prob=0.3)
        assert ids == masked.tolist()
        assert targets == {i: label for i, label in enumerate(labels) if label != -100} and targets


def test_there_is_an_attention_mask_only_where_a_row_is_padded(make_collator):
    assert "attention_mask" not in make_collator()(examples_of(16, 16, 16))
    assert "attention_mask" in make_collator()(examples_of(16, 16, 15))


def test_an_example_is_masked_alike_in_whatever_batch_it_is(make_collator):
    collator, examples = make_collator(), examples_of(30, 12, 30, 21)
    one_by_one = [rows_of(collator([example]))[0] for example in examples]
    assert rows_of(collator(examples)) == one_by_one
    assert rows_of(collator(examples[::-1])) == one_by_one[::-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_data_workers_mask_as_the_main_process_does(make_collator, workers):
    collator, examples = make_collator(), examples_of(*range(10, 26))
    collator.epoch = 2

    def rows(num_workers):
        loader = DataLoader(examples, batch_size=3, collate_fn=collator, num_workers=num_workers)
        return [row for batch in loader for row in rows_of(batch)]

    assert rows(workers) == rows(0)


def test_another_epoch_masks_anew(make_collator):
    collator, examples, seen = make_collator(), examples_of(60, 60), []
    for collator.epoch in (0, 1, 2, 0):
        seen.append(rows_of(collator(examples)))
    assert seen[0] == seen[3]
    assert all(first != second for first, second in pairwise(seen))


def test_a_batch_without_examples_can_be_run_and_asks_for_nothing(make_collator):
    batch = make_collator(mask_prob=1)([])
    assert batch["input_ids"].shape == (1, 1) and batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].item() in (PAD_ID, CLS, SEP)
    assert batch["positions"].shape == batch["targets"].shape == (0,)
    assert batch["positions"].dtype == batch["targets"].dtype == torch.int64


def test_a_collator_that_knows_what_continues_a_word_hides_whole_words(make_collator):
    continues = np.arange(VOCAB) % 3 == 2
    continues[[CLS, SEP]] = False
    for settings, may_be_cut in (({"continues": continues}, False), ({}, True)):
        collator, cut = make_collator(**settings), 0
        for number in range(20):
            [example] = examples_of(80, first=number)
            words = words_of(continues[example["input_ids"]])
            [(_, targets)] = rows_of(collator([example]))
            chosen = np.isin(np.arange(80), list(targets))
            cut += sum(len(set(chosen[words == word])) > 1 for word in set(words))
            assert targets
        assert (cut > 0) == may_be_cut
