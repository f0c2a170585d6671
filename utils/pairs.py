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
from utils.texts import add_text_flags, draw_rows, find_sources
from utils.tokenizing import tokenize_source


def add_pair_flags(group):
    """Add the flags that say what documents, sentences and pairs are to a group of a parser."""
    add_text_flags(group)
    add_flags(
        group,
        ("max_seq_length", number(int, 5), 128, "tokens per pair, [CLS] and [SEP]s too"),
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
        rows = np.flatnonzero(lengths)
        begins = np.diff(table.data["document"].to_numpy()[rows], prepend=-1) != 0
        document = np.cumsum(begins) - 1  # of each row, from 0 without gaps
        if sentences_per_document:
            place = np.arange(len(rows)) - np.flatnonzero(begins)[document]  # in its document
            # A rest of one stays with the others.
            alone = (place > 0) & (place + 1 == np.bincount(document)[document])
            document = np.cumsum((place % sentences_per_document == 0) & ~alone) - 1
        sentences = np.bincount(document)  # of each document
        self.single = int(np.sum(sentences == 1)) if part[0] != "drawn" else 0
        wanted = sentences > 1
        wanted[wanted] = draw_rows(int(wanted.sum()), *part, least=2)
        self.rows = rows[wanted[document]]  # of the table, (sentences,)
        self.lengths = lengths[self.rows].astype(np.int64)
        self.starts = np.cumsum([0, *sentences[wanted]])

    def __len__(self):
        return len(self.starts) - 1

    def ids(self, start, end):
        """Token ids of the sentences of a document from `start` up to `end`: int64, (tokens,)."""
        if start == end:
            return np.zeros(0, np.int64)
        # Rows that are left out between two sentences of a document have no tokens.
        lists = self.table.data["ids"][self.rows[start] : self.rows[end - 1] + 1]
        return lists.combine_chunks().flatten().to_numpy().astype(np.int64)

    def around(self, sentence):
        """The document of a sentence: (number of its first sentence, number behind its last)."""
        document = np.searchsorted(self.starts, sentence, side="right") - 1
        return self.starts[document], self.starts[document + 1]

    def draw_others(self, sentence, rng, number=None):
        """Draw sentences of other documents than that of a sentence: their numbers, or one."""
        first, behind = self.around(sentence)
        draws = rng.integers(self.starts[-1] - (behind - first), size=number)
        return draws + (behind - first) * (draws >= first)


def rng_of(stream, *numbers):
    """Make a generator of a stream of its own: masks and order are drawn with these numbers, too."""
    # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 what seed 0 does in
    # epoch 1.
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(stream,)))


def plan_sentences(documents, seed, epoch):
    """Plan an epoch in which each sentence but the last of a document is A once.

    Returns:
        int64 array (pairs, 4): A is the sentences from column 0 up to column 1, its true B those
        from there up to column 2, and column 3 is the label: 0 where B follows A, 1 where another B
        is to take its place.
    """
    first = np.delete(np.arange(documents.starts[-1]), documents.starts[1:] - 1)
    labels = rng_of(1, seed, epoch).integers(2, size=len(first))
    return np.stack([first, first + 1, first + 2, labels], axis=1)


