"""Heat maps to positions, and pixels to units and back, by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nrf.network.coordinates import (
    COORDINATES,
    DSNT,
    DSNTLI,
    HottestPixel,
    pixel_to_unit,
    spatial_mean,
    unit_to_pixel,
)


def maps_with(cells, shape=(3, 5)):
    """Maps (T, 1, 1, H, W), one per entry of `cells` = {(row, column): mass}."""
    maps = torch.zeros(len(cells), 1, 1, *shape, dtype=torch.float64)
    for one, masses in zip(maps, cells, strict=True):
        for (row, column), mass in masses.items():
            one[0, 0, row, column] = mass
    return maps


def test_pixels_are_edges_and_units_their_field():
    positions = torch.tensor([[0.0, 0.0], [300.0, 200.0], [150.0, 100.0], [75.0, 150.0]])
    units = pixel_to_unit(positions, (300, 200))
    assert units.tolist() == [[-1, -1], [1, 1], [0, 0], [-0.5, 0.5]]
    assert torch.equal(unit_to_pixel(units, (300, 200)), positions)


@given(
    st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    st.tuples(st.integers(16, 999), st.integers(16, 999)),
)
def test_pixel_round_trip(position, resolution):
    position = torch.tensor(position, dtype=torch.float64)
    back = unit_to_pixel(pixel_to_unit(position, resolution), resolution)
    torch.testing.assert_close(back, position, rtol=1e-12, atol=1e-9)


def test_conversion_keeps_dtype_and_takes_a_tensor_of_the_resolution():
    position = torch.zeros(4, 2, dtype=torch.float64)
    for resolution in ((48, 32), torch.tensor([48, 32])):
        assert pixel_to_unit(position, resolution).dtype == torch.float64
        assert unit_to_pixel(position, resolution).tolist() == [[24, 16]] * 4


@pytest.mark.parametrize(
    "masses, mean",
    [
        ({(0, 0): 1}, [-1, -1]),
        ({(2, 4): 1}, [1, 1]),
        ({(0, 4): 1}, [-1, 1]),  # height first
        ({(1, 1): 1}, [0, -0.5]),
        ({(0, 0): 0.25, (2, 1): 0.75}, [0.5, -0.625]),
        ({}, [0, 0]),
    ],
)
def test_dsnt_is_the_mean_position(masses, mean):
    assert spatial_mean(maps_with([masses]))[0, 0, 0].tolist() == mean
    positions, state = DSNT()(maps_with([masses]))
    assert positions.tolist() == [[[mean]]] and state is None


def test_dsntli_sums_leakily_to_a_gain_of_one_over_its_rate():
    constant = maps_with([{(0, 4): 1}] * 40)
    positions, state = DSNTLI().double()(constant)
    along_w = positions[:, 0, 0, 1].detach()
    assert along_w[:3].tolist() == pytest.approx([1, 1.1, 1.11], rel=1e-6)
    assert along_w[-1].item() == pytest.approx(1 / 0.9, rel=1e-6)
    assert torch.equal(positions[:, 0, 0, 0], -positions[:, 0, 0, 1])
    assert torch.equal(state, positions[-1])


def test_dsntli_has_a_rate_per_axis_and_its_gradient():
    coordinate = DSNTLI().double()
    assert [name for name, _ in coordinate.named_parameters()] == ["li_tm"]
    with torch.no_grad():
        coordinate.li_tm.copy_(torch.tensor([0.25, 1.0]))
    positions, _ = coordinate(maps_with([{(2, 4): 1}, {(2, 4): 0.5}]))
    assert positions[:, 0, 0].tolist() == [[1, 1], [1.25, 0.5]]
    positions[1].sum().backward()
    assert coordinate.li_tm.grad.tolist() == [-1, -1]  # d/d rate of (1 - rate) * 1 + 0.5


def test_dsntli_carries_its_state():
    maps = torch.rand(7, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coordinate = DSNTLI().double()
    whole, last = coordinate(maps)
    first, state = coordinate(maps[:3])
    second, state = coordinate(maps[3:], state)
    assert torch.equal(torch.cat([first, second]), whole) and torch.equal(state, last)
    restarted, _ = coordinate(maps[3:])
    assert not torch.allclose(restarted, whole[3:])


def test_hottest_pixel_is_a_cell_centre_with_the_gradient_of_dsnt():
    maps = maps_with([{(0, 3): 0.4, (2, 1): 0.6}, {(1, 4): 0.2}]).requires_grad_()
    positions, state = HottestPixel()(maps)
    assert positions[:, 0, 0].tolist() == [[1, -0.5], [0, 1]] and state is None
    (gradient,) = torch.autograd.grad((positions * torch.tensor([2.0, 3.0])).sum(), maps)
    (of_mean,) = torch.autograd.grad((spatial_mean(maps) * torch.tensor([2.0, 3.0])).sum(), maps)
    assert torch.equal(gradient, of_mean) and gradient.abs().max() > 0


def test_every_published_name_has_its_coordinate():
    assert COORDINATES == {"dsnt": DSNT, "dsntli": DSNTLI, "pixel": HottestPixel}


@pytest.mark.parametrize("name", COORDINATES)
def test_constants_are_made_where_the_heat_maps_are(name):
    """On any device: here one that holds no numbers."""
    coordinate = COORDINATES[name]().to("meta")
    positions, _ = coordinate(torch.empty(2, 1, 3, 4, 5, device="meta"))
    assert positions.shape == (2, 1, 3, 2) and positions.device.type == "meta"
    assert pixel_to_unit(positions, (30, 40)).device.type == "meta"
