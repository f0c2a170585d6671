"""Token ids of many texts, as lists over one flat array, kept in the cache by content."""

import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

import datasets
import multiprocess
import numpy as np
import pyarrow as pa

from utils.errors import blame
from utils.models import count_ids
from utils.signals import InterruptEnds, ignore_interrupts
from utils.texts import WITHOUT_BLANKS, rows_at_once, write_texts

VERSION = 2  # of how text is read and cut: what another one made of it is not taken for the same
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


@functools.cache  # its vocabulary can be large
def describe_tokenizer(tokenizer):
    """Put a tokenizer of the library `tokenizers` into JSON: one to which special tokens are text.

    They keep their ids under names that no text has. (To leave them out of `added_tokens` would not
    do: Unigram, for one, has them among its pieces.)
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model, names = settings["model"], {}
    for added in settings["added_tokens"]:
        if added["special"]:
            names[added["content"]] = added["content"] = f"\ufdd0{added['content']}"
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): n for token, n in model["vocab"].items()}
    else:
        model["vocab"] = [(names.get(token, token), score) for token, score in model["vocab"]]
    # It would take off the blank that parts a text from the one before; else texts have none there.
    normalizer = settings["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    if "Strip" in [part.get("type") for part in parts]:
        parts = [part for part in parts if part["type"] != "Strip"]
        settings["normalizer"] = {"type": "Sequence", "normalizers": parts}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    # What it says of lengths is a state of the last call.
    return json.dumps(settings | dict.fromkeys(["post_processor", "truncation", "padding"]))


@functools.cache  # once in each process: fast libraries do not pickle
def load_fast(library, tokenizer):
    """Load the model's own tokenizer into a fast library, as describe_tokenizer has it."""
    kind = importlib.import_module(library).Tokenizer
    load = kind.from_str if library == "tokenizers" else kind.from_json
    return load(describe_tokenizer(tokenizer))


def encode_with_nanotoken(tokenizer, texts):
    rows = load_fast("nanotoken", tokenizer).encode_batch(texts, add_special_tokens=False)
    return pa.LargeListArray.from_arrays(rows.offsets, rows.ids.astype(np.int32))


def encode_with_gigatoken(tokenizer, texts):
    rows = load_fast("gigatoken", tokenizer).encode_batch(texts)
    awkward = importlib.import_module("awkward")  # comes with it
    return awkward.to_arrow(rows, extensionarray=False).cast(IDS)


def encode_with_tokenizers(tokenizer, texts):
    rows = load_fast("tokenizers", tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    return pa.array([row.ids for row in rows], IDS)


def encode_with_transformers(tokenizer, texts):
    how = {"add_special_tokens": False, "verbose": False}
    words = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()
             if not (token.special or number in tokenizer.all_special_ids)}
    # Where special tokens are to be split, words that a user added would be, too.
    longest_first = map(re.escape, sorted(words, key=len, reverse=True))
    pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
    rows = []
    for text in texts:
        if not any(token in text for token in tokenizer.all_special_tokens):
            rows.append(tokenizer(text, **how)["input_ids"])
            continue
        pieces = pattern.split(text)  # every second one is such a word
        ids = tokenizer(pieces, split_special_tokens=True, **how)["input_ids"]
        ids[1::2] = [[words[word]] for word in pieces[1::2]]
        rows.append([*itertools.chain(*ids)])
    return pa.array(rows, IDS)


# Each turns a list of texts into lists of ids. Special tokens in them are text.
ENCODERS = {"nanotoken": encode_with_nanotoken, "gigatoken": encode_with_gigatoken,
            "tokenizers": encode_with_tokenizers, "transformers": encode_with_transformers}


def encode(tokenizer, texts):
    """Encode texts as the model's own tokenizer does, but that special tokens in them are text."""
    own = encode_with_tokenizers if tokenizer.is_fast else encode_with_transformers
    return own(tokenizer, texts)


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
    expected = encode(tokenizer, texts)
    for library, encode_with in ENCODERS.items() if tokenizer.is_fast else ():
        try:
            if encode_with(tokenizer, texts).equals(expected):
                break
            say(f"{library} is not used: its ids differ from those of the model's own tokenizer")
        except ImportError:
            pass  # optional
        except Exception as error:  # whatever a young library stumbles over: the next one is tried
            reason = " ".join(str(error).split())[:100]
            say(f"{library} is not used: {type(error).__name__}: {reason}")
    else:
        library = "transformers"
    return library


def tokenize_batch(table, tokenizer, library, kind):
    """Tokenize `text` of an Arrow table: `ids`, lists over one flat array of this kind of Arrow's."""
    if multiprocess.parent_process():  # in a data worker, which leaves Ctrl-C to the main process
        ignore_interrupts()
    ids = ENCODERS[library](tokenizer, table["text"].to_pylist()).cast(pa.large_list(kind))
    return pa.table({"ids": ids, "document": table["document"]})


