"""Receptive fields and fused neurons in a network of your own: in which direction do bars of events move?

python3 -m examples.own_network    # in a clone; anywhere else, with nrf installed, python3 own_network.py
"""

import torch
from torch import nn

from nrf.network.layers import SpatialRF, SpatioTemporalRF, TemporalRF
from nrf.theory.receptive_fields import spatial_kernels, spatial_parameters


def bars(n, T=24, size=32):
    """Events (T, n, 2, size, size) of bars that move up or down (0, 1) or left or right (2, 3), in noise."""
    kinds, start = torch.randint(4, (n,)), torch.randint(size, (n,))
    events = (torch.rand(T, n, 2, size, size) < 0.01).float()
    for i, kind in enumerate(kinds.tolist()):
        for t in range(T):
            at = (start[i] + (t if kind % 2 else -t)) % size
            events[t, i, t % 2].select(kind // 2, at).fill_(1.0)
    return events, kinds


class Classifier(nn.Module):
    def __init__(self, net="li"):
        super().__init__()
        rows = spatial_parameters(n_scales=2, n_angles=2, n_ratios=1)  # a bank of affine Gaussian derivatives
        spatial = SpatialRF(2, len(rows), kernel_size=9)
        spatial.spatial.weight.data = spatial_kernels(rows, size=9)[:, None].repeat(1, 2, 1, 1)
        taus = (torch.tensor(rate_hz) for rate_hz in (180.0, 45.0))  # one layer for each time constant
        self.layers = nn.ModuleList(SpatioTemporalRF(spatial, TemporalRF(net, rate_hz)) for rate_hz in taus)
        self.read_out = nn.Sequential(nn.BatchNorm1d(2 * len(rows)), nn.Linear(2 * len(rows), 4))

    def forward(self, events):
        seen = torch.cat([layer(events)[0] for layer in self.layers], 2)  # T n 2*fields 16 16
        return self.read_out(seen.mean((0, 3, 4)))


def train(steps=30, n=16, net="li"):
    """The share of new bars whose direction is recognised."""
    torch.manual_seed(0)
    network = Classifier(net)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        events, kinds = bars(n)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(events), kinds).backward()
        optimizer.step()
    events, kinds = bars(64)
    return (network(events).argmax(1) == kinds).float().mean().item()


if __name__ == "__main__":
    print(f"{100 * train():.0f} % right; chance is 25 %")
