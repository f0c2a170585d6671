"""run_ner.py from words to tokens and back: alignment, windows, the best path, labels, loss, and order of examples."""

import itertools
import math
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from run_ner import (
    InputError,
    align,
    allowed_moves,
    best_paths,
    choose_labels,
    cut_windows,
    entities_of,
    make_windows,
    read_tagged_row,
    tag_loss,
    tokenize_words,
    weigh_classes,
)
from utils.batches import GlobalBatchSampler
from utils.similar_lengths import SimilarLengthSampler

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ada", "lo", "##ve", "##lace", "!", "'", "don", "t", "🙂", "北",
          "京", "اح", "##مد", "x", "##x"]  # fmt: skip
ID = {piece: n for n, piece in enumerate(PIECES)}
CLS, SEP, UNK = ID["[CLS]"], ID["[SEP]"], ID["[UNK]"]
LABEL_IDS = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3, "I-LOC": 4}


@pytest.fixture(scope="module")
def wordpiece():
    """A lower-cased WordPiece tokenizer of a few pieces."""
    made = Tokenizer(models.WordPiece(vocab=ID, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
                                   sep_token="[SEP]", mask_token="[MASK]")  # fmt: skip


def byte_level(add_prefix_space, unknown="<unk>"):
    """A byte-level BPE tokenizer: all bytes, and the pieces ab, abc, Ġab and Ġabc (Ġ is a blank)."""
    pieces = ["<pad>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "Ġab", "Ġabc"]
    merges = [("a", "b"), ("Ġ", "ab"), ("Ġab", "c"), ("ab", "c")]
    made = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown, pad_token="<pad>",
                                   mask_token=AddedToken("<mask>", lstrip=True))  # fmt: skip


def pieces_of(tokenizer, words, spaced=None):
    (ids,) = tokenize_words([words], [spaced or [n > 0 for n in range(len(words))]], tokenizer)
    return [tokenizer.convert_ids_to_tokens(row) for row in ids]


def align_one(words, tags, tokenizer, *, max_seq_length=32, stride=4, label_all_tokens=False, label_ids=LABEL_IDS):
    batch = {"tokens": [words], "spaced": [[n > 0 for n in range(len(words))]], "tags": [tags]}
    return align(batch, [7], tokenizer, edges=(CLS, SEP), label_ids=label_ids, max_seq_length=max_seq_length,
                 stride=stride, label_all_tokens=label_all_tokens)  # fmt: skip


# ---------------------------------------------------------------- words to tokens


@pytest.mark.parametrize(
    "word, pieces",
    [
        ("Ada", ["ada"]),
        ("LoveLace", ["lo", "##ve", "##lace"]),
        ("!", ["!"]),
        ("don't!", ["don", "'", "t", "!"]),
        ("🙂", ["🙂"]),
        ("🙂🙂", ["[UNK]"]),
        ("zz", ["[UNK]"]),
        ("€", ["[UNK]"]),
        ("", ["[UNK]"]),
        ("\u200b", ["[UNK]"]),  # cleaned away, and so nothing is left of it
        ("\ufeff", ["[UNK]"]),
        ("北京", ["北", "京"]),
        ("أحمد", ["اح", "##مد"]),  # without the hamza, which is an accent to the lower-casing of BERT
    ],
)
def test_a_word_becomes_its_wordpieces_or_the_unknown_token(wordpiece, word, pieces):
    assert pieces_of(wordpiece, [word]) == [pieces]
    assert pieces_of(wordpiece, ["Ada", word, "!"]) == [["ada"], pieces, ["!"]]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_a_word_behind_a_blank_has_it_in_its_first_byte_level_piece(add_prefix_space):
    tokenizer = byte_level(add_prefix_space)
    first = "Ġabc" if add_prefix_space else "abc"  # such a tokenizer puts a blank before every text
    assert pieces_of(tokenizer, ["abc", "abc", "abx"]) == [[first], ["Ġabc"], ["Ġab", "x"]]
    assert pieces_of(tokenizer, ["abc", "abc"], [True, False]) == [["Ġabc"], [first]]


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("word", ["🙂", "北京", "أحمد", "!", "don't", "zé", "a b"])
def test_byte_level_pieces_hold_all_of_a_word(add_prefix_space, word):
    tokenizer = byte_level(add_prefix_space)
    ((plain,),) = tokenize_words([[word]], [[False]], tokenizer)
    ((spaced,),) = tokenize_words([[word]], [[True]], tokenizer)
    blank = " " if add_prefix_space else ""
    assert tokenizer.decode(plain, clean_up_tokenization_spaces=False) == blank + word
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=False) == f" {word}"


