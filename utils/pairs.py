"""Documents of sentences, and how an epoch pairs them."""

import importlib.metadata
import itertools
from array import array
from itertools import pairwise

import numpy as np
import pyarrow as pa
import sentencex
import torch

from utils.batches import pad


class Documents:
    """Tokenized sentences in their documents, found by number without a copy of them in memory.

    Sentences without tokens are left out, and documents of which a single sentence is left, as they make no pair.

    Args:
        table: Dataset of `ids` (int32 lists) and `document`, a row for each sentence, in the Arrow format.
        part: (which, percent): "all" documents, "drawn" ones of so many percent but two at least, by number alone, or
            the "rest".
        sentences_per_document: cut documents after so many sentences, before any are drawn; None leaves them whole.

    Attributes:
        starts: number of the first sentence of each document, and that of all sentences; int64, (documents + 1,).
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
            alone = (place > 0) & (place + 1 == np.bincount(document)[document])  # a rest of one stays with the others
            begins = (place % sentences_per_document == 0) & ~alone
        numbers = np.cumsum(begins) - 1  # from 0, without gaps
        sentences = np.bincount(numbers, minlength=int(begins.sum()))  # of each document
        usable = np.flatnonzero(sentences > 1)
        share = round(len(usable) * part[1] / 100)
        share = max(0, min(max(2, share), len(usable) - 2))  # two at least in each, if there are four
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
        offsets = [chunk.offsets.to_numpy()[:-1] for chunk in chunks]
        self.offset = np.concatenate([np.zeros(0, np.int64), *offsets])[rows]
        self.map_pieces()

    def map_pieces(self):
        self.pieces = [chunk.values.to_numpy() for chunk in self.table.data["ids"].chunks]  # no copies

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "pieces"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.map_pieces()

    def __len__(self):
        return len(self.starts) - 1

    def ids(self, start, end):
        """Token ids of the sentences from `start` up to `end`, one after the other: int64 array."""
        parts = [self.pieces[piece][offset : offset + length] for piece, offset, length in zip(
            self.piece[start:end], self.offset[start:end], self.lengths[start:end], strict=True)]
        return np.concatenate(parts or [np.zeros(0)]).astype(np.int64)

    def around(self, sentence):
        """The document that a sentence stands in: (number of its first sentence, number behind its last)."""
        document = np.searchsorted(self.starts, sentence, side="right") - 1
        return self.starts[document], self.starts[document + 1]


def plan_sentences(documents, seed, epoch):
    """Plan an epoch in which each sentence but the last of a document is A once.

    Returns:
        int64 array (pairs, 4): A is the sentences from column 0 up to column 1, its true B those from there up to
        column 2, and column 3 is the label: 0 where B follows A, 1 where another B is to take its place.
    """
    first = np.delete(np.arange(documents.starts[-1]), documents.starts[1:] - 1)
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))  # not that of the order
    return np.stack([first, first + 1, first + 2, rng.integers(2, size=len(first))], axis=1)


def plan_segments(documents, seed, epoch, *, size, short_seq_prob, swap):
    """Plan an epoch of BERT's packed segments: the same columns as plan_sentences.

    A document is packed, sentence by sentence, into chunks of up to `size` tokens, now and then of less, and each chunk
    is split at random. Where another B takes the place of the true one, the next chunk begins with the sentences that
    were not shown, so that each is seen. A chunk of one sentence takes the next one too; at the end of a document it
    joins the one before it, or stands alone where B is another anyway. (The original makes every such chunk a negative
    example, and most of all examples with it.)

    Args:
        size: tokens of A and B together, without special tokens. Only a pair of two sentences can have more.
        short_seq_prob: share of the chunks that are packed to a length drawn from 2 to size.
        swap: label 1 stands for the two in the other order, so that both are always shown.

    Source: Devlin et al. 2018, appendix A.2, and create_pretraining_data.py of https://github.com/google-research/bert
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))  # not that of the order
    lengths, rows = documents.lengths.tolist(), array("q")  # four numbers a pair, one after the other
    for first, last in pairwise(documents.starts.tolist()):
        start = first
        while start < last:
            short, share, split, coin = rng.random(4).tolist()
            target = 2 + int(share * (size - 1)) if short < short_seq_prob else size
            end, total = start, 0
            while end < last and (end - start < 2 or (total < target and total + lengths[end] <= size)):
                end, total = end + 1, total + lengths[end]
            label = int(coin < 0.5)
            if end - start == 1:  # the last sentence of the document
                shown = (start, end, end) if label and not swap else (start - 1, start, end)
                rows.extend((*shown, label))
                break
            most, total = start + 1, lengths[start]  # A leaves a quarter of the room to B
            while most + 1 < end and total + lengths[most] <= size * 3 // 4:
                most, total = most + 1, total + lengths[most]
            middle = start + 1 + int(split * (most - start))
            rows.extend((start, middle, end, label))
            start = middle if label and not swap else end
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def truncate_pair(a, b, size, rng=None):
    """Shorten two arrays to `size` tokens together: from the longer one, at its front or back at random (rng), or back.

    Source: Devlin et al. 2018, appendix A.2; truncate_seq_pair in https://github.com/google-research/bert
    """
    if len(a) + len(b) <= size:
        return a, b
    kept = min(len(a), max(size - len(b), size - size // 2)), min(len(b), max(size - len(a), size // 2))
    fronts = [rng.binomial(len(part) - length, 0.5) if rng else 0 for part, length in zip((a, b), kept, strict=True)]
    return tuple(part[front : front + length] for part, front, length in zip((a, b), fronts, kept, strict=True))


def join_pair(a, b, edges):
    """Join the ids of A and B, by the ids of [CLS] and [SEP]: int64 arrays of ids and of token types, (seq,)."""
    cls, sep = edges
    return np.concatenate([[cls], a, [sep], b, [sep]]), np.repeat([0, 1], [len(a) + 2, len(b) + 1])


class PairCollator:
    """Make pairs of sentences or segments, padded to the longest of the batch, anew each epoch (set `epoch`).

    Half of them are two that follow each other, label 0; the others get a random B of another document, label 1, or for
    the objective "sop" (sentence order prediction) stand in the other order. Example i of an epoch is a function of
    (seed, epoch, i): the same in any data worker and process.

    Args:
        documents: the Documents to draw from; at least two, unless the objective is "sop".
        size: tokens of a pair, without [CLS] and [SEP]s. edges: ids of [CLS] and [SEP]. pad_id: of padding.
        unit: "sentence", a sentence and the next one; or "segment", packed up to the size, or with the chance of
            short_seq_prob to a smaller one.
        objective: "nsp" or "sop". seed: of the run, at least 0.
        sample: how many pairs of an epoch to take, drawn by seed; None takes all.

    Source: Devlin et al. 2018, section 3.1 and appendix A.2, https://arxiv.org/abs/1810.04805; sop: Lan et al. 2019,
    section 3.1, https://arxiv.org/abs/1909.11942
    """

    def __init__(self, documents, *, size, edges, pad_id, unit, objective, short_seq_prob, seed, sample=None):
        self.documents, self.size, self.edges, self.pad_id, self.unit = documents, size, edges, pad_id, unit
        self.swap, self.short_seq_prob, self.seed, self.sample = objective == "sop", short_seq_prob, seed, sample
        self.epoch, self.planned, self.counts = 0, None, {}

    def plan(self, epoch):
        """The pairs of an epoch, as plan_sentences and plan_segments return them; kept until another is asked for."""
        if self.planned is None or self.planned[0] != epoch:
            if self.unit == "sentence":
                plan = plan_sentences(self.documents, self.seed, epoch)
            else:
                plan = plan_segments(self.documents, self.seed, epoch, size=self.size, swap=self.swap,
                                     short_seq_prob=self.short_seq_prob)
            if self.sample is not None and self.sample < len(plan):
                plan = plan[np.sort(np.random.default_rng(self.seed).permutation(len(plan))[: self.sample])]
            self.planned = epoch, plan
        return self.planned[1]

    def count(self, epoch):
        """Count the pairs of an epoch."""
        if epoch not in self.counts:
            self.counts[epoch] = len(self.plan(epoch))
        return self.counts[epoch]

    def pair(self, example):
        """Make a pair: (ids of A, ids of B, label, number of B's first sentence)."""
        documents, size = self.documents, self.size
        start, middle, end, label = self.plan(self.epoch)[example].tolist()
        # A tuple, not a sum; and a stream of its own, as the masks and the plan are drawn with these numbers, too.
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch, example), spawn_key=(2,)))
        a, other = documents.ids(start, middle), middle
        if label and not self.swap:
            wanted, several = int(documents.lengths[middle:end].sum()), middle - start > 1
            wanted = wanted or int(documents.lengths[start])  # A is the last sentence of its document
            other, end = self.other(start, wanted, rng)
            b = documents.ids(other, end)
            if several:  # of these sentences none is cut away, as none is from a true pair of several
                b = truncate_pair(b, b[:0], max(size - len(a), 1), rng)[0]
        else:
            b = documents.ids(middle, end)
        a, b = truncate_pair(a, b, size, rng)
        return (b, a, label, other) if self.swap and label else (a, b, label, other)

    def other(self, sentence, wanted, rng):
        """Draw a B for the A that begins with a sentence: (number of its first sentence, number behind its last).

        It stands in another document. In the segment unit it is, of eight drawn, the one that is closest to the true
        B's length of `wanted` tokens: otherwise the lengths alone would tell more than half of the labels.
        """
        lengths, (first, behind) = self.documents.lengths, self.documents.around(sentence)
        draws = rng.integers(self.documents.starts[-1] - (behind - first), size=1 if self.unit == "sentence" else 8)
        best = None
        for start in (draws + (behind - first) * (draws >= first)).tolist():
            end, total = start + 1, int(lengths[start])
            if self.unit == "segment":
                until = self.documents.around(start)[1]
                while end < until and total + lengths[end] // 2 <= wanted:
                    end, total = end + 1, total + int(lengths[end])
            if best is None or abs(total - wanted) < best[0]:
                best = abs(total - wanted), start, end
        return best[1:]

    def rows(self, examples):
        """Make rows of ids (seq,) with special tokens, of token types (seq,), and labels, for numbers of examples."""
        ids, types, labels = [], [], []
        for example in examples:
            a, b, label, _ = self.pair(example)
            row, row_types = join_pair(a, b, self.edges)
            ids.append(row)
            types.append(row_types)
            labels.append(label)
        if not examples:  # the last global batch can leave a process without any: it joins, and predicts nothing
            row, row_types = join_pair([], [], self.edges)
            ids, types, labels = [row.astype(np.int64)], [row_types], [-100]
        return ids, types, labels

    def __call__(self, examples):
        """Make a batch of the examples of these numbers. There may be none: then of one pair with the label -100.

        Returns:
            input_ids, token_type_ids, attention_mask: (batch, seq). next_sentence_label: (batch,), 0 where B follows A.
        """
        return self.batch(*self.rows(examples))

    def batch(self, ids, types, labels):
        """Put rows under each other, as __call__ returns them."""
        return {"input_ids": pad(ids, self.pad_id), "token_type_ids": pad(types, 0),
                "attention_mask": pad([np.ones_like(row) for row in ids], 0),
                "next_sentence_label": torch.tensor(labels)}


def split_sentences(source, language, sentence_per_line):
    """Make of a source of paragraphs one of sentences: (fingerprint, function that yields batches, name).

    Args:
        source: as find_sources returns. language: code that sentencex knows, as en.
        sentence_per_line: the paragraphs are sentences already.
    """
    fingerprint, batches, name = source

    def sentences():
        for texts, documents in batches():
            split = [[part for sentence in sentencex.segment(language, text) if (part := sentence.strip())]
                     for text in texts.to_pylist()]
            yield (pa.array(itertools.chain.from_iterable(split), pa.large_string()),
                   np.repeat(documents, list(map(len, split))))

    version = importlib.metadata.version("sentencex")  # another may find other sentences
    return source if sentence_per_line else (f"{fingerprint} sentences {language} {version}", sentences, name)
