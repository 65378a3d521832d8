"""Exported networks compute what the network does, in the programs that read them; the rest is named."""

import numpy as np
import pytest
import torch

from nrf.__main__ import main
from nrf.data.dataset import DataError
from nrf.network.coordinates import unit_to_pixel
from nrf.results import export as exports
from nrf.results.export import FORMATS, export, flatten, unflatten
from nrf.training.checkpoints import Trained
from nrf.training.module import ShapesModel

SMALL = {"n_spatial_scales": 1, "n_temporal_scales": 2, "n_angles": 1, "n_ratios": 1, "timesteps": 3}
SETTINGS = {
    "li": {"net": "li"},
    "lif, skips, own weights, odd sizes": {
        "net": "lif",
        "skip_connections": 1,
        "weight_sharing": 0,
        "resolution": (33, 47),
    },
    "ReLU, normalised, stacked": {"net": "ann", "batch_normalization": 1, "stack_frames": 2},
}


def trained(**settings):
    torch.manual_seed(0)
    model = ShapesModel(**SMALL | {"resolution": (32, 48)} | settings).eval()
    with torch.no_grad():
        for channel in model.net.channels:
            for layer in channel.spatiotemporal:
                layer.spatial.spatial.weight.mul_(3)
                if layer.spatial.norm is not None:
                    layer.spatial.norm.running_mean.uniform_(-1, 1)
    return Trained("a.ckpt", model, dict(model.hparams), None)


def frames(config, T, seed=5):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.full((T, 1, config.in_channels, *config.resolution), 0.03)
    return torch.bernoulli(rates, generator=generator)


LI, LIF, RELU = SETTINGS


@pytest.mark.parametrize(
    ("to", "stream", "name"),
    [("pt2", True, LI), ("pt2", False, LIF), ("onnx", False, LI), ("onnx", True, LIF), ("onnx", False, RELU)],
)
def test_what_is_written_computes_what_the_network_does(tmp_path, name, stream, to):
    if to == "onnx":
        runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of requirements-dev.txt")
    network = trained(**SETTINGS[name])
    path = tmp_path / f"a.{to}"
    done = export(network, to, path, stream, frames=None if stream else 2)
    assert "pixels" in done.difference and path.stat().st_size > 0
    x = frames(network.model.config, 4 if stream else 2)
    with torch.no_grad():
        tracking = network.model(x)
    expected = unit_to_pixel(tracking.coordinates, network.model.config.resolution)
    assert expected.std() > 0.01
    if to == "pt2":
        module = torch.export.load(path).module()
        run = module
    else:
        session = runtime.InferenceSession(path)

        def run(*tensors):
            names = [i.name for i in session.get_inputs()]
            assert names == list(done.inputs)
            arrays = (np.asarray(t) for t in tensors)
            return [torch.from_numpy(a) for a in session.run(None, dict(zip(names, arrays, strict=True)))]

    if stream:
        state = [torch.zeros(shape) for shape in list(done.inputs.values())[1:]]
        found, maps = [], []
        for frame in x:
            position, heatmap, *state = run(frame, *state)
            found.append(position)
            maps.append(heatmap)
        found, maps = torch.stack(found), torch.stack(maps)
    else:
        found, maps = run(x)[:2]
    assert (found - expected).abs().max() < 1e-3
    assert (maps - tracking.heatmaps).abs().max() < 1e-5 * tracking.heatmaps.abs().max()


@pytest.mark.parametrize("skips", [0, 1])
def test_nir_holds_the_spiking_layers_and_names_the_rest(tmp_path, skips):
    nir = pytest.importorskip("nir", reason="needs nir, of requirements-dev.txt")
    network = trained(net="lif", skip_connections=skips)
    done = export(network, "nir", tmp_path / "a.nir", frames=6)
    assert "max-pooling by 2" in done.left_out and done.difference.startswith("0 of ")
    graph = nir.read(tmp_path / "a.nir", type_check=False)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds.count("Conv2d") == kinds.count("LIF") == 6 and kinds.count("AvgPool2d") == 5
    assert kinds.count("Scale") == 12 * skips and kinds.count("Output") == 2
    rate = network.model.net.channels[1].spatiotemporal[0].temporal.tau_mem_inv.item()
    assert np.allclose(graph.nodes["lif_1_2"].tau, 1 / rate)


@pytest.mark.parametrize(
    "settings", [{"net": "li"}, {"net": "ann"}, {"net": "lif", "batch_normalization": 1}]
)
def test_what_nir_lacks_is_refused(tmp_path, settings):
    pytest.importorskip("nir", reason="needs nir, of requirements-dev.txt")
    with pytest.raises(DataError, match="cannot be exported: .* NIR has no"):
        export(trained(**settings), "nir", tmp_path / "a.nir")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_differs_is_not_written(tmp_path, monkeypatch):
    def wrong(*arguments):
        content, run = exports.to_pt2(*arguments)
        return content, lambda *tensors: [part + 0.02 for part in run(*tensors)]

    monkeypatch.setitem(FORMATS, "pt2", wrong)
    with pytest.raises(DataError, match="not written: positions differ by 0.02 pixels"):
        export(trained(net="li"), "pt2", tmp_path / "a.pt2", frames=1)
    assert not list(tmp_path.iterdir())


def test_states_are_taken_apart_and_put_together():
    state = trained(net="lif").model(frames(trained().model.config, 1)).state
    flat = flatten(state)
    again = unflatten(state, list(flat.values()))
    assert len(flat) == 5 and flatten(again).keys() == flat.keys() and type(again) is type(state)
    assert all(one is other for one, other in zip(flatten(again).values(), flat.values(), strict=True))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nrf.commands.export.load_trained", lambda path: trained(net="lif"))
    out = str(tmp_path / "a.pt2")
    assert main(["export", "a.ckpt", "--to", "pt2", "--out", out, "--frames", "2"]) == 0
    said = capsys.readouterr().out
    assert (
        "a.pt2: at most" in said
        and "in: frames [2, 1, 2, 32, 48]" in said
        and "positions_px [2, 1, 3, 2]" in said
    )
    pytest.importorskip("nir", reason="needs nir, of requirements-dev.txt")
    assert main(["export", "a.ckpt", "--to", "nir", "--out", str(tmp_path / "a.nir")]) == 0
    assert "not in the file: max-pooling by 2; mean over" in capsys.readouterr().out
    for words, message in (
        (["--to", "pt2", "--frames", "0"], "--frames 0: expected 1 or more"),
        (["--to", "pt2", "--frames", "2", "--stream"], "expected --frames or --stream"),
    ):
        assert main(["export", "a.ckpt", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
