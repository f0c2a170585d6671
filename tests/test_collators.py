"""Masks: the same for an example wherever it is seen, in the promised shares, and never where nothing may be hidden.

Pairs: the same, half of them true, no other B from A's own document, and no sentence of a document that is never seen.
"""

import pickle
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from helpers import hide_nothing, make_masker
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from benchmarks.nsp_books import sentence_of_b
from run_mlm import MaskingCollator
from run_pretraining import PretrainingCollator
from utils.batches import pad
from utils.errors import InputError
from utils.masks import WordUnits, describe_words, mask_tokens
from utils.pairs import Documents, PairCollator

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


# ---------------------------------------------------------------- WordUnits


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
    continues = WordUnits(tokenizers[kind])
    words = ["the", "statements", "of", "incomprehensibilities", "zigzag", "q", "2026", "xylophones", "play"]
    ids = [tokenizers[kind](f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert max(map(len, ids)) > 5 and min(map(len, ids)) <= 2
    for word, pieces in zip(words, ids, strict=True):
        assert continues(np.array(pieces)).tolist() == [False] + [True] * (len(pieces) - 1), word
    together = tokenizers[kind](" " + " ".join(words), add_special_tokens=False)["input_ids"]
    assert (~continues(np.array(together))).sum() == len(words)


def test_line_feeds_and_tabs_part_the_words_of_byte_level_bpe(tokenizers):
    tokenizer = tokenizers["byte-level BPE"]
    tokens = tokenizer.tokenize(" xylophones\n\tplay")
    continues = WordUnits(tokenizer)(np.array(tokenizer.convert_tokens_to_ids(tokens)))
    at = tokens.index("Ċ")
    assert continues[:at].tolist() == [False] + [True] * (at - 1)
    assert tokens[at : at + 2] == ["Ċ", "ĉ"] and not continues[at : at + 2].any()


def test_punctuation_is_a_word_of_its_own_in_word_piece(tokenizers):
    tokenizer = tokenizers["WordPiece"]
    ids = tokenizer("a, b. (c)", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7 and not WordUnits(tokenizer)(np.array(ids)).any()


@pytest.mark.parametrize("kind", ["WordLevel", "characters"])
def test_in_a_vocabulary_without_signs_each_token_is_a_word(tokenizers, kind):
    ids = np.arange(len(tokenizers[kind]))
    assert len(ids) > 50 and not WordUnits(tokenizers[kind])(ids).any()


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "Unigram"])
def test_special_tokens_and_words_that_a_user_added_start_words(tokenizers, kind, tmp_path):
    tokenizers[kind].save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # of its own, as this changes it
    tokenizer.add_tokens(["zyxw", "covfefe"])
    continues = WordUnits(tokenizer)
    assert not continues(np.array(tokenizer.all_special_ids)).any()
    assert not continues(np.array(tokenizer.convert_tokens_to_ids(["zyxw", "covfefe"]))).any()


def test_ids_behind_a_hole_in_the_vocabulary_have_their_place():
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 6, "##ed": 7}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    ids = tokenizer("playing played")["input_ids"]
    assert ids == [1, 6, 1, 7]
    assert WordUnits(tokenizer)(np.array(ids)).tolist() == [False, True, False, True]


def units_of(tokenizer, text):
    """The text in the units that are hidden together, each as it is decoded or as its tokens are spelt."""
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    starts = np.flatnonzero(~WordUnits(tokenizer)(ids))
    return [part.tolist() for part in np.split(ids, starts[starts > 0])]


def spelt(tokenizer, text):
    return ["".join(tokenizer.convert_ids_to_tokens(unit)) for unit in units_of(tokenizer, text)]


def decoded(tokenizer, text):
    raw = decoders.ByteLevel()
    return [raw.decode(tokenizer.convert_ids_to_tokens(unit)) for unit in units_of(tokenizer, text)]