def test_the_bytes_of_an_emoji_are_its_tokens():
    assert pieces_of(byte_level(False), ["🙂"], [True]) == [["Ġ", "ð", "Ł", "Ļ", "Ĥ"]]  # 20 F0 9F 99 82


@pytest.mark.parametrize("unknown, expected", [("<unk>", "<unk>"), (None, "<mask>")])
def test_a_word_of_which_nothing_is_made_is_the_unknown_token_or_else_the_mask(unknown, expected):
    assert pieces_of(byte_level(False, unknown), ["", "abc"]) == [[expected], ["Ġabc"]]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_no_word_is_without_tokens(add_prefix_space):
    words = ["", "ab", "", "\u200b", " ", "\ufeff", ""]
    found = pieces_of(byte_level(add_prefix_space), words)
    assert len(found) == len(words) and all(found)


def test_sentences_are_tokenized_one_by_one_also_without_any_word(wordpiece):
    found = tokenize_words([["Ada", "!"], [], ["!", "Ada"]], [[False, True], [], [False, True]], wordpiece)
    assert found == [[[ID["ada"]], [ID["!"]]], [], [[ID["!"]], [ID["ada"]]]]
    assert tokenize_words([], [], wordpiece) == []


# ---------------------------------------------------------------- tokens with labels


def test_labels_stand_on_the_first_token_of_a_word(wordpiece):
    words, tags = ["Ada", "Lovelace", "!", "北京"], ["B-PER", "I-PER", "O", "B-LOC"]
    assert align_one(words, tags, wordpiece) == {
        "input_ids": [[CLS, ID["ada"], ID["lo"], ID["##ve"], ID["##lace"], ID["!"], ID["北"], ID["京"], SEP]],
        "labels": [[-100, 1, 2, -100, -100, 0, 3, -100, -100]],
        "positions": [[1, 2, 5, 6]],
        "sentence": [7]}  # fmt: skip


def test_labels_on_all_tokens_turn_the_rest_of_a_begin_into_an_inside(wordpiece):
    words = ["Lovelace", "Lovelace", "don't", "北京", "أحمد"]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    found = align_one(words, tags, wordpiece, label_all_tokens=True)
    assert found["labels"] == [[-100, 1, 2, 2, 2, 2, 2, 0, 0, 0, 3, 4, 3, 4, -100]]
    assert found["positions"] == [[1, 4, 7, 10, 12]]


def test_labels_on_all_tokens_repeat_a_tag_that_has_no_inside_among_the_labels(wordpiece):
    label_ids = {"O": 0, "S-PER": 1, "S-LOC": 2, "I-LOC": 3, "E-LOC": 4}
    found = align_one(["Lovelace", "北京", "北京"], ["S-PER", "S-LOC", "E-LOC"], wordpiece, label_all_tokens=True,
                      label_ids=label_ids)  # fmt: skip
    assert found["labels"] == [[-100, 1, 1, 1, 2, 3, 4, 4, -100]]


@pytest.mark.parametrize("word", ["", "zz", "🙂", "€", "\u200b"])
def test_words_of_which_nothing_is_known_are_predicted_too(wordpiece, word):
    found = align_one([word, "Ada", word], ["B-PER", "I-PER", "O"], wordpiece)
    piece = ID.get(word, UNK)
    assert found["input_ids"] == [[CLS, piece, ID["ada"], piece, SEP]]
    assert found["labels"] == [[-100, 1, 2, 0, -100]]
    assert found["positions"] == [[1, 2, 3]]


def test_byte_level_labels_stand_on_the_token_with_the_blank():
    tokenizer = byte_level(False)
    found = align_one(["abx", "🙂", "abc"], ["B-PER", "O", "B-LOC"], tokenizer)
    assert [len(row) for row in found["input_ids"]] == [1 + 2 + 5 + 1 + 1]
    assert found["labels"] == [[-100, 1, -100, 0, -100, -100, -100, -100, 3, -100]]
    assert found["positions"] == [[1, 3, 8]]


