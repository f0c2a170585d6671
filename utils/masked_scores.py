"""Scores of masked language models at the masked positions, and nowhere else."""

from contextlib import nullcontext

import torch


def masked_outputs(model, batch):
    """Run a masked language model, with its output layer only where a token is to be predicted.

    That layer costs as much as the encoder in small models, and six in seven of its rows would be thrown away. A hook
    keeps the wanted ones; of a model that does not call its output embeddings as a layer, all are computed.

    Args:
        model: a model with get_output_embeddings, also inside DistributedDataParallel.
        batch: positions (predicted,) in the flattened batch, targets, perhaps next_sentence_label, and the model's
            inputs: input_ids (batch, seq).

    Returns:
        float32 scores of shape (predicted, vocab), and all that the model returned.
    """
    aims = ("positions", "targets", "next_sentence_label")
    inputs = {name: tensor for name, tensor in batch.items() if name not in aims}
    positions, tokens = batch["positions"], batch["input_ids"].numel()
    head = getattr(model, "module", model).get_output_embeddings()

    def keep_positions(_, args):
        hidden = args[0]  # (batch, seq, hidden), or for some models (batch x seq, hidden)
        fits = hidden.shape[:-1].numel() == tokens
        return (hidden.reshape(tokens, -1)[positions], *args[1:]) if fits else None

    hook = head.register_forward_pre_hook(keep_positions) if isinstance(head, torch.nn.Module) else nullcontext()
    with hook:
        outputs = model(**inputs)
    logits = outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits
    if logits.dim() == 3:
        logits = logits[:, : batch["input_ids"].shape[1]].flatten(0, 1)[positions]
    return logits.float(), outputs  # a sum of thousands of bfloat16 terms loses its last digits


def masked_logits(model, batch):
    """Score the vocabulary where a token is to be predicted, as masked_outputs does: float32, (predicted, vocab)."""
    return masked_outputs(model, batch)[0]
