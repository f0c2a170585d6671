"""Tokens that are hidden, and the scores of a model where they are."""

import re
from contextlib import nullcontext

import numpy as np
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.arguments import add_flags, number
from utils.batches import pad
from utils.errors import InputError
from utils.models import count_ids
from utils.texts import WITHOUT_BLANKS

# Signs by which vocabularies mark words: which tokens begin one, those without it (WordPiece) or with
# it (SentencePiece; byte-level BPE, where line feeds and tabs part words, too), or which end one.
SIGNS = {"##": "^(?!##)", "▁": "^▁", "Ġ": "^[ĠĊĉč]", "</w>": "</w>$", "@@": "(?<!@@)$"}


def mask_tokens(input_ids, special, *, mask_id, vocab_size, seed, epoch, example_id, mask_prob=0.15,
                mask_replace_prob=0.8, random_replace_prob=0.1, continues=None, vocabulary=None):
    """Hide tokens: by default 80% become [MASK], 10% a random token, 10% stay.

    An example is masked alike on one GPU or eight, in any data worker, and after a resume.

    Args:
        input_ids: token ids before padding, int64 array of shape (seq,).
        special: True where a token is left alone, such as [CLS]; bool array of shape (seq,).
        mask_id: id of [MASK].
        vocab_size: random replacements are drawn from [0, vocab_size).
        seed: seed of the run, at least 0; evaluation always uses 0, so that scores of different
            runs can be compared.
        epoch: pass over the data, from 0; evaluation always uses 0.
        example_id: index of the example in the dataset, before shuffling and sharding.
        mask_prob: chance that a token is chosen, or a word where continues is given; from 0 to 1.
        mask_replace_prob: share of the chosen tokens that become [MASK], from 0 to 1.
        random_replace_prob: share of the chosen tokens that become a random token; what is left of
            1 stays.
        continues: for whole-word masking, True where a token goes on with the word before it; bool,
            shape (seq,).
        vocabulary: the ids that are drawn by these numbers, where some are left out; int64, shape
            (vocab_size,).

    Returns:
        (masked_ids, labels): int64 arrays of shape (seq,). Labels are -100 where nothing is
        predicted.

    Raises:
        ValueError: a probability is outside [0, 1], or the two shares add up to more than 1.

    Source: Devlin et al. 2018, section 3.1 and appendix A.1, https://arxiv.org/abs/1810.04805;
    whole words: https://github.com/google-research/bert, "whole word masking" (each token of a word
    meets its own fate).
    """
    if not 0 <= mask_prob <= 1:
        raise ValueError(f"mask_prob is {mask_prob}; give a fraction from 0 to 1, such as 0.15")
    if not 0 <= mask_replace_prob <= mask_replace_prob + random_replace_prob <= 1:
        raise ValueError(f"mask_replace_prob is {mask_replace_prob} and random_replace_prob is "
                         f"{random_replace_prob}; give two fractions from 0 to 1 that add up to at "
                         "most 1, such as 0.8 and 0.1")
    # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 what seed 0 does in
    # epoch 1.
    rng = np.random.default_rng((seed, epoch, example_id))
    chosen = rng.random(len(input_ids)) < mask_prob  # (seq,)
    if continues is not None:  # the draw of a word's first token decides for the whole word
        chosen = chosen[np.maximum.accumulate(np.where(continues, 0, np.arange(len(input_ids))))]
    chosen &= ~special
    fate = rng.random(len(input_ids))  # (seq,), uniform in [0, 1)
    substitutes = rng.integers(vocab_size, size=len(input_ids))  # (seq,)
    if vocabulary is not None:
        substitutes = vocabulary[substitutes]
    masked_ids = np.where(chosen & (fate < mask_replace_prob), mask_id, input_ids)
    masked_ids = np.where(chosen & (fate >= 1 - random_replace_prob), substitutes, masked_ids)
    return masked_ids, np.where(chosen, input_ids, -100)