@pytest.mark.parametrize("label_all_tokens", [False, True])
def test_without_tags_or_with_unknown_ones_words_have_positions_and_no_labels(wordpiece, label_all_tokens):
    words = ["Ada", "Lovelace"]
    for tags in (None, ["B-ORG", "I-ORG"]):
        found = align_one(words, tags, wordpiece, label_all_tokens=label_all_tokens)
        assert found["labels"] == [[-100] * 6]
        assert found["positions"] == [[1, 2]]


def test_windows_label_their_own_words_alone(wordpiece):
    words, tags = ["Ada", "!", "Ada", "!", "Ada"], ["B-PER", "O", "B-LOC", "O", "I-LOC"]
    found = align_one(words, tags, wordpiece, max_seq_length=5, stride=2)  # three tokens of room: 0-3, 1-4, 2-5
    ada, mark = ID["ada"], ID["!"]
    assert found == {
        "input_ids": [[CLS, ada, mark, ada, SEP], [CLS, mark, ada, mark, SEP], [CLS, ada, mark, ada, SEP]],
        "labels": [[-100, 1, 0, -100, -100], [-100, -100, 3, -100, -100], [-100, -100, 0, 4, -100]],
        "positions": [[1, 2], [2], [2, 3]],
        "sentence": [7, 7, 7]}  # fmt: skip


@pytest.mark.parametrize("label_all_tokens", [False, True])
def test_a_word_longer_than_a_window_is_cut_to_it_and_predicted_once(wordpiece, label_all_tokens):
    found = align_one(["Ada", "x" * 20, "!"], ["O", "B-PER", "O"], wordpiece, max_seq_length=6, stride=2,
                      label_all_tokens=label_all_tokens)  # fmt: skip
    rest = 2 if label_all_tokens else -100
    assert found["input_ids"] == [[CLS, ID["ada"], SEP], [CLS, ID["x"], *[ID["##x"]] * 3, SEP], [CLS, ID["!"], SEP]]
    assert found["labels"] == [[-100, 0, -100], [-100, 1, rest, rest, rest, -100], [-100, 0, -100]]
    assert found["positions"] == [[1], [1], [1]]


def test_a_sentence_of_2000_words_has_2000_positions_and_labels(wordpiece):
    rng = random.Random(0)
    words = rng.choices(["Ada", "Lovelace", "don't", "", "🙂", "zz", "x" * 9], k=2000)
    tags = rng.choices(list(LABEL_IDS), k=2000)
    found = align_one(words, tags, wordpiece, max_seq_length=32, stride=8)
    labels = [row[position] for row, positions in zip(found["labels"], found["positions"], strict=True)
              for position in positions]  # fmt: skip
    assert labels == [LABEL_IDS[tag] for tag in tags]  # in order, each once
    assert sum(label != -100 for row in found["labels"] for label in row) == 2000
    assert max(map(len, found["input_ids"])) <= 32


