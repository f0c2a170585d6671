"""Models as they are loaded, and dropout that draws fewer random numbers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification, BertForTokenClassification

from utils.fine_tuning import QuickDropout, quicken_dropout, renew_head
from utils.models import load_model


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
    model, note = load_model(AutoModelForTokenClassification, str(folder), config, 0, "head", **how)
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
    model, note = load_model(AutoModelForTokenClassification, str(folder), None, 9999, "head", **how)
    assert note.startswith("its head comes trained; its vocabulary grows")
    _, _, growth = note.partition("; ")
    assert renew_head(model, note) == (
        f"these parts start at random, as its own are for other labels: classifier; {growth}")  # fmt: skip
