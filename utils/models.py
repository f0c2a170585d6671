"""Models and tokenizers: loading them, and what they can take."""

import math
import os
from functools import partial

import torch
from transformers import AutoConfig, AutoTokenizer

from utils.errors import InputError


def load_pretrained(load, flag, name, **settings):
    """Call a `from_pretrained`. What cannot be loaded is an InputError that says what to do."""
    try:
        return load(name, **settings)
    except Exception as error:  # a wrong name, no network, a damaged file, sizes that do not fit: the user's to mend
        advice = ("Expected a folder of config.json, tokenizer.json and model.safetensors; check the path."
                  if os.path.isdir(name) or name.startswith((".", "/", "~")) else
                  "It is no folder, so it was looked up on the Hub: check the spelling. Without network, load it where "
                  f"there is one (hf download {name} --local-dir DIR) and give that folder.")
        raise InputError(f"{flag} {name}: cannot be loaded: {' '.join(str(error).split())[:300]} {advice}") from None


def load_config_and_tokenizer(model, tokenizer_name, config_overrides, max_seq_length, **hub):
    """Load what is needed to prepare data: (config, tokenizer). InputError where they do not fit the task."""
    config = load_pretrained(AutoConfig.from_pretrained, "--model", model, **hub)
    try:
        if config_overrides:
            config.update_from_string(config_overrides)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"--config_overrides {config_overrides}: {error}. Expected KEY=VALUE,KEY=VALUE with keys "
                         "of the model's config.json") from None
    flag, name = ("--tokenizer_name", tokenizer_name) if tokenizer_name else ("--model", model)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, flag, name, **hub)
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:  # what transformers makes where there is none
        raise InputError(f"{flag} {name}: there is no tokenizer in it, or one without words. Save the tokenizer beside "
                         "the model, or give --tokenizer_name.")
    for kind, token in (("mask", tokenizer.mask_token_id), ("padding", tokenizer.pad_token_id),
                        ("[CLS]", edge_ids(tokenizer)[0]), ("[SEP]", edge_ids(tokenizer)[1])):
        if token is None:
            raise InputError(f"{flag} {name}: its tokenizer has no {kind} token. Take a model that was made for masked "
                             "language modelling, such as bert-base-uncased.")
    if tokenizer.is_fast:  # what a tokenizer.json says of lengths is for other uses, and would change with each use
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    longest = longest_input(config, tokenizer)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}; {model} takes at most {longest}. Give that or less.")
    return config, tokenizer


def edge_ids(tokenizer):
    """Ids that begin and end an example: [CLS] and [SEP], or what stands for them."""
    return [tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]


def longest_input(config, tokenizer):
    """Count the tokens, special ones included, that a model can take; infinity where it has no limit."""
    longest = min(getattr(config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length)
    offset = ("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "xmod")
    if "roberta" in config.model_type or config.model_type in offset:  # their positions begin behind the padding id
        longest = min(longest, config.max_position_embeddings - (config.pad_token_id or 0) - 1)
    return longest


def load_model(kind, name, config, from_scratch, vocab_size, head, *, revision, trust_remote_code, new_head=False):
    """Load a model in float32, whatever it was stored in: (model, note), which says what of it starts at random.

    Args:
        kind: class to load it with, such as AutoModelForMaskedLM. name: Hub name or folder. config: its config or None.
        from_scratch: random weights. vocab_size: of the tokenizer, to which smaller embeddings grow.
        head: words for the head, as "masked-language-modelling head". new_head: the weights that the model has for it
            are for other labels: leave it at random.
    """
    if from_scratch:
        build = partial(kind.from_config, config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        model, note = load_pretrained(lambda _: build(), "--model", name), "all of it starts at random"
    else:
        model, info = load_pretrained(kind.from_pretrained, "--model", name, config=config, dtype=torch.float32,
                                      output_loading_info=True, revision=revision, trust_remote_code=trust_remote_code,
                                      ignore_mismatched_sizes=new_head)
        missing = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
        note = (f"these parts start at random, as it has no weights for them: {', '.join(missing)}" if missing
                else f"its {head} comes trained")
    if new_head and not from_scratch:
        parts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
                 and not name.startswith(model.base_model_prefix) and module.out_features == config.num_labels}
        for part in parts.values():  # of the same shape as the weights of other labels
            torch.nn.init.normal_(part.weight, std=getattr(config, "initializer_range", 0.02))
            if part.bias is not None:
                torch.nn.init.zeros_(part.bias)
        note = f"these parts start at random, as its own are for other labels: {', '.join(parts)}"
    size = model.get_input_embeddings().num_embeddings
    if vocab_size > size:
        note += f"; its vocabulary grows from {size} to {vocab_size} tokens, as the tokenizer's, the new ones at random"
        model.resize_token_embeddings(vocab_size)
    return model, note


def checkpoint_gradients(model):
    """Let a model forget most of what backward needs, and compute it again. InputError where its kind cannot."""
    if not model.supports_gradient_checkpointing:
        raise InputError(f"--gradient_checkpointing: a model of the kind {model.config.model_type} has none")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
