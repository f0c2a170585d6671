"""Scores at the masked positions alone: what the whole model says there, and what it learns from it."""

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from helpers import CONTEXT, make_masker
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForMaskedLM

from run_mlm import MaskingCollator
from utils.masks import masked_outputs

VOCAB = 50
TINY = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40}  # fmt: skip
CONFIGS = {
    "bert": TINY,
    "distilbert": {"vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
                   "max_position_embeddings": 40},
    "roberta": TINY,
    "albert": TINY | {"embedding_size": 8},
    "electra": TINY | {"embedding_size": 8},
    "deberta-v2": TINY | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": TINY | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
                          "sep_token_id": 2},
    # Its output layer is a matrix product with the weights of two layers, neither of which is called.
    "mobilebert": TINY | {"embedding_size": 8, "intra_bottleneck_size": 8},
    # It has no output layer at all that it would tell of, and scores more positions than the text has.
    "perceiver": {"vocab_size": VOCAB, "d_model": 16, "d_latents": 16, "num_latents": 8, "num_blocks": 1,
                  "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
                  "max_position_embeddings": 40},
}  # fmt: skip
SPARING = [name for name in CONFIGS if name not in ("mobilebert", "perceiver")]


def make_model(name, **settings):
    """A tiny model whose weights are large enough for scores that differ from one position to the next."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **CONFIGS[name] | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture
def batch():
    """Two rows of 12 and of 9 tokens, padded; six tokens to predict, the last token of the batch among them."""
    ids = torch.randint(5, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(ids)
    ids[0, 9:], attention_mask[0, 9:] = 0, 0
    positions = torch.tensor([1, 4, 8, 13, 20, 23])
    targets = torch.tensor([5, 9, 9, 30, 49, 7])
    return {"input_ids": ids, "attention_mask": attention_mask, "positions": positions, "targets": targets}


@pytest.fixture
def nothing_to_predict():
    return MaskingCollator(make_masker(VOCAB, mask_id=4, special=range(4)), pad_id=0)([])


def masked_logits(model, batch):
    logits, _ = masked_outputs(model, batch)
    return logits


def dense_logits(model, batch):
    """Scores at the positions, by way of all scores: row by row, as (row, column) of each position."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    length = batch["input_ids"].shape[1]
    return torch.stack([logits[position // length, position % length] for position in batch["positions"].tolist()])


def gradients(model, logits, batch):
    model.zero_grad()
    F.cross_entropy(logits, batch["targets"], reduction="sum").backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys() and len(found) > 5
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scores_and_gradients_are_those_of_the_whole_model_at_the_positions(name, batch):
    model = make_model(name)
    expected = dense_logits(model, batch)
    assert (expected[1:] - expected[:-1]).abs().amax(1).min() > 0.05  # another position would be noticed
    expected_gradients = gradients(model, expected, batch)
    logits = masked_logits(model, batch)
    assert logits.shape == (6, VOCAB)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model, logits, batch), expected_gradients)


@pytest.mark.parametrize("name", SPARING)
def test_the_output_layer_sees_only_the_positions_to_predict(name, batch):
    model, shapes = make_model(name), []
    with model.get_output_embeddings().register_forward_hook(lambda _, __, output: shapes.append(output.shape)):
        masked_logits(model, batch)
    assert shapes == [(6, VOCAB)]


@pytest.mark.parametrize("name", CONFIGS)
def test_afterwards_the_model_scores_all_positions_again(name, batch):
    model = make_model(name)
    before = model(input_ids=batch["input_ids"]).logits
    masked_logits(model, batch)
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, before, rtol=0, atol=0)


def test_afterwards_the_model_scores_all_positions_again_even_if_it_failed(batch):
    model = make_model("bert")
    with pytest.raises(IndexError):
        masked_logits(model, batch | {"input_ids": batch["input_ids"] + VOCAB})
    assert model(input_ids=batch["input_ids"]).logits.shape == (2, 12, VOCAB)