def test_windows_of_a_data_set_are_those_of_align_and_words_of_a_text_know_their_blanks():
    tokenizer = byte_level(False)
    tokenizer.add_special_tokens({"cls_token": "<pad>", "sep_token": "<mask>"})
    sentences = [read_tagged_row({"text": "abc,abc abc"}, "row 0", None, None, None),
                 {"tokens": ["abc", "abc"], "tags": ["B-PER", "O"]}]  # fmt: skip
    found = make_windows(sentences, tokenizer, list(LABEL_IDS), 16, 4, False)
    pieces = [tokenizer.convert_ids_to_tokens(row[1:-1]) for row in found["input_ids"]]
    assert pieces == [["abc", ",", "abc", "Ġabc"], ["abc", "Ġabc"]]
    assert list(found["positions"]) == [[1, 2, 3, 4], [1, 2]]
    assert list(found["labels"]) == [[-100] * 6, [-100, 1, 0, -100]]
    assert list(found["sentence"]) == [0, 1]


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "lengths, room, stride, windows",
    [
        ([], 5, 1, []),
        ([2, 1], 5, 1, [(0, 2, 0, 2)]),
        ([1, 1, 1], 3, 2, [(0, 3, 0, 3)]),
        ([1] * 5, 3, 1, [(0, 3, 0, 3), (2, 5, 3, 5)]),  # the word in the middle has no context in either
        ([1] * 5, 3, 2, [(0, 3, 0, 2), (1, 4, 2, 3), (2, 5, 3, 5)]),
        ([1] * 4, 3, 0, [(0, 3, 0, 3), (3, 4, 3, 4)]),
        ([2, 2, 2, 2], 4, 2, [(0, 2, 0, 2), (1, 3, 2, 3), (2, 4, 3, 4)]),
        ([50], 10, 2, [(0, 1, 0, 1)]),
        ([1, 50, 1], 10, 2, [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),
        ([4, 4, 4], 5, 3, [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),
    ],
)
def test_sentences_are_cut_into_windows(lengths, room, stride, windows):
    assert cut_windows(np.array(lengths, dtype=np.int64), room, stride) == windows


def context_of(word, window, lengths):
    """Tokens on the side of the word on which the window holds less; an end of the sentence cuts nothing off."""
    first, last = window
    left = sum(lengths[first:word]) if first > 0 else math.inf
    right = sum(lengths[word + 1 : last]) if last < len(lengths) else math.inf
    return min(left, right)


def test_every_word_has_one_window_of_its_own_the_one_with_most_context():
    rng = random.Random(2)
    for _ in range(1500):
        room = rng.randint(1, 20)
        stride, longest = rng.randrange(room), rng.choice([1, 2, 5, 30])
        lengths = [rng.randint(1, longest) for _ in range(rng.randrange(60))]
        found = cut_windows(np.array(lengths, dtype=np.int64), room, stride)
        lengths = [min(length, room) for length in lengths]
        assert all(sum(lengths[first:last]) <= room for first, last, _, _ in found)
        assert all(first <= own <= own_end <= last for first, last, own, own_end in found)
        owners = [n for n, (_, _, own, own_end) in enumerate(found) for _ in range(own, own_end)]
        assert [word for _, _, own, own_end in found for word in range(own, own_end)] == list(range(len(lengths)))
        for word, owner in enumerate(owners):
            context = [context_of(word, (first, last), lengths) if first <= word < last else -1
                       for first, last, _, _ in found]  # fmt: skip
            assert context[owner] == max(context)


def test_neighbouring_windows_share_as_many_tokens_as_the_stride_where_words_are_short():
    rng = random.Random(3)
    for _ in range(500):
        longest, stride = rng.randint(1, 4), rng.randrange(12)
        room = stride + 2 * longest + rng.randrange(10)
        lengths = [rng.randint(1, longest) for _ in range(rng.randrange(80))]
        found = cut_windows(np.array(lengths, dtype=np.int64), room, stride)
        for (_, last, _, _), (first, _, _, _) in itertools.pairwise(found):
            assert stride <= sum(lengths[first:last]) < stride + longest


def test_2000_words_are_cut_into_windows_of_which_each_has_words_of_its_own():
    found = cut_windows(np.array([1, 2, 3, 4] * 500), 126, 32)
    assert [word for _, _, own, end in found for word in range(own, end)] == list(range(2000))
    assert all(own < end for _, _, own, end in found)
    assert len(found) <= math.ceil((5000 - 32) / (126 - 2 * 4 - 32))


# ---------------------------------------------------------------- the best path that the scheme allows


def is_legal(tags, scheme):
    """Whether tags follow a scheme: by its definition, as a pattern over the words of a sentence."""
    if scheme == "IOB1":  # O and I- anywhere; B- only where an entity of the same type ends right before
        return all(tag == "O" or tag[0] == "I" or (tag[0] == "B" and before in (f"I{tag[1:]}", f"B{tag[1:]}"))
                   for before, tag in itertools.pairwise(["O", *tags]))  # fmt: skip
    written, kinds = "".join(f"{tag} " for tag in tags), {tag[2:] for tag in tags if tag != "O"}
    entity = "".join(f"|B-{kind} (I-{kind} )*" + (f"E-{kind} |S-{kind} " if scheme == "BIOES" else "")
                     for kind in sorted(kinds))  # fmt: skip
    return re.fullmatch(f"(O {entity})*", written) is not None


@pytest.mark.parametrize(
    "tags, legal",
    [
        ("O O", {"IOB1", "IOB2", "BIOES"}),
        ("I-P I-P", {"IOB1"}),
        ("I-P B-P I-P", {"IOB1"}),
        ("I-P I-L", {"IOB1"}),
        ("I-P B-L", set()),
        ("O B-P", {"IOB2"}),
        ("B-P B-L I-L", {"IOB2"}),
        ("B-P I-L", set()),
        ("B-P I-P E-P S-P O B-L E-L", {"BIOES"}),
        ("B-P E-L", set()),
        ("B-P I-P O", {"IOB2"}),
        ("S-P E-P", set()),
    ],
)
def test_what_the_tests_below_take_for_legal_is_legal(tags, legal):
    assert {scheme for scheme in ("IOB1", "IOB2", "BIOES") if is_legal(tags.split(), scheme)} == legal


LABEL_SETS = {
    "IOB1": ["O I-P B-P I-L B-L", "O I-P", "O B-P I-L", "I-P O B-P I-L"],
    "IOB2": ["O B-P I-P B-L I-L", "O I-P", "O B-P", "I-L B-P O I-P"],
    "BIOES": ["O B-P I-P E-P S-P", "O B-P E-P S-L E-L", "O B-P I-P", "O I-P E-P", "E-L S-P O B-L"],
}
CASES = [pytest.param(scheme, labels.split(), id=f"{scheme}: {labels}") for scheme, sets in LABEL_SETS.items()
         for labels in sets]  # fmt: skip


@pytest.mark.parametrize("scheme, labels", CASES)
def test_the_moves_allow_all_that_the_scheme_allows_and_nothing_else(scheme, labels):
    begins, follows, ends = allowed_moves(labels, scheme)
    for length in range(1, 5):
        for path in itertools.product(range(len(labels)), repeat=length):
            allowed = begins[path[0]] and all(follows[a, b] for a, b in itertools.pairwise(path)) and ends[path[-1]]
            assert allowed == is_legal([labels[n] for n in path], scheme), path


@pytest.mark.parametrize("scheme, labels", CASES)
def test_the_best_path_is_the_best_of_all_legal_ones(scheme, labels):
    rng = np.random.default_rng(len(labels))
    lengths = np.array([1, 4, 2, 3, 4, 1, 3, 2] * 3)
    logits = rng.normal(scale=3, size=(len(lengths), 4, len(labels)))
    scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    scores[np.arange(4) >= lengths[:, None]] = 1e6 * rng.random(len(labels))  # behind a sentence: must not count
    found = best_paths(scores, lengths, allowed_moves(labels, scheme))
    assert found.shape == (len(lengths), 4)
    for row, length, path in zip(scores, lengths, found, strict=True):
        legal = [paths for paths in itertools.product(range(len(labels)), repeat=int(length))
                 if is_legal([labels[n] for n in paths], scheme)]  # fmt: skip
        best = max(legal, key=lambda path: sum(row[n, label] for n, label in enumerate(path)))
        assert tuple(path[:length]) == best


def test_without_a_scheme_each_word_gets_its_most_probable_label():
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(5), size=(6, 7)))
    lengths = np.array([7, 1, 3, 7, 2, 5])
    found = best_paths(scores, lengths, allowed_moves(["O", "B-P", "I-P", "B-L", "I-L"], None))
    for row, length, path in zip(scores, lengths, found, strict=True):
        assert path[:length].tolist() == row[:length].argmax(axis=1).tolist()


