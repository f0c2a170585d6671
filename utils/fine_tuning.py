"""Dropout that is quick on a CPU."""

import torch


class QuickDropout(torch.nn.Dropout):
    """Dropout that takes four decisions out of each random number: on a CPU, to draw them takes a tenth of an update.

    The share that is dropped is a multiple of 1/65536. On other devices it is what it is in torch.
    """

    def forward(self, inputs):
        level = round(self.p * 65536)
        if not self.training or inputs.device.type != "cpu" or not 0 < level < 65536:
            return super().forward(inputs)
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: inputs.numel()].view(inputs.shape) >= level - 32768
        return inputs * kept.to(inputs.dtype).mul_(65536 / (65536 - level))


def quicken_dropout(model, on_cpu):
    """Have all modules of a model that drop out do so by QuickDropout, and its attention take the way that suits it."""
    if on_cpu:  # with dropout, torch's fused attention falls back to what the plain one does, and more
        model.set_attn_implementation("eager")
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = QuickDropout
