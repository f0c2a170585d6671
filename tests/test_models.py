"""Models as they are loaded, and dropout that draws fewer random numbers."""

import argparse
import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from utils.errors import InputError
from utils.fine_tuning import QuickDropout, quicken_dropout, renew_head
from utils.models import load_config_and_tokenizer, load_model, longest_input


def dropped(p, shape, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return QuickDropout(p)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_makes_up_for_it(p):
    n = 400_000
    found = dropped(p, (n,))
    share = (found == 0).double().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1 / 65536  # four standard errors, and the grid
    level = round(p * 65536) / 65536
    assert torch.equal(found[found != 0].unique(), torch.tensor([1 / (1 - level)]))


def test_each_place_is_dropped_as_often_as_any_other():
    torch.manual_seed(0)
    layer, rounds = QuickDropout(0.5), 2000
    counts = sum((layer(torch.ones(7)) == 0).double() for _ in range(rounds))  # 7: no multiple of four
    assert (counts / rounds - 0.5).abs().max() < 5 * 0.5 / rounds**0.5


def test_places_are_dropped_independently():
    found = (dropped(0.5, (200_000, 4)) == 0).double()
    assert (torch.corrcoef(found.T) - torch.eye(4)).abs().max() < 5 / 200_000**0.5


def test_the_gradient_flows_through_what_was_kept_alone():
    torch.manual_seed(0)
    inputs = torch.randn(50, 3, requires_grad=True)
    found = QuickDropout(0.3)(inputs)
    found.sum().backward()
    assert torch.allclose(inputs.grad * inputs, found) and (found == 0).any() and (inputs.grad > 1).any()


def test_it_repeats_with_the_seed_and_keeps_shape_and_kind():
    found = dropped(0.1, (3, 5, 7), torch.bfloat16)
    assert found.shape == (3, 5, 7) and found.dtype == torch.bfloat16
    assert torch.equal(found, dropped(0.1, (3, 5, 7), torch.bfloat16))
    assert not torch.equal(dropped(0.5, (99,)), dropped(0.5, (99,), seed=1))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all_are_as_in_torch(p):
    assert torch.equal(dropped(p, (9,)), torch.nn.Dropout(p)(torch.ones(9)))


def test_in_evaluation_nothing_is_dropped():
    inputs = torch.randn(4, 4)
    assert torch.equal(QuickDropout(0.5).eval()(inputs), inputs)


def test_a_model_is_quickened_whole_and_scores_as_before(tiny_bert):
    model = BertForTokenClassification.from_pretrained(tiny_bert).eval()
    ids = torch.arange(5, 25)[None]
    before = model(ids).logits
    quicken_dropout(model, on_cpu=True)
    assert not [module for module in model.modules() if type(module) is torch.nn.Dropout]
    assert torch.allclose(model(ids).logits, before, atol=1e-5)
    model.train()
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)


def tagger(tiny_bert, folder, labels):
    config = AutoConfig.from_pretrained(tiny_bert, id2label=dict(enumerate(labels)))
    torch.manual_seed(1)
    BertForTokenClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [["O", "B-ORG"], ["O", "B-ORG", "I-ORG"]])
def test_a_head_for_other_labels_is_made_anew_and_the_rest_kept(labels, tiny_bert, tmp_path):
    folder = tagger(tiny_bert, tmp_path, ["O", "B-PER"])
    old = BertForTokenClassification.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: n for n, label in enumerate(labels)}
    how = {"revision": "main", "trust_remote_code": False, "ignore_mismatched_sizes": True}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model, note = load_model(AutoModelForTokenClassification, str(folder), config, tokenizer, "head", **how)
    note = renew_head(model, note)
    assert "classifier" in note and "random" in note
    assert model.classifier.weight.shape == (len(labels), 32) and not model.classifier.bias.any()
    assert not torch.equal(model.classifier.weight[:2], old.classifier.weight)
    assert model.classifier.weight.std() < 0.5
    for name, weight in old.bert.state_dict().items():
        assert torch.equal(weight, model.bert.state_dict()[name])


def test_of_a_head_that_is_made_anew_the_note_still_says_that_the_vocabulary_grew(tiny_bert, tmp_path):
    folder = tagger(tiny_bert, tmp_path, ["O", "B-PER"])
    how = {"revision": "main", "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_tokens(["covfefe"])
    model, note = load_model(AutoModelForTokenClassification, str(folder), None, tokenizer, "head", **how)
    assert note.startswith("its head comes trained; its vocabulary grows")
    _, _, growth = note.partition("; ")
    assert renew_head(model, note) == (
        f"these parts start at random, as its own are for other labels: classifier; {growth}")  # fmt: skip


# ---------------------------------------------------------------- tokenizer and model agree


TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 40}  # fmt: skip
ANGLES = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
          "bos_token": "<s>", "eos_token": "</s>"}  # fmt: skip
