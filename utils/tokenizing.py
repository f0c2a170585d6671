"""Token ids of many texts, as one flat array with offsets, kept in the cache by content."""

import copy
import hashlib
import itertools
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from utils.signals import InterruptEnds, ignore_interrupts
from utils.texts import write_texts

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


class FlatTokenizer:
    """Turn many texts into one flat array of token ids with offsets, without special tokens.

    Encodes with nanotoken (WordPiece) or gigatoken (BPE) where one is installed, takes the
    tokenizer, and agrees with the model's own tokenizer on every text it is held against; else with
    `tokenizers`; else as transformers does. `name` says which. Can be pickled.

    Args:
        tokenizer: the model's own tokenizer, of transformers.
        samples: texts to hold a fast library against, besides a fixed set of awkward ones.
        log: called with one line where a fast library is passed over.
    """

    def __init__(self, tokenizer, samples, log):
        self.tokenizer = tokenizer
        texts = [*AWKWARD, *samples]
        # Where fast libraries stumble: also inside a word.
        for added in tokenizer.added_tokens_decoder.values():
            texts += [added.content, f"a{added.content}b", f"a {added.content} "
                      f"{added.content.upper()} b"]
        expected = with_transformers(tokenizer)(texts)
        for self.name, make_encoder in ENCODERS.items():
            try:
                self.encode = make_encoder(tokenizer)
                if all(map(np.array_equal, self.encode(texts), expected)):
                    return
                log(f"{self.name} is not used: its ids differ from those of the model's own "
                    "tokenizer")
            except ImportError:
                pass  # optional
            # Whatever a young library stumbles over: the next one is tried.
            except (Exception) as error:
                log(f"{self.name} is not used: {type(error).__name__}: {str(error)[:100]}")

    def __getstate__(self):
        # Made anew in each data worker: the fast libraries do not pickle.
        return self.__dict__ | {"encode": None}

    def __call__(self, texts):
        """Tokenize a list of texts: int32 ids (tokens,), int64 offsets (texts + 1,) into them."""
        if self.encode is None:  # in a data worker, which leaves Ctrl-C to the main process
            ignore_interrupts()
            self.encode = ENCODERS[self.name](self.tokenizer)
        return self.encode(texts)


def flatten(rows):
    """Put lists of ids one after the other: int32 ids (tokens,) and int64 offsets (rows + 1,)."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, offsets[-1]), offsets


def with_nanotoken(tokenizer):
    import nanotoken

    fast = nanotoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

    def encode(texts):
        rows = fast.encode_batch(texts, add_special_tokens=False)
        return rows.ids.astype(np.int32), rows.offsets

    return encode


def with_gigatoken(tokenizer):
    import awkward
    import gigatoken

    fast = gigatoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

    def encode(texts):
        rows = fast.encode_batch(texts)
        ids = awkward.to_numpy(awkward.flatten(rows)).astype(np.int32)
        return ids, np.cumsum([0, *awkward.num(rows)])

    return encode


def with_tokenizers(tokenizer):
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()  # settings that other uses of the tokenizer leave behind
    backend.no_padding()

    def encode(texts):
        rows = backend.encode_batch_fast(texts, add_special_tokens=False)
        return flatten([row.ids for row in rows])

    return encode


def with_transformers(tokenizer):
    return lambda texts: flatten(tokenizer(texts, add_special_tokens=False,
                                           verbose=False)["input_ids"])


# Each makes of a tokenizer what FlatTokenizer calls; the first that agrees is taken.
ENCODERS = {"nanotoken": with_nanotoken, "gigatoken": with_gigatoken, "tokenizers": with_tokenizers,
            "transformers": with_transformers}


def tokenize_batch(table, tokenizer):
    """Tokenize `text` of an Arrow table: `ids`, lists of int32 over one flat array."""
    ids, offsets = tokenizer(table["text"].to_pylist())
    return pa.table({"ids": pa.LargeListArray.from_arrays(offsets, ids),
                     "document": table["document"]})


def hash_of(*settings):
    """Key in the cache of what is made with these settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


def is_overwritten(args):
    """Whether to prepare anew what lies in the cache: on the first process alone."""
    return args.overwrite_cache and int(os.environ.get("RANK", 0)) == 0


def rows_at_once(rows):
    """Count the rows of a Dataset that make about 2 MB."""
    return max(1, 2_000_000 * len(rows) // max(1, rows.data.nbytes))


def tokenize_source(source, tokenizer, args):
    """Turn the text of a Source into token ids, kept in the cache by content.

    Special tokens are not among them.

    Args:
        tokenizer: the model's own.
        args: Namespace of the flags.

    Returns:
        (texts, tokens): a Dataset of `text` and `document`, and one of `ids` (int32 lists) and
        `document`, a row for each text, both in the Arrow format. The fingerprint of the second
        tells apart other contents and vocabularies.
    """
    vocabulary = (repr(tokenizer), tokenizer.get_vocab())
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    key = hash_of(source.key, vocabulary)
    path = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts", f"text-{key}.arrow")
    if is_overwritten(args) or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_texts(source, path)
    texts = datasets.Dataset.from_file(str(path)).with_format("arrow")
    at_once = rows_at_once(texts)
    samples = texts[: min(100, at_once)]["text"].to_pylist()
    flat_tokenizer = FlatTokenizer(tokenizer, samples, tqdm.write)
    with InterruptEnds():
        tokens = texts.map(tokenize_batch, batched=True, batch_size=at_once,
                           remove_columns=["text"], fn_kwargs={"tokenizer": flat_tokenizer},
                           num_proc=args.preprocessing_num_workers, new_fingerprint=key,
                           load_from_cache_file=not is_overwritten(args), desc="Tokenizing "
                           f"({flat_tokenizer.name})")
    return texts, tokens


def describe_texts(texts, tokens, unknown_id, say):
    """Say what the first texts of a split are like, and what looks wrong with them.

    Args:
        texts, tokens: as of tokenize_source.
        unknown_id: of [UNK], or None.
        say: called with lines for the user.
    """
    number = min(10_000, rows_at_once(texts))
    texts = texts[:number]["text"].to_pylist()
    ids = tokens[:number]["ids"].combine_chunks().flatten().to_numpy()
    repeated = 1 - len({*texts}) / len(texts)
    pieces = len(ids) / max(1, sum(len(text.split()) for text in texts))
    unknown = np.count_nonzero(ids == unknown_id) / max(1, len(ids))
    say(f"Text        {repeated:.1%} of the first {len(texts):,} lines are repeated; {pieces:.2f} "
        f"tokens a word, {unknown:.2%} unknown")
    if repeated > 0.1:
        say("  Careful:  many lines stand there more than once; some may be trained and evaluated "
            "on alike")
    if unknown > 0.01 or pieces > 2.5:
        say("  Careful:  the tokenizer knows few of these words; another model may fit better")
