"""Model FLOPs and the peak FLOP/s of devices: the two sides of MFU.

Model FLOPs (Chowdhery et al. 2022, appendix B) count the matrix products of the model's definition,
forward and backward, on real tokens only. Padding and recomputation do not raise the utilisation,
and computation that is saved (the last layer's positions that no head reads) does not lower it.
"""

from __future__ import annotations

import dataclasses
import re

from jax.sharding import Mesh

from flaxbert.model.bert_config import BertConfig

# Dense bfloat16 FLOP/s of one device as its maker states them, by a pattern of the device's name;
# the first match counts.
_PEAKS = (
    (r"H[12]00 NVL", 835e12),
    (r"H200", 989e12),
    (r"H100 PCIe", 756e12),
    (r"H100", 989e12),
    (r"A100(-\w+)*", 312e12),
    (r"L40S", 362e12),
    (r"L40", 181e12),
    (r"L4", 121e12),
    (r"A10", 125e12),
    (r"TPU v6( lite|e)", 918e12),
    (r"TPU v5( lite|e)", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v4", 275e12),
)


def model_flops(config: BertConfig, tokens: int, attended: int) -> float:
    """Returns the FLOPs of one forward and backward pass.

    Args:
      config: the model.
      tokens: real tokens.
      attended: sum over these tokens of the keys that each attends to: of the squared lengths.
    """
    size = config.hidden_size
    weights = 4 * size**2 + 2 * size * config.intermediate_size
    return config.num_hidden_layers * (6.0 * weights * tokens + 12.0 * size * attended)


def peak_of(mesh: Mesh, dtype: str) -> float:
    """Returns the peak FLOP/s in `dtype` that the devices' maker states; 0 = unknown.

    It is unknown for CPUs, and for float32, whose rate differs between generations.
    """
    device = mesh.devices.flat[0]
    if dtype != "bfloat16" or device.platform == "cpu":
        return 0.0
    kind = device.device_kind
    each = next((peak for name, peak in _PEAKS if re.search(rf"\b{name}(?!\S)", kind)), 0.0)
    return each * mesh.devices.size


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """How well a run uses its devices."""

    config: BertConfig
    peak: float  # FLOP/s of all devices together; 0 = unknown

    def of(self, tokens: int, attended: int, seconds: float) -> dict[str, float]:
        """Returns "model_flops_per_second", and "mfu" (0 to 1) if the peak is known."""
        speed = model_flops(self.config, tokens, attended) / seconds
        return {
            "model_flops_per_second": speed,
            **({"mfu": speed / self.peak} if self.peak else {}),
        }