def test_a_token_ends_a_word_where_the_vocabulary_says_so_at_its_end(prose):
    raw = trained(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"),
                  trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", **TRAINING),
                  pre_tokenizers.BertPreTokenizer(), prose)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    text = "incomprehensibilities of statements , a xylophone"
    assert spelt(tokenizer, text) == [f"{word}</w>" for word in text.split()]
    assert max(map(len, units_of(tokenizer, text))) > 4
    cls, pieces = tokenizer.cls_token_id, tokenizer("statements", add_special_tokens=False)["input_ids"]
    continues = WordUnits(tokenizer)(np.array([cls, *pieces, cls, *pieces]))
    assert continues.tolist() == [False, False, *[True] * (len(pieces) - 1)] * 2


def test_a_token_goes_on_after_one_that_says_so_at_its_end():
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "wo@@": 1, "rd": 2, "s@@": 3, "a": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    assert spelt(tokenizer, "wo@@ rd a wo@@ s@@ rd") == ["wo@@rd", "a", "wo@@s@@rd"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("我们在北京。", ["我", "们", "在", "北", "京", "。"]),
        ("これはテスト", ["こ", "れ", "は", "テ", "ス", "ト"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("ພາສາ", ["ພ", "າ", "ສ", "າ"]),
        ("ភាសា", ["ភ", "ា", "ស", "ា"]),
        ("မြန်မာ", ["မ", "ြ", "န", "်", "မ", "ာ"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        (" 한국어 사람", [" 한국어", " 사람"]),  # these scripts have blanks
        (" हिन्दी भाषा", [" हिन्दी", " भाषा"]),
        (" naïve 👍🏽", [" naïve", " 👍🏽"]),
    ],
)
def test_bytes_make_characters_where_no_blanks_part_words(tokenizers, text, units):
    assert decoded(tokenizers["byte-level BPE"], text) == units


def test_byte_level_bpe_that_has_learnt_a_script_without_blanks_hides_what_it_has_a_token_for():
    corpus = ["我们在北京 ## ### ####"] * 50  # more tokens begin with ## than with Ġ
    raw = trained(models.BPE(), trainers.BpeTrainer(vocab_size=300, **TRAINING,
                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
                  pre_tokenizers.ByteLevel(add_prefix_space=False), corpus)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    assert decoded(tokenizer, "我们在北京 ##北") == ["我们在北京", " ##", "北"]


def test_of_other_vocabularies_too_each_token_of_a_script_without_blanks_is_a_unit():
    pieces = ["<unk>", "▁", "▁我", "们", "在北", "▁the", "m", "ไทย", "사람"]
    pieces += [f"<0x{byte:02X}>" for byte in "京a".encode()]
    raw = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert spelt(tokenizer, "我们在北 them") == ["▁我", "们", "在北", "▁them"]
    assert spelt(tokenizer, "ไทยไทย 사람사람") == ["▁", "ไทย", "ไทย", "▁사람사람"]
    assert spelt(tokenizer, "我京们") == ["▁我", "<0xE4><0xBA><0xAC>", "们"]
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "これ": 1, "##は": 2, "##テ": 3}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    assert spelt(tokenizer, "これはテ") == ["これ", "##は", "##テ"]
    tokenizer.word_tokenizer_type = "mecab"  # as of the tokenizer that finds words by a dictionary
    assert spelt(tokenizer, "これはテ") == ["これ##は##テ"]


def test_a_vocabulary_that_does_not_mark_words_is_refused(prose):
    raw = trained(models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(vocab_size=300, **TRAINING),
                  pre_tokenizers.Whitespace(), prose)  # fmt: skip
    with pytest.raises(InputError, match="^--masking whole_word: .* Take --masking token"):
        WordUnits(PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL))


@pytest.mark.parametrize("prefix", ["##", "@@", "_"])
def test_a_word_piece_prefix_is_the_one_that_the_model_says(prose, prefix):
    raw = trained(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=prefix),
                  trainers.WordPieceTrainer(vocab_size=300, continuing_subword_prefix=prefix, **TRAINING),
                  pre_tokenizers.BertPreTokenizer(), prose)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    words = ["incomprehensibilities", "of", "statements"]
    assert [unit.replace(prefix, "") for unit in spelt(tokenizer, " ".join(words))] == words


def test_an_end_of_a_word_is_the_one_that_the_model_says(prose):
    raw = trained(models.BPE(unk_token="[UNK]", end_of_word_suffix="_"),
                  trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="_", **TRAINING),
                  pre_tokenizers.BertPreTokenizer(), prose)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    assert spelt(tokenizer, "incomprehensibilities of statements") == ["incomprehensibilities_", "of_", "statements_"]


