"""Lines that follow each other in an example: decoded, they are the words of the text, joined by blanks."""

import random

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from utils.texts import Source, write_texts
from utils.tokenizing import encode_with_transformers

TEXT = "near the engine stood a small Boy who had never seen such wheels before it was don't café 42 x-ray"
WORDS = TEXT.split()


def byte_level(prefix):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)


def unigram(prepend):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" {2,}", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return tokenizer, trainers.UnigramTrainer(vocab_size=100, unk_token="<unk>", special_tokens=["<unk>"],
                                              show_progress=False)  # fmt: skip


def end_of_word():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    return tokenizer, trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", special_tokens=["<unk>"],
                                          show_progress=False)  # fmt: skip


KINDS = {
    "WordPiece": word_piece,
    "byte-level BPE": lambda: byte_level(False),
    "byte-level BPE, prefix": lambda: byte_level(True),
    "Unigram": lambda: unigram("always"),
    "Unigram, no prefix": lambda: unigram("never"),
    "BPE with </w>": end_of_word,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_random_texts_decode_to_their_words(kind, tmp_path):
    raw, trainer = KINDS[kind]()
    raw.train_from_iterator([TEXT] * 3 + WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)
    chance = random.Random(kind)
    lines, documents, words = [], [], []
    for document in range(200):
        words.append([])
        for _ in range(chance.randint(1, 5)):
            line = [chance.choice(WORDS) for _ in range(chance.randint(1, 6))]
            lines.append(" ".join(line))
            documents.append(document)
            words[-1] += line

    def read():
        for start in range(0, len(lines), 50):
            part = slice(start, start + 50)
            yield pa.array(lines[part], pa.large_string()), np.array(documents[part], dtype=np.int64)

    write_texts(Source("text", "key", read), tmp_path / "text.arrow", joined=True)
    texts = Dataset.from_file(str(tmp_path / "text.arrow"))["text"]
    ids = encode_with_transformers(tokenizer, list(texts)).to_pylist()
    for document in range(200):
        joined = [n for row, number in zip(ids, documents, strict=True) if number == document for n in row]
        assert tokenizer.decode(joined).split() == words[document]