def head_of(token, byte_of):
    """The first two bytes of a token without its sign, as one number; 0 for what is missing.

    Args:
        byte_of: dict of the letters of a byte-level vocabulary to their bytes, or empty.
    """
    if byte_of:
        head = bytes(byte_of[letter] for letter in token[:2])
    elif re.fullmatch("<0x[0-9A-F]{2}>", token):  # SentencePiece, of what it has no token for
        head = bytes.fromhex(token[3:5])
    else:
        head = token.lstrip("#▁").encode()[:2]
    return int.from_bytes(head.ljust(2, b"\0"))


class WordUnits:
    """Tell which tokens go on with the word before them, for masks that hide whole words.

    A token begins a word if it carries the sign for that, each vocabulary in its way (`##ing`,
    `▁word`, `Ġword`, `word</w>`, `wo@@ rd`), or if its first byte begins a character of a script
    without blanks: there, a unit is a character, or what the vocabulary makes one token of. Bytes
    that go on with a character belong to it. Special tokens, and words that a user added, are words
    of their own.

    Raises:
        InputError: no token carries a sign, though words can be several tokens.
    """

    def __init__(self, tokenizer):
        tokens = [""] * count_ids(tokenizer)  # those that are left out, and those that were added
        added = tokenizer.added_tokens_decoder
        for token, token_id in tokenizer.get_vocab().items():
            if token_id not in added:
                tokens[token_id] = token
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        prefix = getattr(model, "continuing_subword_prefix", None)
        suffix = getattr(model, "end_of_word_suffix", None)
        byte_of, letters = {}, set().union(*tokens)
        if not prefix and "Ġ" in letters:
            byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
            byte_of = {} if letters - byte_of.keys() else byte_of  # they do not stand for bytes
        # By what the model says, or by the sign that most tokens carry; alone, it is a letter.
        counts = {sign: sum(sign in token != sign for token in tokens)
                  for sign in (["Ġ"] if byte_of else ["##", "▁", "</w>", "@@"])}
        sign = prefix or suffix or max(counts, key=counts.get)
        if not (prefix or suffix or counts[sign] or type(model).__name__ == "WordLevel"):
            raise InputError("--masking whole_word: this tokenizer cuts words into tokens that do "
                             "not say where a word begins; expected ##, ▁, Ġ, </w> or @@ at some "
                             "of them. Take --masking token, or another tokenizer.")
        if prefix:
            pattern = f"^(?!{re.escape(prefix)})"
        elif suffix:
            pattern = f"{re.escape(suffix)}$"
        else:
            pattern = SIGNS[sign]
        pattern, is_back = re.compile(pattern), pattern.endswith("$")
        marked = np.array([pattern.search(token) is not None for token in tokens])  # (vocab,)
        marked[[*added]] = True
        nowhere = np.zeros_like(marked)
        self.begins, self.ends = (nowhere, marked) if is_back else (marked, nowhere)
        self.begins[[*added]] = True
        heads = (head_of(token.removeprefix(prefix or ""), byte_of) for token in tokens)
        self.heads = np.fromiter(heads, np.int64)  # (vocab,)
        # By the first two bytes of a character, which those of a row of 64 have in common. The
        # tokenizer of BertJapanese finds words by a dictionary: there the sign alone counts.
        self.without_blanks = np.zeros(1 << 16, dtype=bool)
        if getattr(tokenizer, "word_tokenizer_type", "basic") == "basic":
            for character in filter(re.compile(WITHOUT_BLANKS).match, map(chr, range(0, 1 << 18, 64))):
                self.without_blanks[head_of(character, {})] = True

    def __call__(self, ids):
        """Say of token ids, (seq,), which go on with the word before them: bool, (seq,)."""
        heads = self.heads[ids]
        # Where a token is but one byte, the second is the next token's first.
        heads = np.where(heads & 255, heads, heads | np.append(heads[1:] >> 8, 0))
        begins = self.begins[ids] | self.without_blanks[heads]
        begins[1:] |= self.ends[ids[:-1]]
        return ~begins