def test_an_invalid_sequence_gives_way_to_the_best_valid_one():
    labels = ["O", "B-PER", "I-PER"]
    scores = np.log([[[0.50, 0.40, 0.10], [0.10, 0.05, 0.85]]])  # O I-PER is the best, but not valid in IOB2
    assert best_paths(scores, np.array([2]), allowed_moves(labels, "IOB2")).tolist() == [[1, 2]]
    assert best_paths(scores, np.array([2]), allowed_moves(labels, "IOB1")).tolist() == [[0, 2]]


def test_a_sentence_has_the_same_path_alone_and_in_a_batch():
    rng = np.random.default_rng(5)
    moves = allowed_moves(["O", "B-P", "I-P", "E-P", "S-P"], "BIOES")
    lengths = np.array([300, 1, 17, 40])
    scores = np.log(rng.dirichlet(np.ones(5), size=(4, 300))).astype(np.float32)
    together = best_paths(scores, lengths, moves)
    for n, length in enumerate(lengths):
        alone = best_paths(scores[n : n + 1, :length], lengths[n : n + 1], moves)
        assert together[n, :length].tolist() == alone[0].tolist()


# ---------------------------------------------------------------- class weights and the loss


def test_balanced_weights_make_every_label_count_alike():
    windows = {"labels": [[-100, 0, 0, 0, -100], [-100, 0, 1, 1, 3, -100, 0, -100]]}
    weights = weigh_classes("balanced", ["O", "B-PER", "I-PER", "B-LOC"], windows)
    # 8 labels of 3 kinds: O 5 times, B-PER twice, I-PER never, B-LOC once
    torch.testing.assert_close(weights, torch.tensor([8 / 15, 8 / 6, 1.0, 8 / 3]))


