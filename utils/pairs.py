"""Documents of sentences, and how an epoch pairs them."""

import importlib.metadata
import itertools
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute
import sentencex
import torch

from utils.arguments import add_flags, number
from utils.batches import pad
from utils.errors import InputError
from utils.splits import choose_parts
from utils.texts import find_sources
from utils.tokenizing import describe_texts, tokenize_source


def add_pair_flags(group):
    """Add the flags that say what documents, sentences and pairs are to a group of a parser."""
    add_flags(
        group,
        ("max_seq_length", number(int, 5), 128, "tokens per pair, [CLS] and [SEP]s too"),
        ("text_column_name", str, "text", "column of a table that holds the documents"),
        ("document_separator", ["auto", "blank_line", "line", "row"], "auto", "what ends a "
         "document; auto: in text a blank line, or without any each line; in a table each row"),
        ("sentences_per_document", number(int, 2), "cut documents after so many sentences "
         "(default: not at all)"),
        ("language", str, "en", "of the text, as en or de, for its sentences; another code gets "
         "general rules"),
        ("sentence_per_line", bool, False, "each line, or row, is a sentence already"),
        ("objective", ["nsp", "sop"], "nsp", "not next is: a random sentence of another document, "
         "or, for sentence order prediction, the two in the other order"),
    )


class Documents:
    """Tokenized sentences in their documents, found by number without a copy of them in memory.

    Sentences without tokens are left out, and documents of which a single sentence is left, as they
    make no pair.

    Args:
        table: Dataset of `ids` (int32 lists) and `document`, a row for each sentence, in the Arrow
            format.
        part: (which, percent): "all" documents, "drawn" ones of so many percent but two at least,
            by number alone, or the "rest".
        sentences_per_document: cut documents after so many sentences, before any are drawn; None
            leaves them whole.

    Attributes:
        starts: number of the first sentence of each document, and that of all sentences; int64,
            (documents + 1,).
        lengths: tokens of each sentence; int64, (sentences,).
        single: how many documents were left out for their single sentence, before any were drawn.
    """

    def __init__(self, table, part=("all", 0), sentences_per_document=None):
        self.table = table
        lengths = pa.compute.list_value_length(table.data["ids"]).to_numpy()  # (rows,)
        rows = np.flatnonzero(lengths > 0)
        numbers = table.data["document"].to_numpy()[rows]  # of documents
        begins = np.diff(numbers, prepend=-1) != 0
        if sentences_per_document:
            document = np.cumsum(begins) - 1
            place = np.arange(len(rows)) - np.flatnonzero(begins)[document]  # in its document
            # A rest of one stays with the others.
            alone = (place > 0) & (place + 1 == np.bincount(document)[document])
            begins = (place % sentences_per_document == 0) & ~alone
        numbers = np.cumsum(begins) - 1  # from 0, without gaps
        sentences = np.bincount(numbers, minlength=int(begins.sum()))  # of each document
        usable = np.flatnonzero(sentences > 1)
        share = round(len(usable) * part[1] / 100)
        # Two at least in each, if there are four.
        share = max(0, min(max(2, share), len(usable) - 2))
        drawn = usable[np.random.default_rng(0).permutation(len(usable))[:share]]
        wanted = np.zeros(len(sentences), dtype=bool)
        wanted[{"all": usable, "drawn": drawn, "rest": np.setdiff1d(usable, drawn)}[part[0]]] = True
        self.single = int((sentences == 1).sum()) if part[0] != "drawn" else 0
        kept = wanted[numbers]
        rows, numbers = rows[kept], numbers[kept]
        self.lengths = lengths[rows].astype(np.int64)
        self.starts = np.concatenate([np.flatnonzero(np.diff(numbers, prepend=-1)), [len(rows)]])
        # Where the tokens of a sentence lie: in which piece of the table, and from where on in it.
        chunks = table.data["ids"].chunks
        self.piece = np.repeat(np.arange(len(chunks)), list(map(len, chunks)))[rows]
        self.offset = np.concatenate([chunk.offsets.to_numpy()[:-1] for chunk in chunks])[rows]
        self.map_pieces()

    def map_pieces(self):
        # No copies.
        self.pieces = [chunk.values.to_numpy() for chunk in self.table.data["ids"].chunks]

    def __getstate__(self):
        return self.__dict__ | {"pieces": None}  # mapped anew in each data worker

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.map_pieces()

    def __len__(self):
        return len(self.starts) - 1

    def ids(self, start, end):
        """Token ids of the sentences from `start` up to `end`, one after the other: int64 array."""
        parts = [self.pieces[piece][offset : offset + length] for piece, offset, length
                 in zip(self.piece[start:end], self.offset[start:end], self.lengths[start:end],
                        strict=True)]
        return np.concatenate(parts or [np.zeros(0)]).astype(np.int64)

    def around(self, sentence):
        """The document of a sentence: (number of its first sentence, number behind its last)."""
        document = np.searchsorted(self.starts, sentence, side="right") - 1
        return self.starts[document], self.starts[document + 1]


