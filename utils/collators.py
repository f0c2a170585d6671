"""Masks for language modelling, and the batches that carry them."""

import numpy as np
import torch

from utils.documents import plan_segments, plan_sentences, truncate_pair


def mask_tokens(input_ids, special, *, mask_id, vocab_size, seed, epoch, example_id, mask_prob=0.15,
                mask_replace_prob=0.8, random_replace_prob=0.1, continues=None):
    """Hide tokens for masked language modelling: by default 80% become [MASK], 10% a random token, 10% stay.

    An example is masked alike on one GPU or eight, in any data worker, and after a resume.

    Args:
        input_ids: token ids before padding, int64 array of shape (seq,).
        special: True where a token is left alone, such as [CLS]; bool array of shape (seq,).
        mask_id: id of [MASK].
        vocab_size: random replacements are drawn from [0, vocab_size).
        seed: seed of the run, at least 0; evaluation always uses 0, so that scores of different runs can be compared.
        epoch: pass over the data, from 0; evaluation always uses 0.
        example_id: index of the example in the dataset, before shuffling and sharding.
        mask_prob: chance that a token is chosen, or a word where continues is given; from 0 to 1.
        mask_replace_prob: share of the chosen tokens that become [MASK], from 0 to 1.
        random_replace_prob: share of the chosen tokens that become a random token; what is left of 1 stays.
        continues: for whole-word masking, True where a token goes on with the word before it; bool, shape (seq,).

    Returns:
        (masked_ids, labels): int64 arrays of shape (seq,). Labels are -100 where nothing is predicted.

    Raises:
        ValueError: a probability is outside [0, 1], or the two shares add up to more than 1.

    Source: Devlin et al. 2018, section 3.1 and appendix A.1, https://arxiv.org/abs/1810.04805; whole words:
    https://github.com/google-research/bert, "whole word masking" (each token of a word meets its own fate).
    """
    if not 0 <= mask_prob <= 1:
        raise ValueError(f"mask_prob is {mask_prob}; give a fraction from 0 to 1, such as 0.15")
    if min(mask_replace_prob, random_replace_prob) < 0 or mask_replace_prob + random_replace_prob > 1:
        raise ValueError(f"mask_replace_prob is {mask_replace_prob} and random_replace_prob is {random_replace_prob}; "
                         "give two fractions from 0 to 1 that add up to at most 1, such as 0.8 and 0.1")
    # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 what seed 0 does in epoch 1.
    rng = np.random.default_rng((seed, epoch, example_id))
    chosen = rng.random(len(input_ids)) < mask_prob  # (seq,)
    if continues is not None:  # the draw of a word's first token decides for the whole word
        chosen = chosen[np.maximum.accumulate(np.where(continues, 0, np.arange(len(input_ids))))]
    chosen &= ~special
    fate = rng.random(len(input_ids))  # (seq,), uniform in [0, 1)
    substitutes = rng.integers(vocab_size, size=len(input_ids))  # (seq,)
    masked_ids = np.where(chosen & (fate < mask_replace_prob), mask_id, input_ids)
    masked_ids = np.where(chosen & (fate >= 1 - random_replace_prob), substitutes, masked_ids)
    return masked_ids, np.where(chosen, input_ids, -100)


def word_continuations(tokenizer):
    """Say for each token of the vocabulary whether it goes on with the word before it: bool array of shape (vocab,).

    WordPiece (`##ing`), byte-level BPE (`Ġword`) and SentencePiece (`▁word`) are told apart by the sign that most
    tokens carry; without any, each token is a word of its own. Index it with ids to get mask_tokens' `continues`.
    """
    size = max(tokenizer.get_vocab().values()) + 1  # more than there are tokens where ids are left out
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(size))]
    counts = {sign: sum(token.startswith(sign) for token in tokens) for sign in ("##", "Ġ", "▁")}
    sign = max(counts, key=counts.get)
    starts = ("Ġ", "Ċ", "ĉ", "č") if sign == "Ġ" else sign  # line feed, tab and carriage return part words too
    continues = np.array([token.startswith(starts) == (sign == "##") for token in tokens])
    continues[list(tokenizer.added_tokens_decoder)] = False  # [CLS] and its like, and words that a user added
    return continues


def pad(rows, value):
    """Put int64 arrays of shape (length,) under each other: a tensor (batch, longest), filled up with value."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


class MaskingCollator:
    """Pad a batch to its longest example and hide tokens, freshly each epoch (set `epoch`).

    Args:
        pad_id: id of the padding token.
        special: True for tokens that are never hidden; bool array of shape (vocab,).
        continues: what word_continuations returned, for whole-word masking; None hides single tokens.
        settings: arguments of mask_tokens: mask_id, vocab_size, seed and the probabilities.
    """

    def __init__(self, *, pad_id, special, continues=None, **settings):
        self.pad_id, self.special, self.continues, self.settings, self.epoch = pad_id, special, continues, settings, 0

    def __call__(self, examples):
        """Make a batch of examples, each a dict of `id` and `input_ids` (seq,). There may be none.

        Returns:
            input_ids: (batch, seq). attention_mask: the same, only where a row is padded. positions: of the tokens to
            predict in the flattened batch, (predicted,). targets: their ids, (predicted,).
        """
        if not examples:  # the last global batch can leave a process without any: it joins, and predicts nothing
            examples = [{"id": 0, "input_ids": np.flatnonzero(self.special)[:1]}]
        pairs = []
        for example in examples:
            ids = np.asarray(example["input_ids"], dtype=np.int64)
            continues = None if self.continues is None else self.continues[ids]
            pairs.append(mask_tokens(ids, self.special[ids], epoch=self.epoch, example_id=int(example["id"]),
                                     continues=continues, **self.settings))
        labels = pad([labels for _, labels in pairs], -100).ravel()  # (batch x seq,)
        positions = (labels != -100).nonzero().ravel()  # found here, on the CPU: a GPU would have to be waited for
        batch = {"input_ids": pad([ids for ids, _ in pairs], self.pad_id), "positions": positions,
                 "targets": labels[positions]}
        if len({len(ids) for ids, _ in pairs}) > 1:  # without padding, attention is faster with no mask at all
            batch["attention_mask"] = pad([np.ones_like(ids) for ids, _ in pairs], 0)
        return batch


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


class PretrainingCollator(PairCollator):
    """Make pairs as PairCollator does, and hide tokens in them as MaskingCollator does.

    Args:
        special: True for tokens that are never hidden; bool array of shape (vocab,).
        continues: what word_continuations returned, for whole-word masking; None hides single tokens.
        masking: dict of the arguments of mask_tokens: mask_id, vocab_size and the probabilities.
        pairs: arguments of PairCollator.
    """

    def __init__(self, documents, *, special, masking, continues=None, **pairs):
        super().__init__(documents, **pairs)
        self.special, self.continues, self.masking = special, continues, masking

    def __call__(self, examples):
        """Make a batch, as PairCollator does, with positions and targets as MaskingCollator makes them."""
        ids, types, labels = self.rows(examples)
        masked = []
        for row, example in zip(ids, examples or [0], strict=True):
            continues = None if self.continues is None else self.continues[row]
            masked.append(mask_tokens(row, self.special[row], seed=self.seed, epoch=self.epoch, example_id=example,
                                      continues=continues, **self.masking))
        targets = pad([row for _, row in masked], -100).ravel()  # (batch x seq,)
        positions = (targets != -100).nonzero().ravel()
        return {**self.batch([row for row, _ in masked], types, labels), "positions": positions,
                "targets": targets[positions]}