def hash_of(*settings):
    """Key in the cache of what is made with these settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


def is_overwritten(args):
    """Whether to prepare anew what lies in the cache: on the first process alone."""
    return args.overwrite_cache and int(os.environ.get("RANK", 0)) == 0


def tokenize_source(source, tokenizer, args, say, joined=False, cuts=None):
    """Turn the text of a Source into token ids, or what is cut of them, kept in the cache by content.

    Args:
        source: where the text comes from.
        tokenizer: the model's own.
        args: Namespace of the flags.
        say: called with lines for the user, on what the text is like.
        joined: texts of a document follow each other in an example.
        cuts: dict of a name to a function that takes the ids, as below, and the path of a file, and
            puts into that what it makes of them; the name is another for all else that it makes.
            Only this is kept then.

    Returns:
        dict of "ids" to a Dataset of `ids` (lists of uint16, or int32 where there are more; without
        special tokens) and `document`, a row for each text, or of the names of cuts to what is kept
        for them; in the Arrow format. Fingerprints tell apart other contents and tokenizers.
    """
    if tokenizer.is_fast:
        settings = describe_tokenizer(tokenizer)
    else:
        settings = repr(tokenizer), tokenizer.init_kwargs, tokenizer.get_vocab()
    cuts = cuts or {}
    key = hash_of(source.key, joined, settings, *cuts)
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    folder = cache / f"text_{VERSION}" / key
    if is_overwritten(args):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        for left in folder.parent.glob("*.tmp"):  # by a run that was killed
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(f"{folder}.{os.urandom(4).hex()}.tmp")
        with blame(f"{aside} cannot be made", "HF_DATASETS_CACHE names a folder for the cache."):
            aside.mkdir(parents=True)
        try:
            tokens = tokenize_into(aside, source, tokenizer, args, say, joined)
            for name, cut in cuts.items():
                cut(tokens, str(aside / f"{name}.arrow"))
            # Nothing is kept but what is read: neither the text nor, where they are cut, the ids.
            for path in (aside / "text.tmp", *(aside.glob("ids*.arrow") if cuts else ())):
                path.unlink()
            with suppress(OSError):  # another run was faster, to the same end
                aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if any(cache.glob("[cet]*-*")):  # cache-, examples-, text- and tokens- were their names
            say("  Careful:  an older version has left copies of text in the cache; to remove them: "
                f"rm {cache}/[cet]*-*")
    kept = {}
    with blame(f"{folder}: cannot be read", "Give --overwrite_cache to make it anew."):
        about = (folder / "about.txt").read_text(encoding="utf-8")
        for name in cuts or ["ids"]:
            files = sorted(map(str, folder.glob(f"{name}*.arrow")))
            kept[name] = datasets.concatenate_datasets([*map(datasets.Dataset.from_file, files)])
            kept[name]._fingerprint = hash_of(source.key, joined, settings, name)
            kept[name].set_format("arrow")
    for line in about.splitlines():
        say(line)
    return kept


def tokenize_into(folder, source, tokenizer, args, say, joined):
    """Put the text of a Source into a folder: as text.tmp, as ids*.arrow, and what is said of it.

    Arguments as of tokenize_source. Returns the ids, as that does.
    """
    path = folder / "text.tmp"
    write_texts(source, path, joined)
    texts = datasets.Dataset.from_file(str(path)).with_format("arrow")
    number = rows_at_once(texts)
    first = texts[:number]["text"].to_pylist()
    # The model's own can be slow, and takes longest for the longest texts.
    samples = [text[: 40_000 // len(first[:100])] for text in first[:100]]
    library = choose_encoder(tokenizer, samples, say)
    how = {"tokenizer": tokenizer, "library": library,
           "kind": pa.uint16() if count_ids(tokenizer) <= 1 << 16 else pa.int32()}
    with InterruptEnds():
        tokens = texts.map(tokenize_batch, batched=True, batch_size=number, remove_columns=["text"],
                           fn_kwargs=how, num_proc=args.preprocessing_num_workers,
                           new_fingerprint="ids", cache_file_name=str(folder / "ids.arrow"),
                           load_from_cache_file=False, desc=f"Tokenizing ({library})")
    ids = tokens[: len(first)]["ids"].combine_chunks().flatten().to_numpy()
    lines = [*source.said]
    describe_texts(first, ids, tokenizer.unk_token_id, lines.append)
    (folder / "about.txt").write_text("\n".join(lines), encoding="utf-8")
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
    # Where no blanks part words, each character counts as one.
    words = sum(len(re.sub(WITHOUT_BLANKS, " 中 ", text).split()) for text in texts)
    pieces = len(ids) / max(1, words)
    unknown = np.count_nonzero(ids == unknown_id) / max(1, len(ids))
    say(f"Text        {repeated:.1%} of the first {len(texts):,} lines are repeated; {pieces:.2f} "
        f"tokens a word, {unknown:.2%} unknown")
    if repeated > 0.1:
        say("  Careful:  many lines stand there more than once; some may be trained and evaluated "
            "on alike")
    if unknown > 0.01 or pieces > 2.5:
        say("  Careful:  the tokenizer knows few of these words; another model may fit better")