def plan_sentences(documents, seed, epoch):
    """Plan an epoch in which each sentence but the last of a document is A once.

    Returns:
        int64 array (pairs, 4): A is the sentences from column 0 up to column 1, its true B those
        from there up to column 2, and column 3 is the label: 0 where B follows A, 1 where another B
        is to take its place.
    """
    first = np.delete(np.arange(documents.starts[-1]), documents.starts[1:] - 1)
    # Not that of the order.
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))
    return np.stack([first, first + 1, first + 2, rng.integers(2, size=len(first))], axis=1)


def truncate_pair(a, b, size, rng=None):
    """Shorten two arrays to `size` tokens together: the longer one, at front or back.

    Without rng at the back, else at random.

    Source: Devlin et al. 2018, appendix A.2; truncate_seq_pair in
    https://github.com/google-research/bert
    """
    if len(a) + len(b) <= size:
        return a, b
    kept = (min(len(a), max(size - len(b), size - size // 2)),
            min(len(b), max(size - len(a), size // 2)))
    fronts = [rng.binomial(len(part) - length, 0.5) if rng else 0 for part, length
              in zip((a, b), kept, strict=True)]
    return tuple(part[front : front + length] for part, front, length
                 in zip((a, b), fronts, kept, strict=True))


def join_pair(a, b, edges):
    """Join the ids of A and B, by those of [CLS] and [SEP]: ids and token types, (seq,)."""
    cls, sep = edges
    return np.concatenate([[cls], a, [sep], b, [sep]]), np.repeat([0, 1], [len(a) + 2, len(b) + 1])


class PairCollator:
    """Make pairs of sentences, padded to the longest of the batch, anew each epoch (set `epoch`).

    Half of them are two that follow each other, label 0; the others get a random B of another
    document, label 1, or for the objective "sop" (sentence order prediction) stand in the other
    order. Example i of an epoch is a function of (seed, epoch, i): the same in any data worker and
    process.

    Args:
        documents: the Documents to draw from; at least two, unless the objective is "sop".
        size: tokens of a pair, without [CLS] and [SEP]s.
        edges: ids of [CLS] and [SEP].
        pad_id: of padding.
        objective: "nsp" or "sop".
        seed: of the run, at least 0.
        sample: how many pairs of an epoch to take, drawn by seed; None takes all.

    Source: Devlin et al. 2018, section 3.1 and appendix A.2, https://arxiv.org/abs/1810.04805; sop:
    Lan et al. 2019, section 3.1, https://arxiv.org/abs/1909.11942
    """

    def __init__(self, documents, *, size, edges, pad_id, objective, seed, sample=None):
        self.documents, self.size, self.edges, self.pad_id = documents, size, edges, pad_id
        self.swap, self.seed, self.sample = objective == "sop", seed, sample
        self.epoch, self.planned, self.counts = 0, (None, None), {}

    def plan_pairs(self, epoch):
        """Plan all pairs of an epoch, as plan_sentences does."""
        return plan_sentences(self.documents, self.seed, epoch)

    def plan(self, epoch):
        """The pairs of an epoch that are taken; kept until another is asked for."""
        if self.planned[0] != epoch:
            plan = self.plan_pairs(epoch)
            if self.sample is not None and self.sample < len(plan):
                plan = plan[np.sort(np.random.default_rng(self.seed).permutation(len(plan))[: self.sample])]
            self.planned = epoch, plan
        return self.planned[1]

    def count(self, epoch):
        """Count the pairs of an epoch."""
        if epoch not in self.counts:
            self.counts[epoch] = len(self.plan(epoch))
        return self.counts[epoch]

    def random_b(self, start, middle, end, rng):
        """Draw a B out of another document: (number of its first sentence, its ids)."""
        first, behind = self.documents.around(start)
        other = int(rng.integers(self.documents.starts[-1] - (behind - first)))
        other += int(behind - first) * (other >= first)
        return other, self.documents.ids(other, other + 1)

    def pair(self, example):
        """Make a pair: (ids of A, ids of B, label, number of B's first sentence)."""
        start, middle, end, label = self.plan(self.epoch)[example].tolist()
        # A tuple, not a sum; and a stream of its own, as the masks and the plan are drawn with
        # these numbers, too.
        numbers = (self.seed, self.epoch, example)
        rng = np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(2,)))
        other, b = middle, self.documents.ids(middle, end)
        if label and not self.swap:
            other, b = self.random_b(start, middle, end, rng)
        a, b = truncate_pair(self.documents.ids(start, middle), b, self.size, rng)
        return (b, a, label, other) if self.swap and label else (a, b, label, other)

    def rows(self, examples):
        """Make rows, as of join_pair, with their labels, of the examples of these numbers."""
        pairs = [self.pair(example)[:3] for example in examples]
        # The last global batch can leave a process without any: it joins, and predicts nothing.
        nothing = np.zeros(0, np.int64)
        pairs = pairs or [(nothing, nothing, -100)]
        return [(*join_pair(a, b, self.edges), label) for a, b, label in pairs]

    def __call__(self, examples):
        """Make a batch, as of stack_pairs, of the examples of these numbers; there may be none."""
        return stack_pairs(self.rows(examples), self.pad_id)


def stack_pairs(rows, pad_id):
    """Put rows of ids (seq,), token types (seq,) and label under each other.

    Returns:
        dict of input_ids, token_type_ids and attention_mask, (batch, seq), and of
        next_sentence_label, (batch,): 0 where B follows A, -100 where nothing is predicted.
    """
    ids, types, labels = zip(*rows, strict=True)
    return {"input_ids": pad(ids, pad_id), "token_type_ids": pad(types, 0),
            "attention_mask": pad([np.ones_like(row) for row in ids], 0),
            "next_sentence_label": torch.tensor(labels)}


def split_sentences(source, language):
    """Make of a Source of paragraphs one of sentences.

    Args:
        language: code that sentencex knows, as en.
    """

    def read():
        for texts, documents in source.read():
            split = [[part for sentence in sentencex.segment(language, text)
                      if (part := sentence.strip())] for text in texts.to_pylist()]
            yield (pa.array(itertools.chain.from_iterable(split), pa.large_string()),
                   np.repeat(documents, list(map(len, split))))

    version = importlib.metadata.version("sentencex")  # another may find other sentences
    return source._replace(key=f"{source.key} sentences {language} {version}", read=read)


def check_documents(documents, name, drawn, objective):
    """Raise InputError, which says how to go on, where documents are too few for pairs.

    Args:
        name: of the source and its part.
        drawn: it is a part of the training data.
        objective: "nsp" or "sop".
    """
    needed = 2 if objective == "nsp" else 1  # a random B has to come from another one
    if len(documents) >= needed:
        return
    found = "one document only" if len(documents) else "no document of two sentences or more"
    advice = ("Separate documents by blank lines, or give --document_separator line, or "
              "--sentences_per_document 50 to cut a long one; --objective sop needs but one.")
    if documents.single > len(documents):
        advice = ("Where lines without blank lines between them belong together, give "
                  "--document_separator blank_line, and --sentences_per_document 50 to cut a long "
                  "document.")
    if drawn:
        advice += " Or give --validation_file, or --validation_split_percentage 0."
    raise InputError(f"{name} has {found}, and {documents.single:,} of one sentence, which make no "
                     f"pairs; expected at least {needed}, as a random B comes from another. "
                     f"{advice}")


def prepare_data(args, tokenizer, splits, say):
    """Prepare the splits that the run needs, each a tuple by its name."""
    begun, data, tokenized = time.perf_counter(), {}, {}
    sources = find_sources(args, splits, args.document_separator)
    for split, (source, part) in choose_parts(sources, args, splits).items():
        source = source if args.sentence_per_line else split_sentences(source, args.language)
        if source.key not in tokenized:
            tokenized[source.key] = tokenize_source(source, tokenizer, args)
            describe_texts(*tokenized[source.key], tokenizer.unk_token_id, say)
        _, tokens = tokenized[source.key]
        documents = Documents(tokens, part, args.sentences_per_document)
        check_documents(documents, f"{source.name}: its {split} part", part[0] != "all",
                        args.objective)
        alone = f"; {documents.single:,} of one sentence are left out" if documents.single else ""
        say(f"Documents   {split}: {len(documents):,} in {source.name}, with "
            f"{documents.starts[-1]:,} sentences, {documents.lengths.sum():,} tokens{alone}")
        if documents.lengths.mean() > 100:
            say("  Careful:  sentences are very long; is --language right?")
        content = f"{tokens._fingerprint} {part} {args.sentences_per_document}"
        data[split] = documents, content, source.name
    say(f"Prepared    in {time.perf_counter() - begun:.2f} s")
    return data