def test_a_weight_is_that_of_all_labels_of_its_type():
    labels = ["O", "B-PER", "I-PER", "B-LOC", "E-A=B"]
    assert weigh_classes("PER=2,O=0.5,A=B=0", labels, None).tolist() == [0.5, 2, 2, 1, 0]
    assert weigh_classes(None, labels, None) is None


@pytest.mark.parametrize(
    "wanted", ["PER", "PER=x", "O=1,ORG=1", "PER=-1", "PER=nan", "PER=inf", "PER=1,", "", "B-PER=1", "PER="]
)
def test_weights_that_are_none_are_refused_with_the_types_there_are(wanted):
    part = wanted.split(",")[-1]
    expected = f"--class_weights {wanted}: {part!r} is no TYPE=WEIGHT. Types are LOC, O, PER, weights 0 or more"
    with pytest.raises(InputError, match=re.escape(expected)):
        weigh_classes(wanted, ["O", "B-PER", "I-PER", "B-LOC"], None)


def some_labels(seed=0, batch=4, seq=6, labels=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, seq, labels, generator=generator)
    targets = torch.randint(-2, labels, (batch, seq), generator=generator)
    return logits, targets.where(targets >= 0, torch.tensor(-100))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_one_pass_is_the_mean_cross_entropy(smoothing):
    logits, targets = some_labels()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    found = tag_loss({"logits": logits}, targets, (targets != -100).sum(), smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_the_losses_of_two_passes_add_up_to_that_of_both_at_once():
    logits, targets = some_labels()
    targets[0] = -100  # so that the two passes have not as many labels
    count, weights = (targets != -100).sum(), torch.tensor([0.5, 1, 2, 3, 0])
    for chosen in (None, weights):
        whole = tag_loss({"logits": logits}, targets, count, weights=chosen)
        parts = [tag_loss({"logits": logits[at]}, targets[at], count, weights=chosen)
                 for at in (slice(0, 2), slice(2, 4))]  # fmt: skip
        torch.testing.assert_close(parts[0] + parts[1], whole)


def test_a_weighted_loss_is_a_weighted_sum_by_the_number_of_labels():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).log()[None]
    found = tag_loss({"logits": logits}, torch.tensor([[0, 1, -100]]), torch.tensor(2),
                     weights=torch.tensor([0.5, 3, 1]))  # fmt: skip
    assert found.item() == pytest.approx((0.5 * math.log(2) - 3 * math.log(0.8)) / 2)


def test_a_pass_without_labels_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 5, requires_grad=True)
    loss = tag_loss({"logits": logits}, torch.full((1, 2), -100), torch.tensor(0))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_loss_of_bfloat16_scores_is_taken_in_float32():
    logits, targets = some_labels(batch=64, seq=64)
    logits = logits.bfloat16()
    found = tag_loss({"logits": logits}, targets, (targets != -100).sum())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()))


# ---------------------------------------------------------------- labels


def data_of(**splits):
    """Splits of sentences, of each its tags: dict as choose_labels takes it."""
    return {split: ([{"place": f"{split}.conll, line {n}", "tokens": row.split(), "tags": row.split()}
                     for n, row in enumerate(rows, 1)], f"{split}.conll")
            for split, rows in splits.items()}  # fmt: skip


def chosen(data, label_list=None, model_labels=None, trains=True, class_names=None):
    said = []
    return choose_labels(data, label_list, model_labels, class_names, trains, said.append), said


def test_labels_are_those_of_training_and_validation_data_with_o_first_in_one_order():
    expected = ["O", "B-LOC", "B-PER", "I-PER", "B-X", "I-X", "E-X", "S-X"]
    rows = ["S-X O I-PER", "B-PER E-X", "I-X B-X B-PER"]
    for train in itertools.permutations(rows):
        labels, said = chosen(data_of(train=[*train, "B-LOC"], validation=["B-LOC"], test=["S-X"]))
        assert (labels, said) == (expected, [])
    assert chosen(data_of(train=rows, validation=["B-LOC O"]))[0] == expected
    assert chosen(data_of(train=["B-PER"]))[0] == ["O", "B-PER"]  # O is a label though no word has it