def make_trainable(name):
    """The model in training, where alone something is checkpointed, but without dropout."""
    off = ["dropout", "attention_dropout"] if name == "distilbert" else ["hidden_dropout_prob",
                                                                         "attention_probs_dropout_prob"]  # fmt: skip
    return make_model(name, **dict.fromkeys(off, 0.0)).train()


@pytest.mark.parametrize("name", [name for name in SPARING if name != "albert"])  # which has none in transformers 5
def test_gradients_are_the_same_with_gradient_checkpointing(name, batch):
    model = make_trainable(name)
    expected = gradients(model, dense_logits(model, batch), batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    assert_same_gradients(gradients(model, masked_logits(model, batch), batch), expected)


def learn_from_a_row(rank, folder, batch, checkpointed):
    """What each of two processes does: the gradients that DistributedDataParallel makes of one row in each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2)
    here = batch["positions"] // 12 == rank
    row = {"input_ids": batch["input_ids"][rank : rank + 1], "attention_mask": batch["attention_mask"][rank : rank + 1],
           "positions": batch["positions"][here] - 12 * rank, "targets": batch["targets"][here]}  # fmt: skip
    found = {}
    for name in SPARING:
        model = make_trainable(name)
        if checkpointed and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second pass finds a reducer that the first one has used
            found[name] = gradients(model, masked_logits(parallel, row), row)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_two_processes_add_up_to_those_of_the_whole_batch(batch, tmp_path, checkpointed):
    processes = [CONTEXT.Process(target=learn_from_a_row, args=(rank, tmp_path, batch, checkpointed))
                 for rank in range(2)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    of_ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name in SPARING:
        model = make_trainable(name)
        expected = gradients(model, dense_logits(model, batch), batch)
        for found in of_ranks:  # averaged over the two
            assert_same_gradients({key: 2 * gradient for key, gradient in found[name].items()}, expected)


@pytest.mark.parametrize("name", [*SPARING, "mobilebert"])
def test_without_positions_the_loss_is_zero_with_gradients_of_zero(name, nothing_to_predict):
    model = make_model(name)
    logits = masked_logits(model, nothing_to_predict)
    assert logits.shape == (0, VOCAB)
    assert F.cross_entropy(logits, nothing_to_predict["targets"], reduction="sum") == 0
    found = gradients(model, logits, nothing_to_predict)
    assert len(found) > 5 and not any(gradient.any() for gradient in found.values())  # nan counts as any


def test_inputs_beside_the_ids_reach_the_model(batch):
    model = make_model("bert")
    other = masked_logits(model, batch | {"token_type_ids": torch.ones_like(batch["input_ids"])})
    assert (other - masked_logits(model, batch)).abs().max() > 0.05
    unpadded = masked_logits(model, {name: tensor for name, tensor in batch.items() if name != "attention_mask"})
    assert (unpadded - masked_logits(model, batch))[:3].abs().max() > 0.05


def test_scores_are_float32_under_bfloat16(batch):
    model = make_model("bert")
    expected = masked_logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = masked_logits(model, batch)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.2  # it was bfloat16, which has three digits


@pytest.mark.parametrize("name", ["bert", "mobilebert"])
def test_scores_and_gradients_are_the_same_in_distributed_data_parallel(name, batch, nothing_to_predict, tmp_path):
    model = make_model(name)
    expected = dense_logits(model, batch)
    expected_gradients = gradients(model, expected, batch)
    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second pass finds a reducer that the first one has used
            logits = masked_logits(parallel, batch)
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
            assert_same_gradients(gradients(model, logits, batch), expected_gradients)
        none = gradients(model, masked_logits(parallel, nothing_to_predict), nothing_to_predict)
        assert none.keys() == expected_gradients.keys() and not any(gradient.any() for gradient in none.values())
    finally:
        torch.distributed.destroy_process_group()