class Masker:
    """Hide tokens of rows, as mask_tokens does, and list what is to be predicted.

    Args:
        tokenizer: its special tokens are never hidden.
        args: Namespace of the masking flags.
        seed: as of mask_tokens.
    """

    def __init__(self, tokenizer, args, seed):
        vocabulary = np.unique([*tokenizer.get_vocab().values()])
        self.special = np.zeros(count_ids(tokenizer), dtype=bool)  # (highest id + 1,)
        self.special[tokenizer.all_special_ids] = True
        self.units = WordUnits(tokenizer) if args.masking == "whole_word" else None
        self.settings = {"mask_id": tokenizer.mask_token_id, "vocab_size": len(vocabulary),
                         "vocabulary": vocabulary, "seed": seed,
                         "mask_prob": args.mlm_probability,
                         "mask_replace_prob": args.mask_replace_prob,
                         "random_replace_prob": args.random_replace_prob}

    def __call__(self, rows, example_ids, epoch):
        """Mask rows of ids, int64 arrays of shape (seq,), of the examples with these numbers.

        Returns:
            (masked_rows, positions, targets): the rows; where tokens are to be predicted in the
            flattened batch, (predicted,); and which, (predicted,).
        """
        pairs = [mask_tokens(ids, self.special[ids], continues=self.units and self.units(ids),
                             epoch=epoch, example_id=example_id, **self.settings)
                 for ids, example_id in zip(rows, example_ids, strict=True)]
        masked, labels = zip(*pairs, strict=True)
        labels = pad(labels, -100).ravel()  # (batch x seq,)
        # Found here, on the CPU: a GPU would have to be waited for.
        positions = (labels != -100).nonzero().ravel()  # (predicted,)
        return masked, positions, labels[positions]


def describe_words(masker, rows, say):
    """Say how long the words are that are hidden as one, where that is what is hidden.

    Args:
        masker: a Masker.
        rows: some of the examples, int64 arrays of ids of shape (seq,).
    """
    if masker.units:
        ids = np.concatenate(rows)
        words = ids[~masker.special[ids] & ~masker.units(ids)]
        tokens = np.count_nonzero(~masker.special[ids])
        say(f"Words       {tokens / max(1, len(words)):.2f} tokens each, which are hidden together")


def add_masking_flags(parser):
    """Add the flags that say what is hidden."""
    share = number(float, 0, 1)
    add_flags(
        parser.add_argument_group("masking"),
        ("masking", ["token", "whole_word"], "token", "hide tokens or words"),
        ("mlm_probability", number(float, 0, 1, above=True), 0.15, "share to hide"),
        ("mask_replace_prob", share, 0.8, "share of the hidden shown as [MASK]"),
        ("random_replace_prob", share, 0.1,
         "share shown as a random token; the rest stays as it is"),
    )


def check_masking_flags(args, parser):
    """Find shares that make more than a whole."""
    if args.mask_replace_prob + args.random_replace_prob > 1:
        parser.error("--mask_replace_prob and --random_replace_prob add up to more than 1; give "
                     "shares as 0.8 and 0.1")


def masked_outputs(model, batch):
    """Run a masked language model, with its output layer only where a token is to be predicted.

    That layer costs as much as the encoder in small models, and six in seven of its rows would be
    thrown away. A hook keeps the wanted ones; of a model that does not call its output embeddings
    as a layer, all are computed.

    Args:
        model: a model with get_output_embeddings, also inside DistributedDataParallel.
        batch: positions (predicted,) in the flattened batch, targets, perhaps next_sentence_label,
            and the model's inputs: input_ids (batch, seq).

    Returns:
        float32 scores of shape (predicted, vocab), and all that the model returned.
    """
    aims = "positions", "targets", "next_sentence_label"
    inputs = {name: tensor for name, tensor in batch.items() if name not in aims}
    positions, tokens = batch["positions"], batch["input_ids"].numel()
    head = getattr(model, "module", model).get_output_embeddings()

    def keep_positions(_, args):
        hidden = args[0]  # (batch, seq, hidden), or for some models (batch x seq, hidden)
        fits = hidden.shape[:-1].numel() == tokens
        return (hidden.reshape(tokens, -1)[positions], *args[1:]) if fits else None

    hook = nullcontext()
    if isinstance(head, torch.nn.Module):
        hook = head.register_forward_pre_hook(keep_positions)
    with hook:
        outputs = model(**inputs)
    logits = outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits
    if logits.dim() == 3:
        logits = logits[:, : batch["input_ids"].shape[1]].flatten(0, 1)[positions]
    return logits.float(), outputs  # a sum of thousands of bfloat16 terms loses its last digits
