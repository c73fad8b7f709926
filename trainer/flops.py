"""How much of a known GPU's arithmetic a run makes use of (MFU)."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 tensor-core peaks of NVIDIA's data sheets, FLOP/s; the first name that a device's name contains counts.
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
ROWS = 8  # samples whose forward pass is counted


def peak_flops(device_name: str) -> float | None:
    """bf16 peak of a GPU by its name, FLOP/s; None for one that is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


class StepFlops:
    """FLOPs of training steps by stream: three times the forward pass, as if all weights were trained and nothing were
    computed twice. The forward pass is counted by torch's FlopCounterMode, attention too, at a stream's first step."""

    def __init__(self, accelerator: Accelerator, model: nn.Module):
        self._model, self._of_sample = model, {}
        on_gpu = accelerator.device.type == "cuda" and accelerator.mixed_precision == "bf16"
        self.peak = peak_flops(torch.cuda.get_device_name(accelerator.device)) if on_gpu else None

    def __call__(self, inputs) -> float | None:
        """FLOPs of this rank's share of a step, from its `step.Inputs`; None where no peak is known to hold them
        against."""
        if self.peak is None:
            return None
        key = inputs.stream
        if key not in self._of_sample:
            self._of_sample[key] = 3 * self._count(inputs) / min(ROWS, len(inputs.frames))
        return self._of_sample[key] * len(inputs.frames)

    @torch.no_grad()
    def _count(self, inputs) -> int:
        part = slice(0, ROWS)
        texts = {view: (tokens[part], mask[part]) for view, (tokens, mask) in inputs.texts.items()}
        rows = inputs.frames[part], inputs.frame_mask[part], texts, inputs.iter, inputs.keys[part]
        compiled = torch.compiler.set_stance("force_eager")  # the counter does not see into compiled parts
        with compiled, inputs.accelerator.autocast(), FlopCounterMode(display=False) as counter:
            self._model(*rows)
        return counter.get_total_flops()
