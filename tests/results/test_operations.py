"""Operations counted from responses are those that loops over every synapse count."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nrf.commands import evaluate as command
from nrf.config import Config
from nrf.fast.pooling import average_pool, max_pool
from nrf.network.model import SpatioTemporalModel
from nrf.network.neurons import respond
from nrf.results.operations import Operations, count

ROOT = Path(__file__).resolve().parents[2]
FIELD = (19, 18)  # an odd row, which pooling leaves out


def network(net, **more):
    torch.manual_seed(0)
    sizes = dict(n_spatial_scales=1, n_temporal_scales=2, n_angles=1, n_ratios=1, n_classes=2, dropout=0.0)
    model = SpatioTemporalModel(Config(net=net, resolution=FIELD, **sizes | more))
    with torch.no_grad():
        for layer in model.channels[0].spatiotemporal:  # the others share its weights
            layer.spatial.spatial.weight.mul_(3)  # so that all layers respond
    return model.eval()


def fan_out(h, w, N, k, height, width):
    """Neurons that a cell at (h, w) of a "same" convolution has a synapse to, one by one."""
    taps = itertools.product(range(-(k // 2), k // 2 + 1), repeat=2)
    return N * sum(0 <= h + dh < height and 0 <= w + dw < width for dh, dw in taps)


def by_hand(net, frames, state):
    """`count`, channel by channel and synapse by synapse."""
    config, dense, events, graded, neurons = net.config, 0, 0, 0, 0
    spikes, frames = config.net == "lif" and not config.skip_connections, frames.float()
    one = not net.neuron.has_tau and not config.skip_connections
    read_out = net.classifier[0].weight
    for k, channel in enumerate(net.channels[:1] if one else net.channels):
        out, binary = frames, True
        for i, layer in enumerate(channel.spatiotemporal):
            weight, pooled = layer.spatial.spatial.weight, average_pool(out)
            N, C, size, _ = weight.shape
            height, width = pooled.shape[-2:]
            for h, w in itertools.product(range(height), range(width)):
                fan = fan_out(h, w, N, size, height, width)
                dense += fan * C * len(frames) * frames.shape[1]
                sources = out[..., 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
                if binary:
                    events += fan * int(sources.sum())
                else:
                    graded += fan * int((pooled[..., h, w] != 0).sum())
            before = state.fields[0][i]
            before = before and type(before)(*(variable[k] for variable in before))
            current = F.conv2d(pooled.flatten(0, 1), weight, padding="same").unflatten(0, pooled.shape[:2])
            rate = layer.temporal.tau_mem_inv if net.neuron.has_tau else None
            out, _ = respond(config.net, current, rate, before, backend="loop")
            out = out.relu() if net.neuron.rectified else out
            out = out + layer.skip_weight * current if config.skip_connections else out
            neurons, binary = neurons + out.numel(), spikes
        assert out.any()
        cells = max_pool(out)
        active = int((cells != 0).sum()) * config.n_classes * 25
        events, graded = events + active * spikes, graded + active * (not spikes)
        dense += cells.numel() * config.n_classes * 25
    read = F.conv_transpose2d(cells.flatten(0, 1), read_out)
    return Operations(len(frames) * frames.shape[1], dense, events, graded, neurons + read.numel())


@pytest.mark.parametrize(
    "net, more", [("li", {}), ("lif", {}), ("ann", {}), ("lif", {"skip_connections": 1})]
)
@torch.no_grad()
def test_counts_are_those_of_loops_over_synapses(net, more):
    model = network(net, **more)
    before, frames = (torch.rand(2, 4, 2, 2, *FIELD) < 0.3).to(torch.uint8)
    state = model(before).state
    counted = count(model, frames, state)
    assert counted == by_hand(model, frames, state)
    assert counted.events > 0
    assert (counted.graded == 0) == (net == "lif" and not more)


def test_dense_counts_are_torchs_less_the_padding():
    """torch's counter takes taps on the padding too, and channels that share a convolution once."""
    model = network("li", n_temporal_scales=1, convolution="direct")  # what the counter knows
    frames = torch.zeros(3, 2, 2, *FIELD)
    flops, inside = FlopCounterMode(display=False), 0
    with flops, torch.no_grad():
        model(frames)
    side = (9, 4, 2), (9, 4, 2)
    for layer, height, width in zip(model.channels[0].spatiotemporal, *side, strict=True):
        N, C, k, _ = layer.spatial.spatial.weight.shape
        taps = [sum(max(0, n - abs(d)) for d in range(-(k // 2), k // 2 + 1)) for n in (height, width)]
        inside += 6 * N * C * (height * width * k * k - taps[0] * taps[1])
    assert count(model, frames).dense == flops.get_total_flops() // 2 - inside


def test_sums_of_frames_and_batch_normalisation():
    """Counts above 1 are graded; what normalisation does is part of the weights."""
    frames = (torch.rand(3, 1, 2, *FIELD) < 0.3).float()
    plain, summed = count(network("lif"), frames), count(network("lif"), 2 * frames)
    assert summed.events < plain.events and summed.graded > 0
    normalised = count(network("lif", batch_normalization=1), 0 * frames)
    assert normalised.dense == plain.dense and normalised.graded == 0


def table_rows(markdown):
    """Figures by network, of the rows that have some."""
    lines = [line for line in markdown.splitlines() if line.count("|") > 2]
    rows = {line.split("|")[1].strip(): re.findall(r"\d+\.\d+", line) for line in lines}
    return {name: [float(figure) for figure in figures] for name, figures in rows.items() if figures}


def test_the_readmes_table_is_what_evaluate_says(capsys):
    arguments = [
        str(ROOT / "weights/recordings"),
        *map(str, (ROOT / "weights").glob("*.ckpt")),
        "--split=all",
    ]
    assert command.main([*arguments, "--operations"]) == 0
    said = table_rows(capsys.readouterr().out.split("in thousands\n")[1].split("\n\n")[0])
    shown = table_rows((ROOT / "README.md").read_text().split("dense MACs |")[1].split("\n\n")[0])
    assert len(said) == 4 and said.keys() == shown.keys()
    for network_, figures in said.items():  # to what another processor's rounding may do to a few spikes
        assert figures == pytest.approx(shown[network_], rel=0.01)
    assert command.main(arguments[:2] + arguments[-1:]) == 0
    assert "Operations" not in capsys.readouterr().out