def test_a_sign_that_is_but_a_letter_of_the_alphabet_is_none(prose):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = trained(models.BPE(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **TRAINING),
                  pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(
                      add_prefix_space=False, use_regex=False)]), prose)  # fmt: skip
    with pytest.raises(InputError, match="^--masking whole_word: "):
        WordUnits(PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL))


def test_the_mean_length_of_a_word_is_said_of_masks_that_hide_words():
    rows, lines = [np.array([CLS, 10, 11, 13, SEP]), np.array([CLS, 16, 17, 20, SEP])], []  # 11, 17 and 20 go on
    for masking in ("token", "whole_word"):
        describe_words(make_masker(VOCAB, MASK, [PAD_ID, CLS, SEP], masking=masking), rows, lines.append)
    assert lines == ["Words       2.00 tokens each, which are hidden together"]


def test_random_tokens_are_ids_that_the_vocabulary_has():
    vocabulary = np.array([3, 5, 900])
    masked, _ = hide(sentence(), mask_prob=1, mask_replace_prob=0, random_replace_prob=1, vocab_size=3,
                     vocabulary=vocabulary)  # fmt: skip
    drawn, _ = hide(sentence(), mask_prob=1, mask_replace_prob=0, random_replace_prob=1, vocab_size=3)
    assert {*masked.tolist()} == {3, 5, 900} and (masked == vocabulary[drawn]).all()
    masker = make_masker(VOCAB, MASK, [PAD_ID, CLS, SEP], mlm_probability=1, mask_replace_prob=0, random_replace_prob=1)
    rows, *_ = masker([sentence(5000)], [0], 0)
    assert not np.isin(rows[0], range(VOCAB - 1, MASK)).any() and rows[0].max() == MASK  # the ids between are left out


# ---------------------------------------------------------------- batches


def test_pad_puts_rows_under_each_other_and_fills_them_up():
    padded = pad([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])], -100)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[1, 2, 3], [4, -100, -100], [5, 6, -100]]


PAD_ID, CLS, SEP = 0, 1, 2


@pytest.fixture
def make_collator():
    def make(seed=0, **flags):
        flags = {"mlm_probability": 0.3, **flags}
        return MaskingCollator(make_masker(VOCAB, MASK, [PAD_ID, CLS, SEP], seed, **flags), PAD_ID)

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
    batch = make_collator(mlm_probability=1)([])
    assert batch["input_ids"].shape == (1, 1) and batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].item() in (PAD_ID, CLS, SEP)
    assert batch["positions"].shape == batch["targets"].shape == (0,)
    assert batch["positions"].dtype == batch["targets"].dtype == torch.int64


def test_whole_words_are_hidden_where_that_is_asked_for(make_collator):
    continues = np.arange(VOCAB) % 3 == 2
    continues[[CLS, SEP]] = False
    for masking, may_be_cut in (("whole_word", False), ("token", True)):
        collator, cut = make_collator(masking=masking), 0
        for number in range(20):
            [example] = examples_of(80, first=number)
            words = words_of(continues[example["input_ids"]])
            [(_, targets)] = rows_of(collator([example]))
            chosen = np.isin(np.arange(80), list(targets))
            cut += sum(len(set(chosen[words == word])) > 1 for word in set(words))
            assert targets
        assert (cut > 0) == may_be_cut


# ---------------------------------------------------------------- pairs


FIRST = 10  # the tokens of a corpus are numbered from here on: each is found only once, and tells where it stands


