"""What several test files use: the project's own training step, and errors relative to the largest value."""

import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from tensorboard.summary.writer import event_file_writer
from torch import nn

from nrf.fast import native
from nrf.network.coordinates import COORDINATES, pixel_to_unit
from nrf.network.losses import REGULARISERS, coordinate_distance, gaussian_targets, spike_regulariser
from nrf.network.model import SpatioTemporalModel
from nrf.network.reference import RECTIFY

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("project")

# logs are read in the order of their names, which end in a count per process: all of one width here
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


def build_system(config, seed=0):
    """Network and coordinate under their published names, in float64."""
    torch.manual_seed(seed)
    modules = {"net": SpatioTemporalModel(config), "coordinate": COORDINATES[config.coordinate]()}
    return nn.ModuleDict(modules).double()


def run_system(system, warmup, x, labels_px):
    """One training step up to its loss: what `oracles.reference_run` returns, and the target maps."""
    config = system["net"].config
    with torch.no_grad():
        response = system["net"](warmup)
        _, position = system["coordinate"](RECTIFY[config.rectification](response.heatmaps))
    response = system["net"](x, response.state)
    heatmaps = RECTIFY[config.rectification](response.heatmaps)
    coordinates, position = system["coordinate"](heatmaps, position)
    labels = pixel_to_unit(labels_px, config.resolution)
    targets = gaussian_targets(labels, heatmaps.shape[-2:])
    terms = {
        "norm": coordinate_distance(coordinates, labels),
        "reg": REGULARISERS[config.regularization](heatmaps, targets) * config.regularization_scale,
    }
    if config.net == "lif":
        terms["spike_reg"] = spike_regulariser(response.activities)
    terms["loss"] = sum(terms.values())
    return SimpleNamespace(
        heatmaps=heatmaps,
        coordinates=coordinates,
        activities=response.activities,
        state=response.state,
        terms=terms,
        targets=targets,
    )


def relative_error(actual, wanted):
    """Largest difference over the largest wanted value; infinite where shapes differ; 0 of wanted zeros only
    if the actual values are zeros too."""
    if actual.shape != wanted.shape:
        return float("inf")
    difference = (actual.double() - wanted.double()).abs().max()
    return (difference / wanted.double().abs().max().clamp_min(1e-300)).item()


@pytest.fixture(scope="session")
def project():
    """`build(config, seed)`, `run(system, warmup, x, labels_px)` and `error(actual, wanted)`."""
    return SimpleNamespace(build=build_system, run=run_system, error=relative_error)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """Skips without a C++ compiler that takes our options; with one, native.cpp has to build."""
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *native.FLAGS, "-x", "c++", "-", "-o"]
    command.append(tmp_path_factory.mktemp("compiler") / "nothing.so")
    if not shutil.which(command[0]) or subprocess.run(command, input=b"", capture_output=True).returncode:
        pytest.skip("no C++ compiler with OpenMP")
    assert native.load() is not None


@pytest.fixture
def kernels(request, monkeypatch):
    """Scans for a CPU: "compiled" as they are, "torch" as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    else:
        request.getfixturevalue("compiler")
    return request.param


@pytest.fixture(scope="session")
def interpreted():
    """`interpreted(name, BLOCK=64)`: a module of Triton kernels with other constants, interpreted, which
    Triton decides where they are defined."""

    def load(name, **constants):
        pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            path = Path(native.__file__).with_name(f"{name}.py")
            spec = importlib.util.spec_from_file_location(f"interpreted_{name}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        vars(module).update(constants)
        return module

    return load
