"""Kernels for a GPU are compared with torch's own operations on that very device, once, at first use.

A kernel that fails or gives other numbers is reported in one warning, and torch's operations take its place:
slower, and right.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from nrf.fast import scan_torch

# of norms, by the dtype of currents
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}
SHAPE = (19, 1, 2, 2, 4, 3)  # T, groups, B, C, H, W of the case; a column left over
K = 2  # temporal channels under one current
V_TH, ALPHA = 0.1, 10.0


def agrees(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Callable[[], Sequence[Tensor | None]],
    plain: Callable[[], Sequence[Tensor | None]],
) -> bool:
    """Whether kernels() gives the tensors that plain() does for currents of this dtype; if not, a warning."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            worst = max(_error(a, b) for a, b in zip(kernels(), plain(), strict=True))
        reason = f"results differ by {worst:.1e} of their size"
        if worst <= TOLERANCE[dtype]:
            return True
    except Exception as error:  # noqa: BLE001  whatever a compiler, a driver or a missing package raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    warnings.warn(
        f"{name}, {str(dtype).removeprefix('torch.')}, on {card} with torch {torch.__version__}: {reason}; "
        "taking torch's own operations, which are slower",
        stacklevel=2,
    )
    return False


def _error(actual: Tensor | None, expected: Tensor | None) -> float:
    if actual is None or expected is None:
        return 0.0 if actual is expected else float("inf")
    difference = (actual.double() - expected.double()).norm()
    error = (difference / expected.double().norm().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def case(device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """current (T, 1, B, C, H, W), decay (K,), a state (K, B, C, H, W), skips (K,); some neurons fire."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    tensors = (
        (draw(*SHAPE) - 0.2).to(dtype),
        (0.1 + 0.5 * draw(K)).to(wide),
        (0.1 * draw(K, *SHAPE[2:])).to(wide),
        draw(K).to(wide),
    )
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def scan_results(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All that the scans of a module such as `scan_torch` return, forward and backward."""
    current, decay, v0, _ = (tensor.detach() for tensor in case(device, dtype))
    current, decay, v0 = current.flatten(2), decay[:, None], v0.flatten(1)
    v_th, alpha = decay.new_full((), V_TH), decay.new_full((), ALPHA)
    voltages = kernels.integrate(current, decay, v0)
    kept, spikes, last = kernels.fire(current, decay, v0, v_th)
    probe = torch.cos(torch.arange(voltages.numel(), device=device, dtype=v0.dtype)).view_as(voltages)
    return (
        voltages,
        *kernels.integrate_backward(probe, voltages, decay, v0, 1),
        spikes,
        last,
        *kernels.fire_backward(probe, probe[0], kept, decay, v0, v_th, alpha, 1),
    )


def pooled_results(
    pooled: Callable, net: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What a function such as `pooling.pooled_neurons` returns, and all gradients of a weighted sum of it."""
    decay: Tensor | None
    v0: Tensor | None
    current, decay, v0, skips = case(device, dtype)
    if net == "ann":
        decay = v0 = None
    out, last, means = pooled(net, K, current, decay, v0, skips, V_TH, ALPHA)
    outputs = [x for x in (out, last, means if net == "lif" else None) if x is not None]
    probes = [torch.cos(torch.arange(out.numel(), device=device)).view_as(out) for out in outputs]
    loss = sum((out.double() * probe).sum() for out, probe in zip(outputs, probes, strict=True))
    given = [x for x in (current, decay, v0, skips) if x is not None]
    return *outputs, *torch.autograd.grad(loss, given)


@functools.cache
def scans(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton's scans of voltages of this dtype agree with those in torch's operations."""

    def kernels() -> tuple[Tensor, ...]:
        from nrf.fast import scan_triton  # needs Triton, which comes with torch where there is a GPU

        return scan_results(scan_triton, device, dtype)

    return agrees("Triton scans", device, dtype, kernels, lambda: scan_results(scan_torch, device, dtype))


@functools.cache
def pooling(net: str, device: torch.device, dtype: torch.dtype, kernels: Callable, plain: Callable) -> bool:
    """Whether kernels, a function such as `pooling.pooled_neurons`, agrees with plain for currents of this
    dtype."""
    ways = (functools.partial(pooled_results, way, net, device, dtype) for way in (kernels, plain))
    return agrees(f"Triton pooling of {net}", device, dtype, *ways)