class Corpus:
    """Documents whose sentences have the given lengths, and from which of them each token is, found in plain loops."""

    def __init__(self, lengths):
        self.sentence_of, self.document_of, ids, numbers = {}, [], [], []
        for number, document in enumerate(lengths):
            for length in document:
                tokens = range(FIRST + len(self.sentence_of), FIRST + len(self.sentence_of) + length)
                self.sentence_of |= dict.fromkeys(tokens, len(ids))
                self.document_of.append(number)
                ids.append(tokens)
                numbers.append(number)
        columns = {"ids": pa.array(map(list, ids), pa.large_list(pa.int32())), "document": pa.array(numbers)}
        self.documents = Documents(Dataset(pa.table(columns)).with_format("arrow"))

    def pairs(self, unit="sentence", short_seq_prob=0.1, **settings):
        """A PairCollator for pairs of sentences; for segments a PretrainingCollator that hides nothing."""
        given = {"size": 40, "objective": "nsp", "seed": 0, "edges": (CLS, SEP), "pad_id": PAD_ID} | settings
        if unit == "sentence":
            return PairCollator(self.documents, **given)
        return PretrainingCollator(hide_nothing, unit, short_seq_prob, documents=self.documents, **given)

    def sentences(self, tokens):
        return sorted({self.sentence_of[token] for token in tokens})

    def documents_in(self, tokens):
        return {self.document_of[sentence] for sentence in self.sentences(tokens)}


def draw_lengths(documents, sentences=(2, 30), mean=12, seed=0):
    """Lengths of sentences: most of them short, some longer than any pair."""
    rng = np.random.default_rng(seed)
    return [rng.geometric(1 / mean, size=rng.integers(*sentences, endpoint=True)).tolist() for _ in range(documents)]


def pairs_in(batch):
    """What stands in a batch: (ids of A, ids of B, label) of each row, after a look at all around them."""
    rows = [batch[name].tolist() for name in ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")]
    for ids, types, mask, label in zip(*rows, strict=True):
        length, length_a = sum(mask), mask.count(1) - types.count(1)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert types == [0] * length_a + [1] * (length - length_a) + [0] * (len(mask) - length)
        assert ids[length:] == [PAD_ID] * (len(mask) - length)
        assert (ids[0], ids[length_a - 1], ids[length - 1]) == (CLS, SEP, SEP)
        yield ids[1 : length_a - 1], ids[length_a : length - 1], label


def pairs_of(collator, epoch=0):
    """All pairs of an epoch."""
    collator.epoch, count = epoch, collator.count(epoch)
    batches = (collator(list(range(start, min(start + 100, count)))) for start in range(0, count, 100))
    return [pair for batch in batches for pair in pairs_in(batch)]


def assert_run(tokens):
    """They stand one behind the other in the corpus, and there is at least one."""
    assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))


UNITS = ["sentence", "segment"]


@pytest.mark.parametrize("unit", UNITS)
def test_half_of_the_pairs_follow_each_other_and_no_other_b_is_from_the_same_document(unit):
    corpus, size, labels = Corpus(draw_lengths(60)), 40, []
    epochs = ((seed, epoch) for seed in range(100) for epoch in range(4))
    while len(labels) < 20_000:
        seed, epoch = next(epochs)
        for a, b, label in pairs_of(corpus.pairs(unit=unit, size=size, seed=seed), epoch):
            labels.append(label)
            assert_run(a)
            assert_run(b)
            assert len(a) + len(b) <= size
            assert len(corpus.documents_in(a)) == len(corpus.documents_in(b)) == 1
            if label == 0:
                assert corpus.documents_in(a) == corpus.documents_in(b)
                assert corpus.sentences(b)[0] == corpus.sentences(a)[-1] + 1
                assert len(a) + len(b) == size or b[0] == a[-1] + 1  # where nothing was cut off, token by token
            else:
                assert corpus.documents_in(a) != corpus.documents_in(b)
            if unit == "sentence":
                assert len(corpus.sentences(a)) == len(corpus.sentences(b)) == 1
    assert abs(sum(labels) - len(labels) / 2) <= 3 * np.sqrt(len(labels)) / 2


def test_segments_fill_the_room_with_several_sentences():
    corpus = Corpus(draw_lengths(60, sentences=(100, 120), mean=5))
    pairs = pairs_of(corpus.pairs(unit="segment", size=60, short_seq_prob=0))
    for chosen in (0, 1):
        lengths, sentences_a, sentences_b = np.array([
            (len(a) + len(b), len(corpus.sentences(a)), len(corpus.sentences(b)))
            for a, b, label in pairs if label == chosen
        ]).mean(0)  # fmt: skip
        assert 50 < lengths <= 60 and sentences_a > 3 and sentences_b > 3  # fewer at the end of a document


