"""Token ids of many texts, as lists over one flat array, kept in the cache by content."""

import functools
import hashlib
import importlib
import os
from pathlib import Path

import datasets
import multiprocess
import numpy as np
import pyarrow as pa
import pyarrow.compute

from utils.signals import InterruptEnds, ignore_interrupts
from utils.texts import UNPARTED, write_texts

IDS = pa.large_list(pa.int32())
AWKWARD = (
    "", " ", "Hello, world!  It's a test-case: 3.14 (or so)…",
    "naïve Ångström ﬁne ﬀ ß ẞ İ ı ς Σ e\u0301a\u0308 x\u0327\u0301",
    "中文字符和English混合。日本語カタカナ 한국어 नमस्ते दुनिया ไทย العربية עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️ \u0378\ufffe\U000e0001\U0010ffff\ue000",
    "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen tab\tfeed\x0c vt\x0b nul\x00 bel\x07 del\x7f",
    "nbsp\u00a0em\u2003line\u2028nel\x85",
    "x" * 99, "y" * 100, "z" * 101, "w" * 200,
    "[MASK] [mask] x[MASK]y [SEP][CLS] <mask> a<mask>b </s> ##ing # #a ▁x Ġy Ċ",
    "  leading and trailing  ",
    "UPPER MiXeD ÀÉÎ ЁЖ $100 €5 £3 a_b@c.de http://x.y/z?q=1&r=2 ''``--...!!!???",
)


@functools.cache  # once in each process: fast libraries do not pickle
def load_fast(library, tokenizer):
    """Load the model's own tokenizer into a fast library."""
    fast = importlib.import_module(library).Tokenizer
    return fast.from_json(tokenizer.backend_tokenizer.to_str())


def encode_with_nanotoken(tokenizer, texts):
    rows = load_fast("nanotoken", tokenizer).encode_batch(texts, add_special_tokens=False)
    return pa.LargeListArray.from_arrays(rows.offsets, rows.ids.astype(np.int32))


def encode_with_gigatoken(tokenizer, texts):
    rows = load_fast("gigatoken", tokenizer).encode_batch(texts)
    awkward = importlib.import_module("awkward")  # comes with it
    return awkward.to_arrow(rows, extensionarray=False).cast(IDS)


def encode_with_tokenizers(tokenizer, texts):
    rows = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return pa.array([row.ids for row in rows], IDS)


def encode_with_transformers(tokenizer, texts):
    return pa.array(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], IDS)


# Each turns a list of texts into lists of ids, without special tokens.
ENCODERS = {"nanotoken": encode_with_nanotoken, "gigatoken": encode_with_gigatoken,
            "tokenizers": encode_with_tokenizers, "transformers": encode_with_transformers}


def choose_encoder(tokenizer, samples, say):
    """Find the fastest library that is installed, and agrees with the model's own tokenizer.

    nanotoken (WordPiece) and gigatoken (BPE) are asked first; `tokenizers` and transformers follow.

    Args:
        tokenizer: the model's own, of transformers.
        samples: texts to hold a library against, besides a fixed set of awkward ones.
        say: called with one line where a fast library is passed over.

    Returns:
        A name in ENCODERS.
    """
    texts = [*AWKWARD, *samples]
    # Where fast libraries stumble: also inside a word.
    for added in tokenizer.added_tokens_decoder.values():
        word = added.content
        texts += [word, f"a{word}b", f"a {word} {word.upper()} b"]
    expected = encode_with_transformers(tokenizer, texts)
    for library, encode in ENCODERS.items():
        try:
            if encode(tokenizer, texts).equals(expected):
                break
            say(f"{library} is not used: its ids differ from those of the model's own tokenizer")
        except ImportError:
            pass  # optional
        except Exception as error:  # whatever a young library stumbles over: the next one is tried
            say(f"{library} is not used: {type(error).__name__}: {str(error)[:100]}")
    return library


def tokenize_batch(table, tokenizer, library):
    """Tokenize `text` of an Arrow table: `ids`, lists of int32 over one flat array."""
    if multiprocess.parent_process():  # in a data worker, which leaves Ctrl-C to the main process
        ignore_interrupts()
    ids = ENCODERS[library](tokenizer, table["text"].to_pylist())
    return pa.table({"ids": ids, "document": table["document"]})


def hash_of(*settings):
    """Key in the cache of what is made with these settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


def is_overwritten(args):
    """Whether to prepare anew what lies in the cache: on the first process alone."""
    return args.overwrite_cache and int(os.environ.get("RANK", 0)) == 0


def rows_at_once(rows):
    """Count the rows of a Dataset that make about 2 MB."""
    return max(1, 2_000_000 * len(rows) // max(1, rows.data.nbytes))


def tokenize_source(source, tokenizer, args, say, joined=False):
    """Turn the text of a Source into token ids, kept in the cache by content.

    Args:
        source: where the text comes from.
        tokenizer: the model's own.
        args: Namespace of the flags.
        say: called with lines for the user, on what the text is like.
        joined: texts of a document follow each other in an example.

    Returns:
        Dataset of `ids` (int32 lists, without special tokens) and `document`, a row for each text,
        in the Arrow format. Its fingerprint tells apart other contents and vocabularies.
    """
    vocabulary = repr(tokenizer), tokenizer.get_vocab()
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    key = hash_of(source.key, joined, vocabulary)
    path = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts", f"text-{key}.arrow")
    if is_overwritten(args) or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_texts(source, path, joined)
    texts = datasets.Dataset.from_file(str(path)).with_format("arrow")
    number = rows_at_once(texts)
    first = texts[:number]["text"].to_pylist()
    library = choose_encoder(tokenizer, first[:100], say)
    with InterruptEnds():
        tokens = texts.map(tokenize_batch, batched=True, batch_size=number, remove_columns=["text"],
                           fn_kwargs={"tokenizer": tokenizer, "library": library},
                           num_proc=args.preprocessing_num_workers, new_fingerprint=key,
                           load_from_cache_file=not is_overwritten(args),
                           desc=f"Tokenizing ({library})")
    ids = tokens[: len(first)]["ids"].combine_chunks().flatten().to_numpy()
    describe_texts(first, ids, tokenizer.unk_token_id, say)
    return tokens


def describe_texts(texts, ids, unknown_id, say):
    """Say what the first texts of a split are like, and what looks wrong with them.

    Args:
        texts: list of strings.
        ids: all their token ids, int32 array of shape (tokens,).
        unknown_id: of [UNK], or None.
        say: called with lines for the user.
    """
    repeated = 1 - len({*texts}) / len(texts)
    unknown = np.count_nonzero(ids == unknown_id) / max(1, len(ids))
    words = ""
    unparted = pa.compute.sum(pa.compute.count_substring_regex(pa.array(texts), UNPARTED)).as_py()
    parted = unparted < 0.3 * sum(map(len, texts))
    if parted:  # else blanks part no words
        pieces = len(ids) / max(1, sum(len(text.split()) for text in texts))
        words = f"{pieces:.2f} tokens a word, "
    say(f"Text        {repeated:.1%} of the first {len(texts):,} lines are repeated; {words}"
        f"{unknown:.2%} unknown")
    if repeated > 0.1:
        say("  Careful:  many lines stand there more than once; some may be trained and evaluated "
            "on alike")
    if unknown > 0.01 or (parted and pieces > 2.5):
        say("  Careful:  the tokenizer knows few of these words; another model may fit better")