def test_a_tag_that_training_lacks_is_a_warning_with_place_and_count():
    data = data_of(train=["O B-PER"], validation=["O", "B-LOC B-PER", "B-LOC O"], test=["B-PER", "O B-ORG"])
    labels, said = chosen(data)
    assert labels == ["O", "B-LOC", "B-PER"]
    assert [line.strip() for line in said] == [
        "Careful:  B-LOC is not in the training data, but 2 times in the validation data, first in validation.conll, "
        "line 2",
        "Careful:  B-ORG is not in the training data, but 1 times in the test data, first in test.conll, line 2",
    ]


def test_a_trained_head_keeps_its_order_where_the_labels_are_the_same():
    data = data_of(train=["O B-PER I-PER"])
    assert chosen(data, model_labels=["I-PER", "B-PER", "O"])[0] == ["I-PER", "B-PER", "O"]
    assert chosen(data, model_labels=["I-PER", "B-PER"])[0] == ["O", "B-PER", "I-PER"]
    assert chosen(data, model_labels=["B-X", "I-PER", "B-PER", "O"])[0] == ["O", "B-PER", "I-PER"]


def test_the_names_of_a_data_set_are_the_labels_where_all_tags_are_among_them():
    names, data = ["O", "I-PER", "B-PER", "B-X"], data_of(train=["O B-PER"])
    assert chosen(data, class_names=names)[0] == names  # also those that no word has
    assert chosen(data, class_names=names, model_labels=["O", "B-PER"])[0] == names
    assert chosen(data, class_names=names, model_labels=["B-X", "O", "I-PER", "B-PER"])[0] == [
        "B-X", "O", "I-PER", "B-PER"]  # fmt: skip
    assert chosen(data_of(train=["O S-PER"]), class_names=names)[0] == ["O", "S-PER"]  # such as tags of another scheme


def test_a_model_that_is_only_used_keeps_its_labels_in_its_order():
    for split in ("validation", "test"):
        data = data_of(**{split: ["O B-PER"]})
        assert chosen(data, model_labels=["I-PER", "B-LOC", "B-PER", "O"], trains=False) == (
            ["I-PER", "B-LOC", "B-PER", "O"], [])  # fmt: skip


def test_a_list_of_labels_is_taken_as_it_is():
    labels, _ = chosen(data_of(train=["O B-PER"]), ["B-LOC", "O", "B-PER"], ["O", "B-PER"])
    assert labels == ["B-LOC", "O", "B-PER"]


@pytest.mark.parametrize("label_list, model_labels, trains, whose", [
    (["O", "B-PER"], None, True, "--label_list"), (["O", "B-ORG"], ["O", "B-PER"], False, "the model"),
    (None, ["O", "B-PER"], False, "the model")])  # fmt: skip
def test_tags_outside_the_labels_end_the_run_and_both_sets_are_named(label_list, model_labels, trains, whose):
    data = data_of(train=["O B-PER"], validation=["O", "B-ORG B-LOC"])
    expected = f"validation.conll, line 2: tags that are not among those of {whose}: B-LOC, B-ORG; these are O, B-PER."
    with pytest.raises(InputError, match=re.escape(expected)):
        chosen(data, label_list, model_labels, trains)


def test_sentences_without_tags_have_no_say_in_the_labels():
    data = data_of(train=["O B-PER"]) | {"test": ([{"place": "test.txt, line 1", "tokens": ["a"], "tags": None}], "t")}
    assert chosen(data) == (["O", "B-PER"], [])


# ---------------------------------------------------------------- entities


def test_entities_of_a_text_have_its_own_characters():
    text = "Hi (Ada  Lovelace), of\u00a0北京!"
    sentence = read_tagged_row({"text": text}, "row 0", None, None, None)
    assert sentence["tokens"] == ["Hi", "(", "Ada", "Lovelace", ")", ",", "of", "北京", "!"]
    tags = ["O", "O", "B-PER", "I-PER", "O", "O", "O", "B-LOC", "O"]
    chances = np.array([0.1, 0.1, 0.5, 1.0, 0.1, 0.1, 0.1, 0.25, 0.1], dtype=np.float32)
    found_text, found = entities_of(sentence, tags, chances)
    assert found_text == text
    assert found == [
        {"start": 4, "end": 17, "label": "PER", "start_word": 2, "end_word": 4, "score": 0.75, "text": "Ada  Lovelace"},
        {"start": 23, "end": 25, "label": "LOC", "start_word": 7, "end_word": 8, "score": 0.25, "text": "北京"},
    ]
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in found)
    again = read_tagged_row({"text": text, "entities": found}, "row 0", None, None, None)  # as the span input reads it
    assert (again["tags"], again["widened"]) == (tags, [])