def test_each_sentence_but_a_documents_last_is_a_once_an_epoch():
    lengths = [[5, 100, 1], [3, 4], *draw_lengths(20)]
    corpus = Corpus(lengths)
    lasts = set(np.cumsum(list(map(len, lengths))) - 1)
    for epoch in range(3):
        seen = [sentence for a, _, _ in pairs_of(corpus.pairs(), epoch) for sentence in corpus.sentences(a)]
        assert sorted(seen) == [sentence for sentence in range(len(corpus.document_of)) if sentence not in lasts]


LENGTHS = {
    "mixed": draw_lengths(40),
    "one token": [[1] * n for n in range(2, 30)],
    "all too long": [[200] * n for n in range(2, 10)],
    "one token and too long": [[1, 200] * n + [1] * (n % 2) for n in range(1, 12)],
    "documents of 2": draw_lengths(80, sentences=(2, 2)),
    "documents of 3": draw_lengths(60, sentences=(3, 3)),
    "near three quarters": np.random.default_rng(0).choice([1, 5, 6, 7, 29, 30, 31, 39, 40], size=(40, 9)).tolist(),
}


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("size", [8, 9, 40, 125])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_sentence_is_seen_in_some_segment_of_an_epoch(lengths, size, objective):
    """In the rows themselves, after all that is cut off; as A or as the true B, that chance may not make good a gap."""
    corpus = Corpus(LENGTHS[lengths])
    for seed, epoch, short_seq_prob in ((0, 0, 0.1), (0, 1, 0), (1, 0, 1)):
        settings = {"size": size, "seed": seed, "objective": objective, "short_seq_prob": short_seq_prob}
        pairs = pairs_of(corpus.pairs(unit="segment", **settings), epoch)
        shown = [a + b if label == 0 or objective == "sop" else a for a, b, label in pairs]
        assert corpus.sentences(chain.from_iterable(shown)) == list(range(len(corpus.document_of)))


# ---------------------------------------------------------------- pairs: the same ones wherever they are made


def one_by_one(collator, order, epoch=0):
    collator.epoch = epoch
    return {i: next(pairs_in(collator([i]))) for i in order}


@pytest.mark.parametrize("unit", UNITS)
def test_a_pair_is_the_same_in_whatever_order_and_batch_it_is_asked_for(unit):
    corpus = Corpus(draw_lengths(10))
    whole = pairs_of(corpus.pairs(unit=unit))
    collator = corpus.pairs(unit=unit)
    np.random.seed(1)  # a generator that all share has no part in it
    torch.manual_seed(1)
    order = np.random.default_rng(3).permutation(len(whole)).tolist()
    assert len(whole) > 40 and one_by_one(collator, order) == dict(enumerate(whole))
    assert list(pairs_in(collator([5, 3, 30]))) == [whole[5], whole[3], whole[30]]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("planned", [False, True])
def test_a_pickled_collator_makes_the_same_pairs(unit, planned):
    """As data workers that are spawned get it."""
    corpus = Corpus(draw_lengths(10))
    collator = corpus.pairs(unit=unit)
    collator.epoch = 2
    if planned:
        collator.count(2)
    again = pickle.loads(pickle.dumps(collator))
    assert again.epoch == 2
    assert pairs_of(again, 2) == pairs_of(corpus.pairs(unit=unit), 2)


@pytest.mark.parametrize("unit", UNITS)
def test_data_workers_make_the_pairs_that_the_main_process_makes(unit):
    collator = Corpus(draw_lengths(10)).pairs(unit=unit)
    collator.epoch = 1

    def rows(num_workers):
        loader = DataLoader(range(collator.count(1)), batch_size=7, collate_fn=collator, num_workers=num_workers)
        return [pair for batch in loader for pair in pairs_in(batch)]

    assert rows(2) == rows(0)


