"""Models and tokenizers: loading them, and what they can take."""

import math

import torch
from transformers import AutoConfig, AutoTokenizer

from utils.errors import InputError, blame

ADVICE = ("Expected a name on the Hub, or a folder of config.json, tokenizer.json and "
          "model.safetensors: check the spelling. Without network, load it where there is one (hf "
          "download NAME --local-dir DIR) and give that folder.")

# Models whose positions begin behind the padding id: parts of config.model_type.
KINDS_WITH_OFFSET = ("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet",
                     "roberta", "xmod")


def hub_settings(args):
    """What each from_pretrained is told of the Hub. args: Namespace of the flags."""
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def load_config_and_tokenizer(args, max_seq_length):
    """Load what is needed to prepare data: (config, tokenizer).

    Args:
        args: Namespace of the flags.
        max_seq_length: tokens that the model has to take, 0 where it does not matter.

    Raises:
        InputError: they cannot be loaded, or do not fit the task.
    """
    name = args.tokenizer_name or args.model
    flag = f"--{'tokenizer_name' if args.tokenizer_name else 'model'} {name}"
    with blame(f"--model {args.model}: cannot be loaded", ADVICE):
        config = AutoConfig.from_pretrained(args.model, **hub_settings(args))
    if args.config_overrides:
        with blame(f"--config_overrides {args.config_overrides}",
                   "Expected KEY=VALUE,KEY=VALUE with keys of config.json."):
            config.update_from_string(args.config_overrides)
    with blame(f"{flag}: cannot be loaded", ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_settings(args))
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:
        # What transformers makes where there is none.
        raise InputError(f"{flag}: there is no tokenizer in it, or one without words. Save the "
                         "tokenizer beside the model, or give --tokenizer_name.")
    ids = [*edge_ids(tokenizer), tokenizer.mask_token_id, tokenizer.pad_token_id]
    if None in ids:
        kind = ("[CLS]", "[SEP]", "mask", "padding")[ids.index(None)]
        raise InputError(f"{flag}: its tokenizer has no {kind} token. Take a model that was made "
                         "for masked language modelling, such as bert-base-uncased.")
    # What a tokenizer.json says of lengths is for other uses, and would change with each use.
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    longest = longest_input(config, tokenizer)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}; {args.model} takes at most "
                         f"{longest}. Give that or less.")
    return config, tokenizer


def load_model(kind, name, config, vocab_size, head, *, from_scratch=False, **settings):
    """Load a model in float32: (model, note), which says what of it starts at random.

    Args:
        kind: class to load it with, such as AutoModelForMaskedLM.
        name: Hub name or folder.
        config: its config or None.
        vocab_size: of the tokenizer, to which smaller embeddings grow.
        head: words for the head, as "masked-language-modelling head".
        from_scratch: random weights.
        settings: as of hub_settings, and what else from_pretrained takes.
    """
    with blame(f"--model {name}: cannot be loaded", ADVICE):
        if from_scratch:
            model = kind.from_config(config, dtype=torch.float32,
                                     trust_remote_code=settings["trust_remote_code"])
            note = "all of it starts at random"
        else:
            model, info = kind.from_pretrained(name, config=config, dtype=torch.float32,
                                               output_loading_info=True, **settings)
            keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
            missing = {key.rpartition(".")[0] for key in keys}
            note = f"its {head} comes trained"
            if missing:
                note = ("these parts start at random, as it has no weights for them: "
                        + ", ".join(sorted(missing)))
    try:
        size = model.get_input_embeddings().num_embeddings
    except NotImplementedError:  # CANINE has none: it hashes characters
        size = vocab_size
    if vocab_size > size:
        note += (f"; its vocabulary grows from {size} to {vocab_size} tokens, as the tokenizer's, "
                 "the new ones at random")
        model.resize_token_embeddings(vocab_size)
    return model, note


def checkpoint_gradients(model):
    """Let a model forget most of what backward needs, and compute it again.

    Raises:
        InputError: a model of its kind cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise InputError(f"--gradient_checkpointing: a model of the kind {model.config.model_type} "
                         "has none")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def edge_ids(tokenizer):
    """Ids that begin and end an example: [CLS] and [SEP], or what stands for them."""
    return [tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]


def longest_input(config, tokenizer):
    """Count the tokens, special ones too, that a model takes; infinity for no limit."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if any(kind in config.model_type for kind in KINDS_WITH_OFFSET):
        positions -= (config.pad_token_id or 0) + 1
    return min(positions, tokenizer.model_max_length)