def test_words_without_a_text_are_joined_by_blanks():
    sentence = {"tokens": ["", "Ada", "🙂", "", "Bob"], "tags": None}
    text, found = entities_of(sentence, ["O", "S-PER", "O", "O", "I-PER"], np.ones(5, dtype=np.float32))
    assert text == " Ada 🙂  Bob"
    assert [(entity["start"], entity["end"], entity["start_word"], entity["end_word"]) for entity in found] == [
        (1, 4, 1, 2), (8, 11, 4, 5)]  # fmt: skip
    assert [entity["text"] for entity in found] == ["Ada", "Bob"]


def test_a_sentence_without_entities_has_none():
    assert entities_of({"tokens": ["a", "b"]}, ["O", "O"], np.ones(2)) == ("a b", [])


# ---------------------------------------------------------------- the order of examples, by length

SPLITS = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)]  # batch size, accumulation, processes: 8 an update


def lengths_of(n):
    return np.random.default_rng(n).integers(3, 60, size=n)


def micro_batches(lengths, split, seed=0, epoch=0, kind=SimilarLengthSampler, **settings):
    """What the processes read: found[update] is a list of all micro-batches of that update."""
    size, passes, processes = split
    first = lengths if kind is SimilarLengthSampler else len(lengths)
    samplers = [kind(first, size, passes, processes, rank, seed, **settings) for rank in range(processes)]
    for sampler in samplers:
        sampler.epoch = epoch
    mine = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in mine} == {len(samplers[0])}
    return [[batch for batches in mine for batch in batches[at : at + passes]] for at in range(0, len(mine[0]), passes)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1003])
def test_every_example_is_seen_once_an_epoch(n, split):
    seen = [example for update in micro_batches(lengths_of(n), split) for batch in update for example in batch]
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("n", [5, 8, 100, 1003])
def test_global_batches_are_the_same_on_any_split(n):
    expected, *others = ([sorted(itertools.chain(*update)) for update in micro_batches(lengths_of(n), split, 3, 2)]
                         for split in SPLITS)  # fmt: skip
    assert all(other == expected for other in others)
    assert [len(update) for update in expected] == [8] * (n // 8) + [n % 8] * (n % 8 > 0)


def test_the_order_is_one_for_each_seed_and_epoch():
    lengths = lengths_of(200)
    orders = {pair: str(micro_batches(lengths, (8, 1, 1), *pair)) for pair in itertools.product(range(3), range(3))}
    assert len({*orders.values()}) == 9
    assert orders == {pair: str(micro_batches(lengths, (8, 1, 1), *pair)) for pair in orders}


def test_batches_come_in_no_order_of_their_lengths():
    longest = [lengths_of(2000)[update[0]].max() for update in micro_batches(lengths_of(2000), (8, 1, 1))]
    ranks = np.argsort(np.argsort(longest[:50]))
    assert abs(np.corrcoef(ranks, np.arange(50))[0, 1]) < 0.5


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", [1, 7, 8, 100, 1003])
def test_the_padding_that_is_told_is_that_of_the_batches(n, split):
    lengths, (size, passes, processes) = lengths_of(n), split
    sampler = SimilarLengthSampler(lengths, size, passes, processes, 0, 5)
    sampler.epoch = 1
    tokens = padded = 0
    for batch in itertools.chain(*micro_batches(lengths, split, 5, 1)):
        tokens += sum(int(lengths[example]) for example in batch)
        padded += len(batch) * max((int(lengths[example]) for example in batch), default=0)
    assert sampler.padding() == pytest.approx(1 - tokens / padded)


@pytest.mark.parametrize("split", SPLITS[:3])
def test_batches_of_similar_length_need_little_padding(split):
    lengths = lengths_of(3200)

    def share(kind):
        batches = list(itertools.chain(*micro_batches(lengths, split, kind=kind)))
        return 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)

    assert share(SimilarLengthSampler) < 0.03 < 0.3 < share(GlobalBatchSampler)


def test_a_smaller_pool_mixes_lengths_more():
    lengths = lengths_of(3200)
    few, many = (SimilarLengthSampler(lengths, 8, 1, 1, 0, 0, pool=pool).padding() for pool in (2, 50))
    assert many < few