@pytest.mark.parametrize("unit", UNITS)
def test_another_epoch_and_another_seed_have_other_pairs(unit):
    corpus = Corpus(draw_lengths(20))
    keys = [(seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)]  # (1, 0) and (0, 1) among them
    seen = {key: pairs_of(corpus.pairs(unit=unit, seed=key[0]), key[1]) for key in keys}
    others = [{tuple(a): tuple(b) for a, b, label in pairs if label} for pairs in seen.values()]
    for i, first in enumerate(others):
        for second in others[:i]:  # of those with the same A, hardly any has the same B
            both = first.keys() & second.keys()
            assert unit == "segment" or len(both) > 20
            assert sum(first[a] == second[a] for a in both) <= max(1, len(both) // 10)
    collator = corpus.pairs(unit=unit, seed=42)
    for epoch in (0, 1, 2, 0):
        assert pairs_of(collator, epoch) == seen[42, epoch]
    assert len({str(pairs) for pairs in seen.values()}) == len(keys)


def test_the_epochs_pairs_are_counted_whatever_epoch_is_set():
    corpus = Corpus(draw_lengths(30))
    sentences = corpus.pairs()
    assert [sentences.count(epoch) for epoch in range(3)] == [len(corpus.document_of) - 30] * 3
    segments = corpus.pairs(unit="segment")
    counts = [segments.count(epoch) for epoch in range(5)]
    assert len(set(counts)) > 1  # they depend on what is drawn
    for epoch in (4, 0, 2):
        assert segments.count(epoch) == counts[epoch] == len(segments.plan(epoch)) == len(pairs_of(segments, epoch))


@pytest.mark.parametrize("unit", UNITS)
def test_a_sample_is_some_of_the_pairs(unit):
    corpus = Corpus(draw_lengths(20))
    whole, collator = corpus.pairs(unit=unit), corpus.pairs(unit=unit, sample=50)
    places = [whole.plan(0).tolist().index(row) for row in collator.plan(0).tolist()]
    assert collator.count(0) == len(pairs_of(collator)) == len(set(places)) == 50
    assert places != list(range(50)) and max(places) > len(whole.plan(0)) // 2  # from all of it
    assert corpus.pairs(unit=unit, sample=50).plan(0).tolist() == collator.plan(0).tolist()
    assert corpus.pairs(unit=unit, sample=50, seed=1).plan(0).tolist() != collator.plan(0).tolist()
    assert pairs_of(corpus.pairs(unit=unit, sample=10**6)) == pairs_of(whole)


# ---------------------------------------------------------------- pairs: which B takes the place of the true one


def test_another_b_is_drawn_evenly_from_the_sentences_of_the_other_documents():
    corpus, drawn = Corpus([[1] * 10, [2] * 20, [3] * 10]), Counter()
    for seed in range(400):
        for a, b, label in pairs_of(corpus.pairs(seed=seed)):
            if label:
                drawn[corpus.document_of[corpus.sentences(a)[0]], corpus.sentences(b)[0]] += 1
    for document, others in ((0, range(10, 40)), (1, [*range(10), *range(30, 40)]), (2, range(30))):
        total = sum(count for (of, _), count in drawn.items() if of == document)
        assert {b for of, b in drawn if of == document} == set(others)
        for b in others:
            assert_share(drawn[document, b], total, 1 / len(others))


def test_a_benchmark_can_tell_which_sentence_b_is():
    """From which it knows how many of the other Bs are of the same book."""
    corpus = Corpus([[7, 5, 9], [4, 90, 6], [3, 3, 3, 3]] * 5)
    collator = corpus.pairs(seed=3)
    for i in range(collator.count(0)):
        _, b, _ = collator.pair(i)
        assert corpus.sentences(b.tolist()) == [sentence_of_b(collator, i)]


@pytest.mark.parametrize("example", [0, 1])
@pytest.mark.parametrize("unit", UNITS)
def test_the_first_examples_too_draw_their_b_evenly(unit, example):
    """What is drawn for a pair is not what was drawn for the plan."""
    corpus, drawn = Corpus([[1] * 5] * 11), []
    for seed in range(50):
        collator = corpus.pairs(unit=unit, seed=seed)
        for collator.epoch in range(20):
            a, b, label = next(pairs_in(collator([example])))
            if label and corpus.documents_in(a) == {0}:
                drawn.append(corpus.sentences(b)[0])
    assert len(drawn) > 200
    assert_share(sum(b >= 30 for b in drawn), len(drawn), 0.5)  # of 5 to 54


# ---------------------------------------------------------------- pairs: the two in the other order


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("documents", [1, 12])
def test_sentence_order_swaps_half_of_the_pairs_and_draws_no_other_b(unit, documents):
    corpus, size, labels = Corpus(draw_lengths(documents, sentences=(50, 60))), 40, []
    for epoch in range(24 // documents):
        for a, b, label in pairs_of(corpus.pairs(unit=unit, objective="sop", size=size), epoch):
            first, second = (b, a) if label else (a, b)
            assert_run(first)
            assert_run(second)
            assert len(a) + len(b) <= size and corpus.documents_in(a) == corpus.documents_in(b)
            assert corpus.sentences(second)[0] == corpus.sentences(first)[-1] + 1
            assert len(a) + len(b) == size or second[0] == first[-1] + 1
            labels.append(label)
    assert abs(sum(labels) - len(labels) / 2) <= 3 * np.sqrt(len(labels)) / 2


@pytest.mark.parametrize("unit", UNITS)
def test_label_1_is_the_same_two_in_the_other_order(unit):
    corpus, seen = Corpus([[3, 4], [5, 2], [1, 1]]), {0: set(), 1: set()}  # one pair each
    for epoch in range(20):
        for a, b, label in pairs_of(corpus.pairs(unit=unit, objective="sop", short_seq_prob=0), epoch):
            seen[label].add((*a, 0, *b))
    assert seen[0] == {(10, 11, 12, 0, 13, 14, 15, 16), (17, 18, 19, 20, 21, 0, 22, 23), (24, 0, 25)}
    assert seen[1] == {(13, 14, 15, 16, 0, 10, 11, 12), (22, 23, 0, 17, 18, 19, 20, 21), (25, 0, 24)}


# ---------------------------------------------------------------- pairs: batches


def test_a_batch_of_pairs_by_hand():
    collator = Corpus([[3, 2], [1, 4]]).pairs()  # tokens 10 to 12, 13 and 14; 15, 16 to 19
    for collator.epoch in range(100):
        batch = collator([0, 1])
        if batch["next_sentence_label"].tolist() == [0, 0]:
            break
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[CLS, 10, 11, 12, SEP, 13, 14, SEP], [CLS, 15, SEP, 16, 17, 18, 19, SEP]],
        "token_type_ids": [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]],
        "attention_mask": [[1] * 8] * 2, "next_sentence_label": [0, 0],
    }  # fmt: skip
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    for collator.epoch in range(100):
        batch = collator([1, 0])
        if batch["next_sentence_label"].tolist() == [1, 0] and batch["input_ids"][0, 3] == 13:
            break
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[CLS, 15, SEP, 13, 14, SEP, PAD_ID, PAD_ID], [CLS, 10, 11, 12, SEP, 13, 14, SEP]],
        "token_type_ids": [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]],
        "attention_mask": [[1] * 6 + [0] * 2, [1] * 8], "next_sentence_label": [1, 0],
    }  # fmt: skip


