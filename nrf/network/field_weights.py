"""Convolution weights that are affine Gaussian derivatives, at the start and all through training.

    weight[o, i] = amplitude[o, i] * kernel(sigma_u[f], sigma_v[f], phi[f]; order of f)       f = field[o, i]

What trains are the deviations and the angle of each field and one amplitude per pair of channels, instead of
every tap.  Source: paper, Methods (spatial receptive fields); FIDELITY 53.
"""

import math

import torch
from torch import Tensor, nn

from nrf.theory.affine_gaussian import affine_kernels, field_from_axes
from nrf.theory.receptive_fields import DERIVATIVES, SIGMA_RANGE, derivative_index, exact_axes

NO_FLOAT64 = ("mps",)  # types of devices: Apple's GPUs


class FieldWeights(nn.Module):
    """Stands for the `Conv2d` whose `weight` a layer convolves with: (out, in, size, size), computed again by
    each access, in the dtype of the amplitudes.

    rows: (F, 5), the fields of a bank.  size: of the kernels, odd.  field: (out, in), the field of each pair
    of channels.  amplitude: (out, in), its factor at the start.  Parameters: `sigma_logit` (F, 2), where ln
    sigma stands between its bounds (`sigma` gives pixels), `phi_rad` (F,) and `amplitude` (out, in)."""

    order: Tensor
    field: Tensor

    def __init__(self, rows: Tensor, size: int, field: Tensor, amplitude: Tensor) -> None:
        super().__init__()
        self.size = size
        self.bounds = math.log(SIGMA_RANGE[0]), math.log(SIGMA_RANGE[1] * size)
        self.register_buffer("order", derivative_index(rows), persistent=False)
        self.register_buffer("field", field, persistent=False)
        low, high = self.bounds
        logits = [torch.logit((sigma.log() - low) / (high - low), 1e-3) for sigma in exact_axes(rows, size)]
        self.sigma_logit = nn.Parameter(torch.stack(logits, -1).float())
        self.phi_rad = nn.Parameter(rows[:, 1].clone().float())
        self.amplitude = nn.Parameter(amplitude.clone())

    @property
    def sigma(self) -> Tensor:
        """Deviations in pixels along and across the direction of each field, float64 (F, 2)."""
        low, high = self.bounds
        return torch.exp(low + (high - low) * torch.sigmoid(_float64(self.sigma_logit)))

    @property
    def weight(self) -> Tensor:
        with torch.autocast(self.amplitude.device.type, enabled=False):
            sigma_u, sigma_v = self.sigma.unbind(-1)
            fields = field_from_axes(sigma_u, sigma_v, _float64(self.phi_rad))
            kernels = affine_kernels(fields, DERIVATIVES, self.size)
            kernels = kernels[
                torch.arange(len(kernels), device=kernels.device), self.order.to(kernels.device)
            ]
            kernels = kernels.to(self.amplitude.dtype).to(self.amplitude.device)
            return self.amplitude[..., None, None] * kernels[self.field]


def _float64(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type in NO_FLOAT64 else tensor).double()
