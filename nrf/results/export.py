"""Trained networks in formats that other programs run, each checked against the network before it is written.

    onnx   onnxruntime and what reads ONNX        pt2   torch.export.load, torch's compilers, ExecuTorch
    nir    neuromorphic hardware and simulators (`nrf/results/export_nir.py`)

A window is all frames at once, from rest; a stream is one frame, with the state in and out.
"""

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nrf.data.dataset import DataError
from nrf.network.coordinates import unit_to_pixel
from nrf.results import export_nir
from nrf.system.files import write_whole
from nrf.training.checkpoints import Trained
from nrf.training.module import ShapesModel

PLAIN = {"temporal_backend": "loop", "convolution": "direct", "checkpoint_activations": 0, "compile": 0}
EVENT_RATE = 0.02  # of the random frames that an export is checked on, events per cell
STREAMED = 5  # frames that a stream is checked on
NIR_TOLERANCE = 1e-4  # of the spikes may fall on the other side of the threshold by rounding
Run = Callable[..., Sequence[Tensor]]  # of an exported network
TOLERANCE_PX = 0.01  # positions further off are no copy of the network's


class ExportError(DataError):
    """What cannot be exported, or came out wrong; the message says what."""


class Exported(NamedTuple):
    path: Path
    difference: str  # the largest from the network, in words
    inputs: dict[str, tuple[int, ...]]  # names and shapes
    outputs: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...] = ()  # what the format cannot hold


