"""Models and tokenizers: loading them, and what they can take."""

import math

import torch
from transformers import AutoConfig, AutoTokenizer

from utils.errors import InputError, blame

ADVICE = ("Expected a name on the Hub, or a folder of config.json, tokenizer.json and "
          "model.safetensors: check the spelling. Without network, load it where there is one (hf "
          "download NAME --local-dir DIR) and give that folder.")

# Models whose positions begin behind the padding id: parts of config.model_type.
KINDS_WITH_OFFSET = ("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke",
                     "mpnet", "roberta", "xmod")


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
    begins = positions_begin(config)
    # XLM's kind computes with the id; MPNet knows no other padding id than its own.
    known = begins - 1 if begins else getattr(config, "pad_index", tokenizer.pad_token_id)
    is_fixed = not args.from_scratch or config.model_type == "mpnet"
    if is_fixed and tokenizer.pad_token_id != known:
        raise InputError(f"{flag}: its padding token has the id {tokenizer.pad_token_id}; that of "
                         f"--model {args.model} is {known}, by which it knows padding and "
                         "positions: they would be wrong. Take the tokenizer that the model was "
                         "made with, or give its padding token that id.")
    longest = longest_input(config, tokenizer)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}; {args.model} takes at most "
                         f"{longest}. Give that or less.")
    return config, tokenizer


def load_model(kind, name, config, tokenizer, head, *, from_scratch=False, **settings):
    """Load a model in float32: (model, note), which says what of it starts at random.

    Its config agrees with the tokenizer, in special tokens and in size.

    Args:
        kind: class to load it with, such as AutoModelForMaskedLM.
        name: Hub name or folder.
        config: its config or None.
        tokenizer: that it is used with.
        head: words for the head, as "masked-language-modelling head".
        from_scratch: random weights, and as many as the tokenizer asks for; else embeddings that
            are too small for it grow.
        settings: as of hub_settings, and what else from_pretrained takes.
    """
    if from_scratch:
        note = "; ".join(["all of it starts at random", *fit_config(config, tokenizer)])
    with blame(f"--model {name}: cannot be loaded", ADVICE):
        if from_scratch:
            model = kind.from_config(config, dtype=torch.float32,
                                     trust_remote_code=settings["trust_remote_code"])
        else:
            model, info = kind.from_pretrained(name, config=config, dtype=torch.float32,
                                               output_loading_info=True, **settings)
            keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
            missing = {key.rpartition(".")[0] for key in keys}
            note = f"its {head} comes trained"
            if missing:
                note = ("these parts start at random, as it has no weights for them: "
                        + ", ".join(sorted(missing)))
    return model, note + fit_embeddings(model, tokenizer)


def fit_embeddings(model, tokenizer):
    """Grow embeddings to the ids of a tokenizer, and name its special tokens: what changed, or ""."""
    rows, note = count_ids(tokenizer), ""
    try:
        embeddings = model.get_input_embeddings()
        size = len(embeddings.weight)
    except NotImplementedError:  # CANINE has none: it hashes characters
        embeddings, size = None, rows
    if rows > size:
        note = (f"; its vocabulary grows from {size} to {rows} rows, one for each id of the "
                "tokenizer, the new ones at random")
        embeddings = model.resize_token_embeddings(rows)
    # Only now: the padding token may be one of the new ones.
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        take_special_ids(config, tokenizer)
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = tokenizer.pad_token_id
    return note


def count_ids(tokenizer):
    """Count the rows that embeddings need: one for each id up to the highest, gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def take_special_ids(config, tokenizer):
    """Have a config name the special tokens of its tokenizer, and none that it lacks."""
    for token in ("pad", "bos", "eos", "cls", "sep", "mask"):
        number = getattr(tokenizer, f"{token}_token_id")
        for field in f"{token}_token_id", f"{token}_index":  # XLM's kind has both
            if hasattr(config, field):
                setattr(config, field, number)


def fit_config(config, tokenizer):
    """Fit the config of a model that starts at random to its tokenizer: what changes, in words.

    Its vocabulary has a row for each id, or up to the next multiple of 64 where that of the config
    is one, too.
    """
    notes, rows, size = [], count_ids(tokenizer), getattr(config, "vocab_size", None)
    if size and size % 64 == 0:
        rows = math.ceil(rows / 64) * 64
    if size and size != rows:
        config.vocab_size = rows
        notes.append(f"its vocabulary has {rows} rows instead of {size}, as the tokenizer's")
    begins = positions_begin(config)
    take_special_ids(config, tokenizer)
    if begins and begins != positions_begin(config):
        config.max_position_embeddings += positions_begin(config) - begins
        notes.append(f"its table of positions has {config.max_position_embeddings} rows, as they "
                     f"begin behind the padding id {config.pad_token_id}")
    return notes


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


def positions_begin(config):
    """The row in a model's table of positions for the first token: 0, or behind the padding id."""
    if any(kind in config.model_type for kind in KINDS_WITH_OFFSET):
        return (config.pad_token_id or 0) + 1
    return 0


def longest_input(config, tokenizer):
    """Count the tokens, special ones too, that a model takes; infinity for no limit."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return min(positions - positions_begin(config), tokenizer.model_max_length)
