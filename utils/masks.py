"""Tokens that are hidden, and the scores of a model where they are."""

from contextlib import nullcontext

import numpy as np
import torch

from utils.arguments import add_flags, number
from utils.batches import pad


def mask_tokens(input_ids, special, *, mask_id, vocab_size, seed, epoch, example_id, mask_prob=0.15,
                mask_replace_prob=0.8, random_replace_prob=0.1, continues=None):
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
    masked_ids = np.where(chosen & (fate < mask_replace_prob), mask_id, input_ids)
    masked_ids = np.where(chosen & (fate >= 1 - random_replace_prob), substitutes, masked_ids)
    return masked_ids, np.where(chosen, input_ids, -100)


def word_continuations(tokenizer):
    """Say for each token whether it goes on with the word before it: bool, (vocab,).

    WordPiece (`##ing`), byte-level BPE (`Ġword`) and SentencePiece (`▁word`) are told apart by the
    sign that most tokens carry; without any, each token is a word of its own. Index it with ids to
    get mask_tokens' `continues`.
    """
    # More than there are tokens, where ids are left out.
    size = max(tokenizer.get_vocab().values()) + 1
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(size))]
    sign = max("##", "Ġ", "▁", key=lambda sign: sum(token.startswith(sign) for token in tokens))
    # Line feed, tab and carriage return part words too.
    starts = ("Ġ", "Ċ", "ĉ", "č") if sign == "Ġ" else sign
    continues = np.array([token.startswith(starts) == (sign == "##") for token in tokens])
    # [CLS] and its like, and words that a user added.
    continues[list(tokenizer.added_tokens_decoder)] = False
    return continues


class Masker:
    """Hide tokens of rows, as mask_tokens does, and list what is to be predicted.

    Args:
        tokenizer: its special tokens are never hidden.
        args: Namespace of the masking flags.
        seed: as of mask_tokens.
    """

    def __init__(self, tokenizer, args, seed):
        self.special = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)  # (vocab,)
        self.special[tokenizer.all_special_ids] = True
        self.continues = np.zeros_like(self.special)  # each token is a word of its own
        if args.masking == "whole_word":
            self.continues = word_continuations(tokenizer)
        self.settings = {"mask_id": tokenizer.mask_token_id, "vocab_size": len(tokenizer),
                         "seed": seed, "mask_prob": args.mlm_probability,
                         "mask_replace_prob": args.mask_replace_prob,
                         "random_replace_prob": args.random_replace_prob}

    def __call__(self, rows, example_ids, epoch):
        """Mask rows of ids, int64 arrays of shape (seq,), of the examples with these numbers.

        Returns:
            (masked_rows, positions, targets): the rows; where tokens are to be predicted in the
            flattened batch, (predicted,); and which, (predicted,).
        """
        pairs = [mask_tokens(ids, self.special[ids], continues=self.continues[ids], epoch=epoch,
                             example_id=example_id, **self.settings)
                 for ids, example_id in zip(rows, example_ids, strict=True)]
        masked, labels = zip(*pairs, strict=True)
        labels = pad(labels, -100).ravel()  # (batch x seq,)
        # Found here, on the CPU: a GPU would have to be waited for.
        positions = (labels != -100).nonzero().ravel()  # (predicted,)
        return masked, positions, labels[positions]


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