def truncate_pair(a, b, size, rng=None):
    """Shorten two arrays to `size` tokens together: the longer one, at front or back.

    Without rng at the back, else at random.

    Source: Devlin et al. 2018, appendix A.2; truncate_seq_pair in
    https://github.com/google-research/bert
    """
    of_a = min(len(a), max(size - len(b), size - size // 2))
    shown = []
    for part, length in (a, of_a), (b, min(len(b), size - of_a)):
        front = rng.binomial(len(part) - length, 0.5) if rng else 0
        shown.append(part[front : front + length])
    return shown


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
            if self.sample:
                order = np.random.default_rng(self.seed).permutation(len(plan))
                plan = plan[np.sort(order[: self.sample])]
            self.planned = epoch, plan
        return self.planned[1]

    def count(self, epoch):
        """Count the pairs of an epoch."""
        if epoch not in self.counts:
            self.counts[epoch] = len(self.plan(epoch))
        return self.counts[epoch]

    def random_b(self, start, middle, end, rng):
        """Draw a B out of another document than that of A and its true B, (start, middle, end)."""
        other = self.documents.draw_others(start, rng)
        return self.documents.ids(other, other + 1)

    def pair(self, example):
        """Make a pair: (ids of A, ids of B, label)."""
        start, middle, end, label = self.plan(self.epoch)[example].tolist()
        rng = rng_of(2, self.seed, self.epoch, example)
        a, b = self.documents.ids(start, middle), self.documents.ids(middle, end)
        if label and not self.swap:
            b = self.random_b(start, middle, end, rng)
        a, b = truncate_pair(a, b, self.size, rng)
        return (b, a, label) if label and self.swap else (a, b, label)

    def __call__(self, examples):
        """Make a batch, as of stack_pairs, of the examples of these numbers; there may be none."""
        pairs = [self.pair(example) for example in examples]
        # The last global batch can leave a process without any: it joins, and predicts nothing.
        nothing = self.documents.ids(0, 0)
        return stack_pairs(pairs or [(nothing, nothing, -100)], self.edges, self.pad_id)


def stack_pairs(pairs, edges, pad_id):
    """Put pairs of ids of A, ids of B and label under each other, between those of [CLS] and [SEP].

    Returns:
        dict of input_ids, token_type_ids and attention_mask, (batch, seq), and of
        next_sentence_label, (batch,): 0 where B follows A, -100 where nothing is predicted.
    """
    cls, sep = edges
    rows = [np.concatenate([[cls], a, [sep], b, [sep]]) for a, b, _ in pairs]
    types = [np.repeat([0, 1], [len(a) + 2, len(b) + 1]) for a, b, _ in pairs]
    return {"input_ids": pad(rows, pad_id), "token_type_ids": pad(types, 0),
            "attention_mask": pad([np.ones_like(row) for row in rows], 0),
            "next_sentence_label": torch.tensor([label for _, _, label in pairs])}


def show_pairs(collator, tokenizer, split, say):
    """Show what a split is: how many of its pairs are cut, and two of them."""
    plan, lengths = collator.plan(0), collator.documents.lengths
    tokens = np.concatenate([[0], np.cumsum(lengths)])
    cut = np.mean(tokens[plan[:, 2]] - tokens[plan[:, 0]] > collator.size)
    if cut > 0.1:
        say(f"  Careful:  {cut:.0%} of the pairs of {split} are longer than --max_seq_length, and "
            "are cut")
    batch = collator(sorted({0, len(plan) // 2}))
    for ids, types, label in zip(batch["input_ids"], batch["token_type_ids"],
                                 batch["next_sentence_label"], strict=True):
        sides = [tokenizer.decode(ids[(types == side) & (ids != collator.pad_id)]) for side in (0, 1)]
        verdict = ("is next", "not next")[label]
        say(f"  Example:  {split}, {verdict}: {sides[0][:60]} | {sides[1][:60]}")


def split_sentences(source, language):
    """Make of a Source of paragraphs one of sentences.

    Args:
        language: code that sentencex knows, as en.
    """

    def read():
        for texts, documents in source.read():
            split = [[*filter(None, map(str.strip, sentencex.segment(language, text)))]
                     for text in texts.to_pylist()]
            yield (pa.array(itertools.chain.from_iterable(split), pa.large_string()),
                   np.repeat(documents, [len(sentences) for sentences in split]))

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


def prepare_data(args, tokenizer, splits, say, joined=False):
    """Prepare the splits that the run needs, each a tuple by its name. joined: as for tokenize_source."""
    begun, data, tokenized = time.perf_counter(), {}, {}
    sources = find_sources(args, splits, say)
    for split, (source, part) in choose_parts(sources, args, splits).items():
        source = source if args.sentence_per_line else split_sentences(source, args.language)
        if source.key not in tokenized:
            tokenized[source.key] = tokenize_source(source, tokenizer, args, say, joined)["ids"]
        tokens = tokenized[source.key]
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
