"""Scores of masked language models at the masked positions, and nowhere else."""

import torch


def masked_logits(model, batch):
    """Run a masked language model, and its output layer only where a token is to be predicted.

    The output layer costs as much as the encoder in small models, and six in seven of its rows would be thrown away.
    A hook keeps the wanted rows; a model that does not call its output embeddings as a layer computes all of them.

    Args:
        model: a model with `get_output_embeddings`, also inside DistributedDataParallel.
        batch: `positions` (predicted,), `targets`, and the model's own inputs, such as `input_ids` (batch, seq).

    Returns:
        float32 scores of shape (predicted, vocab), in the order of batch["positions"].
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("positions", "targets")}
    head = getattr(model, "module", model).get_output_embeddings()
    tokens = batch["input_ids"].numel()

    def keep_positions(_, args):
        hidden = args[0]
        if hidden.shape[:-1].numel() != tokens:  # a head that works on something else than one row a token
            return None
        return hidden.reshape(tokens, -1)[batch["positions"]], *args[1:]

    handle = head.register_forward_pre_hook(keep_positions) if isinstance(head, torch.nn.Module) else None
    try:
        logits = model(**inputs).logits
    finally:
        if handle:
            handle.remove()
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)[batch["positions"]]
    return logits.float()  # a sum of thousands of bfloat16 terms loses its last digits
