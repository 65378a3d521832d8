"""What several test files use: a step of the model that trains, and errors relative to the largest value."""

import dataclasses
import importlib.util
import lzma
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import hypothesis
import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from nrf.data.dataset import EventBatch
from nrf.fast import native
from nrf.training.module import ShapesModel

GOLDEN = Path(__file__).with_name("golden")

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("project")

# logs are read in the order of their names, which end in a count per process: all of one width here
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


def build_model(config, seed=0):
    """The model that trains, in float64."""
    torch.manual_seed(seed)
    return ShapesModel(**dataclasses.asdict(config)).double()


def sparse_batch(warmup, x, labels_px):
    """Both halves (t, B, 2, H, W) of a window and its labels (T, B, N, 2) as a loader hands them over."""
    cells = torch.cat([warmup, x]).transpose(0, 1).flatten(1)
    events = [sample.nonzero().flatten().int() for sample in cells]
    counts = torch.tensor([len(own) for own in events])
    return EventBatch(torch.cat(events), counts, labels_px.transpose(0, 1))


def training_step(model, warmup, x, labels_px):
    """`ShapesModel.training_step` on the events of these frames: its tracking, loss and what it logs.

    Returns the fields of its `Tracking`; terms: the loss, differentiable, and the others as logged; error_px.
    """
    seen = []
    hook = model.register_forward_hook(lambda module, inputs, tracking: seen.append(tracking))
    with mock.patch.multiple(model, log=mock.DEFAULT, log_dict=mock.DEFAULT) as logged:
        result = model.training_step(sparse_batch(warmup, x, labels_px), 0)
    hook.remove()
    terms, error = logged["log_dict"].call_args_list[0].args[0], logged["log"].call_args_list[0].args
    assert error[0] == "train/error_px" and torch.equal(terms["train/loss"], result["loss"])
    terms = {name.removeprefix("train/"): value for name, value in terms.items()}
    return SimpleNamespace(
        **seen[-1]._asdict(), tracking=seen[-1], terms=terms | {"loss": result["loss"]}, error_px=error[1]
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
    """`build(config, seed)`, `run(model, warmup, x, labels_px)` and `error(actual, wanted)`."""
    return SimpleNamespace(build=build_model, run=training_step, error=relative_error)


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """`golden("li_shared.pt")`: the path of a file of tests/golden, unpacked."""
    folder = tmp_path_factory.mktemp("golden")

    def unpacked(name):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
        return path

    return unpacked


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """Skips without a C++ compiler that takes our options; with one, every source has to build."""
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *native.FLAGS, "-x", "c++", "-", "-o"]
    command.append(tmp_path_factory.mktemp("compiler") / "nothing.so")
    if not shutil.which(command[0]) or subprocess.run(command, input=b"", capture_output=True).returncode:
        pytest.skip("no C++ compiler with OpenMP")
    assert all(native.load(source) is not None for source in native.CONTRACTION)


@pytest.fixture
def kernels(request, monkeypatch):
    """Scans for a CPU: "compiled" as they are, "torch" as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda *_: None)
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