def test_a_batch_without_pairs_is_one_row_whose_label_counts_for_nothing():
    batch = Corpus([[3, 2], [1, 4]]).pairs()([])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[CLS, SEP, SEP]], "token_type_ids": [[0, 0, 1]], "attention_mask": [[1, 1, 1]],
        "next_sentence_label": [-100],
    }  # fmt: skip
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


# ---------------------------------------------------------------- pairs with masks


SPECIAL_IDS = [PAD_ID, CLS, SEP, 20, 30]  # two that a user added
IS_SPECIAL = np.isin(np.arange(VOCAB), SPECIAL_IDS)


def both_collators(unit, mlm_probability=0.3, masking="token", objective="nsp"):
    """A collator that hides nothing and a PretrainingCollator that does, for the same pairs, of tokens below VOCAB."""
    corpus = Corpus([[3, 9, 12, 1, 40, 7, 7, 5]] * 11)
    pairs = corpus.pairs(unit=unit, size=30, seed=3, objective=objective)
    masker = make_masker(VOCAB, MASK, SPECIAL_IDS, seed=3, mlm_probability=mlm_probability, masking=masking)
    return pairs, PretrainingCollator(masker, unit, 0.1, documents=corpus.documents, size=30, edges=(CLS, SEP),
                                      pad_id=PAD_ID, objective=objective, seed=3)  # fmt: skip


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("unit", UNITS)
def test_under_the_masks_are_the_pairs_that_the_pair_collator_makes(unit, objective):
    pairs, pretraining = both_collators(unit, objective=objective)
    hidden = 0
    for epoch in (0, 1):
        pairs.epoch = pretraining.epoch = epoch
        assert pretraining.count(epoch) == pairs.count(epoch) > 12
        for start in range(0, pairs.count(epoch), 8):
            examples = list(range(start, min(start + 8, pairs.count(epoch))))
            plain, batch = pairs(examples), pretraining(examples)
            assert not len(plain.pop("positions", [])) and not len(plain.pop("targets", []))
            positions, targets = batch.pop("positions"), batch.pop("targets")
            assert positions.shape == targets.shape and positions.dtype == targets.dtype == torch.int64
            hidden += (batch["input_ids"].ravel()[positions] == MASK).sum().item()
            batch["input_ids"].ravel()[positions] = targets
            assert batch.keys() == plain.keys()
            for name in plain:
                assert torch.equal(batch[name], plain[name]), name
            assert not IS_SPECIAL[targets].any()
    assert hidden > 50