HOW = {"revision": "main", "trust_remote_code": False}


def words_tokenizer(folder, words, first=0, step=1, **names):
    """A token a word, from id `first` on in steps, and behind them special tokens; loaded from a folder."""
    names = names or {name: token for name, token in ANGLES.items() if name not in ("bos_token", "eos_token")}
    vocabulary = {word: first + step * n for n, word in enumerate(words)}
    for n, token in enumerate(dict.fromkeys(names.values())):
        vocabulary[token] = first + step * (len(words) + n)
    raw = Tokenizer(WordLevel(vocabulary, unk_token=names["unk_token"]))
    raw.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def from_scratch(kind, tokenizer, **settings):
    config = AutoConfig.for_model(kind, **TINY | settings)
    return load_model(AutoModelForMaskedLM, kind, config, tokenizer, "head", from_scratch=True, **HOW)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_from_scratch_the_config_that_is_saved_has_the_tokenizers_ids_and_size(kind, tmp_path):
    tokenizer = words_tokenizer(tmp_path / "own", ["a", "b", "c"])  # then <s> 3, <pad> 4, </s> 5, <unk> 6, <mask> 7
    model, _ = from_scratch(kind, tokenizer)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == 8 and config["pad_token_id"] == 4
    assert config["bos_token_id"] is None and config["eos_token_id"] is None  # this tokenizer has none
    assert config.get("cls_token_id", 3) == 3 and config.get("sep_token_id", 5) == 5
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape == (8, 16)


def test_positions_that_begin_behind_another_padding_id_count_up_by_one(tmp_path):
    tokenizer = words_tokenizer(tmp_path, [f"word{n}" for n in range(100)], **ANGLES)  # <pad> is 101
    model, note = from_scratch("roberta", tokenizer, max_position_embeddings=34)  # 32 tokens behind id 1
    assert "its table of positions has 134 rows, as they begin behind the padding id 101" in note
    assert model.config.bos_token_id == 100 and model.config.eos_token_id == 102
    positions = []
    model.roberta.embeddings.position_embeddings.register_forward_hook(
        lambda _, inputs, __: positions.extend(inputs[0][0].tolist())
    )
    ids = [100, *range(30), 102]
    model(input_ids=torch.tensor([ids]))
    assert positions == [*range(102, 134)]
    config = AutoConfig.for_model("roberta", **TINY)
    assert longest_input(config, tokenizer) == 38 and longest_input(model.config, tokenizer) == 32


@pytest.mark.parametrize(("given", "expected"), [(50, 105), (128, 128), (64, 128), (256, 128), (130, 105)])
def test_from_scratch_the_size_is_the_highest_id_or_a_multiple_of_64_where_that_of_the_config_is(
    given, expected, tmp_path
):
    tokenizer = words_tokenizer(tmp_path, [f"word{n}" for n in range(100)])
    model, note = from_scratch("bert", tokenizer, vocab_size=given)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == expected
    assert (f"{expected} rows instead of {given}" in note) == (given != expected)


def test_a_vocabulary_with_gaps_has_a_row_for_its_highest_id(tiny_bert, tmp_path):
    tokenizer = words_tokenizer(tmp_path, ["a", "b"], first=700, step=10)  # 7 tokens, up to <mask> 760
    model, note = load_model(AutoModelForMaskedLM, str(tiny_bert), None, tokenizer, "head", **HOW)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 761
    assert "rows, one for each id of the tokenizer" in note
    assert model(input_ids=torch.tensor([[720, 700, 760, 740]])).logits.shape == (1, 4, 761)
    assert model.config.pad_token_id == 730  # was 0: where it makes no difference, it is the tokenizer's that counts
    assert model.get_input_embeddings().padding_idx == 730  # as it is when the model is loaded again


def load_checked(folder, model, scratch=False):
    args = argparse.Namespace(model=str(model), tokenizer_name=str(folder), from_scratch=scratch, config_overrides=None,
                              model_revision="main", trust_remote_code=False)  # fmt: skip
    return load_config_and_tokenizer(args, 16)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_another_padding_id_is_refused_where_positions_begin_behind_it(kind, tmp_path):
    AutoConfig.for_model(kind, **TINY).save_pretrained(tmp_path)
    words_tokenizer(tmp_path / "own", ["a", "b", "c"])
    with pytest.raises(InputError, match="padding token has the id 4; that of .* is 1, by which"):
        load_checked(tmp_path / "own", tmp_path)
    words_tokenizer(tmp_path / "same", ["a"], **{"pad_token": "<pad>", **ANGLES})  # <pad> is 1
    load_checked(tmp_path / "same", tmp_path)
    if kind == "roberta":
        load_checked(tmp_path / "own", tmp_path, scratch=True)
    else:  # that counts from 1 in any case
        with pytest.raises(InputError, match="padding token has the id 4"):
            load_checked(tmp_path / "own", tmp_path, scratch=True)
