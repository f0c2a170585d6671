"""Token ids of many texts, as one flat array with offsets."""

import copy
import hashlib
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from utils.checkpoints import write_json
from utils.texts import write_texts


class FlatTokenizer:
    """Turn many texts into one flat array of token ids with offsets, without special tokens.

    Encodes with nanotoken (WordPiece) or gigatoken (BPE) where one is installed, takes the tokenizer, and agrees with
    the model's own tokenizer on every text it is held against; else with `tokenizers`; else as transformers does.
    `name` says which. Can be pickled.

    Args:
        tokenizer: the model's own tokenizer, of transformers.
        samples: texts to hold a fast library against, besides a fixed set of awkward ones.
        log: called with one line where a fast library is passed over.
    """

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
    )  # fmt: skip

    def __init__(self, tokenizer, samples, log):
        self.tokenizer, self.encode = tokenizer, None
        texts = [*self.AWKWARD, *samples]
        for added in tokenizer.added_tokens_decoder.values():  # where fast libraries stumble: also inside a word
            texts += [added.content, f"a{added.content}b", f"a {added.content} {added.content.upper()} b"]
        expected = self.encoder("transformers")(texts)
        for self.name in ("nanotoken", "gigatoken", "tokenizers"):
            try:
                self.encode = self.encoder(self.name)
                if all(map(np.array_equal, self.encode(texts), expected)):
                    return
                log(f"{self.name} is not used: its ids differ from those of the model's own tokenizer")
            except ImportError:
                pass  # optional
            except Exception as error:  # whatever a young library stumbles over: the next one is tried
                log(f"{self.name} is not used: {type(error).__name__}: {str(error)[:100]}")
        self.name, self.encode = "transformers", self.encoder("transformers")

    def encoder(self, name):
        """Make the function that turns a list of texts into int32 ids (tokens,) and int64 offsets (texts + 1,)."""

        def flatten(rows):
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            return np.fromiter((i for row in rows for i in row), dtype=np.int32, count=offsets[-1]), offsets

        if name == "transformers":
            return lambda texts: flatten(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()  # settings that other uses of the tokenizer leave behind
        backend.no_padding()
        if name == "nanotoken":
            import nanotoken

            fast = nanotoken.Tokenizer.from_json(backend.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts, add_special_tokens=False)
                return rows.ids.astype(np.int32), rows.offsets

            return encode
        if name == "gigatoken":
            import awkward
            import gigatoken

            fast = gigatoken.Tokenizer.from_json(backend.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts)
                return (awkward.to_numpy(awkward.flatten(rows)).astype(np.int32),
                        np.cumsum([0, *awkward.num(rows)], dtype=np.int64))

            return encode
        return lambda texts: flatten([row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)])

    def __getstate__(self):
        return self.__dict__ | {"encode": None}  # made anew in each data worker: the fast libraries do not pickle

    def __call__(self, texts):
        """Tokenize a list of texts: int32 ids (tokens,) and int64 offsets (texts + 1,) into them."""
        self.encode = self.encode or self.encoder(self.name)
        return self.encode(texts)


def tokenize_batch(table, tokenizer):
    """Tokenize the column `text` of an Arrow table: lists of int32 over one flat array, in the column `ids`."""
    ids, offsets = tokenizer(table["text"].to_pylist())
    return pa.table({"ids": pa.LargeListArray.from_arrays(offsets, ids), "document": table["document"]})


def tokenize_source(source, tokenizer, *, num_proc, overwrite):
    """Turn the text of a source into token ids without special tokens, or find them in the cache, by content.

    Args:
        source: (fingerprint, function that yields batches of texts and documents, name), as find_sources returns.
        tokenizer: the model's own. num_proc: processes that tokenize. overwrite: do it anew.

    Returns:
        (tokens, counts): a Dataset of `ids` (int32 lists) and `document`, a row for each text, in the Arrow format; and
        a dict of counts, whose `key` tells apart what was made from other content or with another vocabulary.
    """
    fingerprint, batches, _ = source
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else f"{tokenizer!r} {tokenizer.get_vocab()}"
    key = hashlib.sha256(f"2 {fingerprint} {vocabulary}".encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    cache.mkdir(parents=True, exist_ok=True)
    text, facts, made = cache / f"text-{key}.arrow", cache / f"text-{key}.json", cache / f"tokens-{key}.arrow"
    if overwrite or not (text.exists() and facts.exists()):
        write_json(facts, write_texts(batches(), text))
    counts = json.loads(facts.read_text(encoding="utf-8")) | {"key": key}
    if made.exists() and not overwrite:
        return datasets.Dataset.from_file(str(made)).with_format("arrow"), counts
    texts = datasets.Dataset.from_file(str(text)).with_format("arrow")
    flat_tokenizer = FlatTokenizer(tokenizer, texts[:100]["text"].to_pylist(), tqdm.write)
    at_once = max(1, int(2e6 * counts["paragraphs"] / counts["characters"]))  # paragraphs in about 2 MB
    tokens = texts.map(tokenize_batch, batched=True, batch_size=at_once, fn_kwargs={"tokenizer": flat_tokenizer},
                       remove_columns=["text"], num_proc=num_proc, desc=f"Tokenizing ({flat_tokenizer.name})",
                       load_from_cache_file=not overwrite, new_fingerprint=key, cache_file_name=str(made))
    return tokens, counts