@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_pairs_are_masked_as_mask_tokens_says_for_seed_epoch_and_example(masking):
    continues = (np.arange(VOCAB) % 3 == 2) & ~IS_SPECIAL if masking == "whole_word" else None
    pairs, pretraining = both_collators("segment", masking=masking)
    pairs.epoch = pretraining.epoch = 2
    examples = [7, 0, 11]
    plain, batch = pairs(examples), pretraining(examples)
    lengths = plain["attention_mask"].sum(1).tolist()
    for example, length, row, (ids, targets) in zip(examples, lengths, plain["input_ids"].numpy(), rows_of(batch),
                                                    strict=True):  # fmt: skip
        row = row[:length]
        masked, labels = hide(row, IS_SPECIAL[row], seed=3, epoch=2, example_id=example, mask_prob=0.3,
                              continues=None if continues is None else continues[row])  # fmt: skip
        assert ids == masked.tolist()
        assert targets == {i: label for i, label in enumerate(labels) if label != -100}
    assert len(batch["targets"])


def test_all_but_special_tokens_are_hidden_with_mask_prob_1():
    _, pretraining = both_collators("sentence", mlm_probability=1)
    batch = pretraining(list(range(20)))
    asked = torch.zeros(batch["input_ids"].numel(), dtype=torch.bool)
    asked[batch["positions"]] = True
    ids = batch["input_ids"].ravel().numpy()
    left = ids[~asked.numpy()]
    assert IS_SPECIAL[left].all() and {CLS, SEP} <= set(left.tolist())
    assert (left == CLS).sum() == 20 and (left == SEP).sum() == 40


def test_a_masked_batch_without_pairs_asks_for_nothing():
    _, pretraining = both_collators("segment", mlm_probability=1, masking="whole_word")
    batch = pretraining([])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[CLS, SEP, SEP]], "token_type_ids": [[0, 0, 1]], "attention_mask": [[1, 1, 1]], "positions": [],
        "targets": [], "next_sentence_label": [-100],
    }  # fmt: skip
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_data_workers_and_pickles_make_the_same_masked_pairs():
    _, pretraining = both_collators("segment")
    pretraining.epoch = 1
    count = pretraining.count(1)

    def batches(collator, num_workers=0):
        loader = DataLoader(range(count), batch_size=5, collate_fn=collator, num_workers=num_workers)
        return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in loader]

    here = batches(pretraining)
    assert batches(pretraining, 2) == here
    assert batches(pickle.loads(pickle.dumps(pretraining))) == here