class Window(nn.Module):
    """Frames (T, 1, C, H, W) to positions in pixels (T, 1, N, 2) and heat maps (T, 1, N, h, w), from rest."""

    def __init__(self, model: ShapesModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        tracking = self.model(frames)
        return unit_to_pixel(tracking.coordinates, self.model.config.resolution), tracking.heatmaps


class Stream(nn.Module):
    """One frame (1, C, H, W) and the state's tensors to a position (1, N, 2), heat maps, the state after."""

    def __init__(self, model: ShapesModel, state: Any) -> None:
        super().__init__()
        self.model, self.like = model, state

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        tracking = self.model(frame[None], unflatten(self.like, list(state)))
        position_px = unit_to_pixel(tracking.coordinates[0], self.model.config.resolution)
        return position_px, tracking.heatmaps[0], *flatten(tracking.state).values()


def flatten(state: Any, name: str = "state") -> dict[str, Tensor]:
    """{name: tensor} of a state of tuples of tensors; None has none."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    parts: dict[str, Tensor] = {}
    for i, part in enumerate(state or ()):
        label = state._fields[i] if hasattr(state, "_fields") else i
        parts |= flatten(part, f"{name}_{label}")
    return parts


def unflatten(like: Any, tensors: list[Tensor]) -> Any:
    """The inverse: a state of the structure of another, out of a list of tensors, which is emptied."""
    if isinstance(like, torch.Tensor):
        return tensors.pop(0)
    if like is None:
        return None
    parts = [unflatten(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def plain_model(trained: Trained) -> ShapesModel:
    """The same network in torch's own operations alone."""
    model = ShapesModel(**trained.settings | PLAIN)
    model.load_state_dict(trained.model.state_dict())
    return model.eval()


@torch.no_grad()
def export(
    trained: Trained, to: str, path: str | Path, stream: bool = False, frames: int | None = None
) -> Exported:
    """Write a trained network; returns what was `Exported`.  ExportError where the copy is none."""
    if to not in FORMATS:
        raise ValueError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    model, config = plain_model(trained), trained.model.config
    T = STREAMED if stream else frames or config.timesteps
    rates = torch.full((T, 1, config.in_channels, *config.resolution), EVENT_RATE)
    x = torch.bernoulli(rates, generator=torch.Generator().manual_seed(0))
    if to == "nir":
        return export_to_nir(trained, path, model, x, stream)
    expected = trained.model(x)
    module: Stream | Window
    arguments: tuple[Tensor, ...]
    if stream:
        rest = rest_of(model(x[:1]).state)
        states = flatten(rest)
        module, arguments = Stream(model, rest), (x[0], *states.values())
        inputs = ["frame", *states]
        outputs = ["position_px", "heatmaps", *(f"{name}_after" for name in states)]
    else:
        module, arguments, inputs, outputs = Window(model), (x,), ["frames"], ["positions_px", "heatmaps"]
    content, run = FORMATS[to](module.eval(), arguments, inputs, outputs)
    found = streamed(run, x, arguments[1:]) if stream else run(x)[:2]
    pairs = zip(
        found, (unit_to_pixel(expected.coordinates, config.resolution), expected.heatmaps), strict=True
    )
    position_px, heatmap = ((one - other).abs().max().item() for one, other in pairs)
    if not position_px <= TOLERANCE_PX:
        raise ExportError(f"{path}: not written: positions differ by {position_px:.3g} pixels")
    write_whole(path, content)
    shapes = dict(zip(inputs, (tuple(a.shape) for a in arguments), strict=True))
    results = dict(zip(outputs, (tuple(a.shape) for a in module(*arguments)), strict=True))
    difference = (
        f"at most {position_px:.2g} pixels and {heatmap:.2g} of a heat map from the network in {T} frames"
    )
    return Exported(Path(path), difference, shapes, results)


def export_to_nir(
    trained: Trained, path: str | Path, model: ShapesModel, x: Tensor, stream: bool
) -> Exported:
    """`export` to NIR, whose graphs are streams: spikes are compared at the split."""
    config, T = model.config, len(x)
    if problem := export_nir.problem(config):
        raise ExportError(f"{trained.path}: cannot be exported: {problem}")
    for name in ("nir", "nirtorch"):
        _package(name, "nir nirtorch")
    content, expected = export_nir.write(model), export_nir.spikes_of(model, x)
    found = export_nir.run(content, x)
    differ = sum((found[k] != expected[k]).sum().item() for k in expected)
    largest = max((found[k] - expected[k]).abs().max().item() for k in expected)
    cells = sum(spikes.numel() for spikes in expected.values())
    if differ > cells * NIR_TOLERANCE:
        raise ExportError(f"{path}: not written: {differ} of {cells} spikes differ, by at most {largest:.2g}")
    write_whole(path, content)
    size = (1, config.in_channels, *config.resolution)
    outputs = {f"spikes_{k}": tuple(spikes.shape[1:]) for k, spikes in expected.items()}
    total = sum(spikes.sum().item() for spikes in expected.values())
    difference = (
        f"{differ} of {cells} cells differ from the network's in {T} frames of {total:.0f} spikes, by at "
        f"most {largest:.2g}"
    )
    return Exported(Path(path), difference, {"frames": size}, outputs, export_nir.LEFT_OUT)


def rest_of(state: Any) -> Any:
    """The state before anything came: zeros."""
    return unflatten(state, [torch.zeros_like(tensor) for tensor in flatten(state).values()])


def streamed(run: Run, frames: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """Positions and heat maps (T, ...) of a stream over frames (T, 1, C, H, W)."""
    steps = []
    for frame in frames:
        position, heatmaps, *state = run(frame, *state)
        steps.append((position, heatmaps))
    return [torch.stack(part) for part in zip(*steps, strict=True)]


def to_pt2(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[bytes, Run]:
    program = torch.export.export(module, arguments, strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    loaded = torch.export.load(content).module()
    return content.getvalue(), loaded


def to_onnx(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[bytes, Run]:
    runtime = _package("onnxruntime", "onnx onnxscript onnxruntime")
    _package("onnxscript", "onnx onnxscript onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            module,
            arguments,
            input_names=inputs,
            output_names=outputs,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # as with dynamo=False
    content = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        feed = dict(zip(inputs, (np.ascontiguousarray(tensor) for tensor in tensors), strict=True))
        return [torch.from_numpy(array) for array in session.run(outputs, feed)]

    return content, run


def _package(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ExportError(f"needs {name}: pip install {install}") from None


FORMATS: dict[str, Callable[..., Any]] = {"onnx": to_onnx, "pt2": to_pt2, "nir": export_to_nir}
