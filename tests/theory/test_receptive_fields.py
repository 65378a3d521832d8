"""Kernel banks against the published ones and the installed Norse's, and the theory's own properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from norse.torch.functional import receptive_field as norse_fields

from nrf.theory.affine_gaussian import affine_gaussian, field_from_axes
from nrf.theory.receptive_fields import (
    DERIVATIVES,
    DOMAIN,
    KERNEL_SIZES,
    MIXING_GAIN,
    SIGMA_RANGE,
    SMALLEST_SIGMA,
    bank_layout,
    bank_weights,
    covariance_matrix,
    derivative_index,
    exact_axes,
    gaussian_kernels,
    spatial_angles,
    spatial_kernels,
    spatial_parameters,
    temporal_rates_hz,
)

FILES = {"published": "kernels_norse2025.pt", "norse-1.1.0": "kernels_norse110.pt"}
COUNTS = {"paper": (4, 4, 3), "small": (2, 3, 2)}  # scales, angles, ratios


def largest_error(actual, wanted):
    return ((actual - wanted).abs().max() / wanted.abs().max()).item()


# --- banks ---


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("family", FILES)
def test_banks_are_the_published_ones(golden, family, counts):
    published = torch.load(golden(FILES[family]), weights_only=True)[counts]
    rows = spatial_parameters(*COUNTS[counts], family=family)
    wanted_rows = published["rows"][:, [0, 1, 2, -2, -1]]  # the 2025 rows also have a position, always 0
    torch.testing.assert_close(rows, wanted_rows, rtol=1e-6, atol=1e-6)
    for size in KERNEL_SIZES:
        kernels = spatial_kernels(rows, size, family)
        assert kernels.dtype == torch.float32
        assert largest_error(kernels, published[f"size{size}"]) < 1e-6


@pytest.mark.parametrize("counts", [(4, 4, 3), (2, 3, 2), (1, 1, 1), (3, 2, 4)])
def test_norse_family_is_the_installed_norse(counts):
    n_scales, n_angles, n_ratios = counts
    rows = norse_fields.spatial_parameters(
        2.0 ** torch.arange(n_scales),
        spatial_angles(n_angles),
        torch.sqrt(1.5 ** torch.arange(n_ratios)),
        list(DERIVATIVES),
    )
    ours = spatial_parameters(*counts, family="norse-1.1.0")
    assert torch.equal(ours, rows)
    for size in KERNEL_SIZES:
        wanted = norse_fields.spatial_receptive_fields_with_derivatives(rows, size, DOMAIN)
        assert largest_error(spatial_kernels(ours, size, "norse-1.1.0"), wanted) < 1e-6


@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_published_family_is_the_installed_norse_with_its_derivative_turned(size):
    """A direction of 90 degrees minus the field's swaps cosine and sine, which is all that changed."""
    rows = spatial_parameters(2, 4, 3)
    for row, kernel in zip(rows, spatial_kernels(rows, size), strict=True):
        scale, angle, ratio, dx, dy = row
        wanted = norse_fields.spatial_receptive_field(scale, angle, ratio, size, domain=DOMAIN)
        for _ in range(int(dx)):
            wanted = norse_fields.derive_kernel(wanted, math.pi / 2 - angle) * scale
        for _ in range(int(dy)):
            wanted = norse_fields.derive_kernel(wanted, -angle) * scale
        torch.testing.assert_close(kernel, wanted, rtol=1e-5, atol=1e-6)


def test_a_kernel_by_hand():
    """3 x 3 over [-6, 6], variance 8, round: exp(-36 / 16) at the edges' middles, squared at the corners."""
    e = math.exp(-36 / 16)
    gaussian = torch.tensor([[e * e, e, e * e], [e, 1, e], [e * e, e, e * e]]) / (1 + 2 * e) ** 2
    rows = torch.tensor([[8.0, 0, 1, *order] for order in DERIVATIVES])
    smooth, along, across, both = spatial_kernels(rows, 3)
    torch.testing.assert_close(smooth, gaussian)
    side = (1 - e) * 8 / (1 + 2 * e)  # one-sided at the borders, nothing in the middle; times the variance
    profile = torch.tensor([e, 1, e]) / (1 + 2 * e)
    torch.testing.assert_close(along, torch.outer(profile, torch.tensor([side, 0, -side])))
    torch.testing.assert_close(across, along.T)
    torch.testing.assert_close(both, torch.tensor([side, 0, -side]).outer(torch.tensor([side, 0, -side])))


def test_derivatives_follow_the_field():
    """Turned by 90 degrees, a field's kernels are those at 0 turned; the first derivative is odd."""
    flat = torch.tensor([[4.0, 0.0, 1.5, *order] for order in DERIVATIVES])
    turned = flat + torch.tensor([0, math.pi / 2, 0, 0, 0])
    for at_0, at_90, (dx, dy) in zip(
        spatial_kernels(flat, 9), spatial_kernels(turned, 9), DERIVATIVES, strict=True
    ):
        # x -> y and y -> -x
        torch.testing.assert_close(at_90, (-1.0) ** dy * at_0.T, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(at_0.flip(0, 1), (-1.0) ** (dx + dy) * at_0, rtol=1e-5, atol=1e-6)


# --- rows ---


def test_rows_of_the_paper():
    rows, norse = spatial_parameters(), spatial_parameters(family="norse-1.1.0")
    assert rows.shape == (144, 5) and norse.shape == (192, 5)
    assert sorted(rows[:, 0].unique().tolist()) == [1, 2, 4, 8]
    assert rows[:, 2].unique().tolist() == pytest.approx([1, 1.5**0.5, 1.5])
    assert rows[:4, 3:].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]  # derivatives innermost
    assert torch.equal(rows[:128], norse[:128])  # elongated fields are the same and first
    assert (rows[:128, 2] > 1).all() and (rows[128:, 2] == 1).all() and (norse[128:, 2] == 1).all()
    assert (rows[128:, 1] == 0).all()  # round fields for the first angle only
    assert len(rows.unique(dim=0)) == 144


def test_angles_are_uneven_as_published():
    assert torch.rad2deg(spatial_angles(4)).tolist() == pytest.approx([0, 105, 210, 315], abs=1e-4)
    assert torch.rad2deg(spatial_angles(2)).tolist() == pytest.approx([0, 270], abs=1e-4)
    assert spatial_angles(1).tolist() == [0]


def test_growing_angles_are_sorted_and_unique():
    plain, grown = spatial_parameters(2, 3, 3), spatial_parameters(2, 3, 3, n_angles_grow=2)
    assert grown.tolist() == sorted(map(list, {tuple(row) for row in grown.tolist()}))
    assert {tuple(row) for row in plain.tolist()} < {tuple(row) for row in grown.tolist()}
    assert torch.equal(spatial_angles(2, further=2)[[0, -1]], spatial_angles(2))
    assert len(spatial_parameters(2, 2, 2, n_angles_grow=2)) == 40  # of 8 elongated and 2 round fields
    # ratio by ratio the count grows and the last angle, 300 degrees here, does not
    for i, ratio in enumerate(grown[:, 2].unique()):
        degrees = torch.rad2deg(grown[grown[:, 2] == ratio][:, 1].unique())
        wanted = torch.linspace(0, 300, 3 + 2 * i) if i else torch.zeros(1)
        torch.testing.assert_close(degrees, wanted, rtol=0, atol=1e-4)
    round_only = spatial_parameters(2, 3, 1, n_angles_grow=2)  # where the published code breaks
    assert torch.equal(round_only, spatial_parameters(2, 3, 1).unique(dim=0))


@pytest.mark.parametrize("counts", [(0, 4, 3), (4, 0, 3), (4, 4, 0), (4, 4, 3, -1)])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(ValueError, match="expected at least"):
        spatial_parameters(*counts)


def test_unknown_families_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'2024'.*published, norse-1.1.0"):
        spatial_parameters(family="2024")
    with pytest.raises(ValueError, match="'2024'.*published, norse-1.1.0"):
        spatial_kernels(spatial_parameters(), 9, "2024")


# --- the exact bank ---


def test_exact_rows_turn_evenly_over_half_a_turn():
    rows, published = spatial_parameters(family="exact"), spatial_parameters()
    assert len(rows.unique(dim=0)) == len(rows) == 144
    assert torch.equal(rows[:, [0, 2, 3, 4]], published[:, [0, 2, 3, 4]])
    assert torch.rad2deg(rows[:, 1].unique()).tolist() == pytest.approx([0, 45, 90, 135])
    grown = spatial_parameters(2, 3, 2, n_angles_grow=1, family="exact")
    assert torch.rad2deg(grown[:, 1].unique()).tolist() == pytest.approx([0, 45, 60, 90, 120, 135])


@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_exact_axes_fit_the_kernel_and_the_grid(size):
    rows = spatial_parameters(family="exact")
    along, across = exact_axes(rows, size)
    torch.testing.assert_close(along / across, rows[:, 2].double() ** 2)
    assert (along <= size / 6 * 1.05).all() and (across >= SMALLEST_SIGMA * 0.95).all()
    for ratio in rows[:, 2].unique():
        of = [across[(rows[:, 2] == ratio) & (rows[:, 0] == v)][0].item() for v in (1, 2, 4, 8)]
        if SMALLEST_SIGMA * ratio**2 < size / 6:  # there is room
            assert of[0] == pytest.approx(SMALLEST_SIGMA) and of[3] * ratio**2 == pytest.approx(size / 6)
            assert of[1] / of[0] == pytest.approx(of[3] / of[2]) and of[1] > of[0]
        else:
            middle = math.sqrt(SMALLEST_SIGMA * size / 6) / ratio.item()
            assert of == pytest.approx([middle] * 4)


@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_exact_kernels_of_extreme_ratios_stay_tame(size):
    """Ratios up to 9, which neither grid nor kernel holds."""
    rows = spatial_parameters(4, 4, 12, family="exact")
    along, across = exact_axes(rows, size)
    assert across.min() >= SIGMA_RANGE[0] and along.max() <= SIGMA_RANGE[1] * size
    kernels = spatial_kernels(rows, size, "exact", torch.float64)
    smooth = (rows[:, 3:].sum(1) == 0).double()
    assert kernels.abs().max() < 1 and (kernels.sum((1, 2)) - smooth).abs().max() < 1e-13


@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_exact_kernels_are_the_gaussians_derivatives(size):
    """From 0.5 pixels on the samples of the true kernel, nearly; without an answer to constants."""
    rows = spatial_parameters(family="exact")
    kernels = spatial_kernels(rows, size, "exact", torch.float64)
    assert kernels.shape == (144, size, size)
    sums = kernels.sum((1, 2))
    smooth = rows[:, 3:].sum(1) == 0
    assert (sums[smooth] - 1).abs().max() < 1e-13 and sums[~smooth].abs().max() < 1e-13
    steps = torch.arange(size, dtype=torch.float64) - size // 2
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
    fields = field_from_axes(*exact_axes(rows, size), rows[:, 1].double())
    true = affine_gaussian(points, fields, DERIVATIVES)[torch.arange(144), :, derivative_index(rows)]
    cosines = torch.nn.functional.cosine_similarity(kernels.flatten(1), true)
    assert cosines.min() > 0.97
    assert cosines[torch.stack(exact_axes(rows, size)).amin(0) > 0.6].min() > 0.98
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spatial_kernels(rows[order], size, "exact"), kernels[order].float())


def test_exact_weights_start_different_and_orthogonal():
    torch.manual_seed(0)
    kernels = torch.rand(24, 3, 3)
    field, amplitude = bank_layout(24, 24, 24, "exact")
    assert torch.equal(field, torch.arange(24).repeat(24, 1))
    torch.testing.assert_close(amplitude @ amplitude.T, MIXING_GAIN**2 * torch.eye(24), rtol=0, atol=1e-5)
    field, amplitude = bank_layout(24, 3, 24, "exact")
    torch.testing.assert_close(amplitude @ amplitude.T, MIXING_GAIN**2 * torch.eye(3), rtol=0, atol=1e-5)
    weights = bank_weights(kernels, field, amplitude)
    torch.testing.assert_close(weights, amplitude[..., None, None] * kernels)
    first = bank_weights(kernels, *bank_layout(24, 24, 2, "exact"))
    assert torch.equal(first[:, 0], kernels) and torch.equal(first[:, 1], kernels)


# --- covariance and Gaussians ---

variances, angles, ratios = st.floats(0.1, 20), st.floats(-7, 7), st.floats(1, 3)


@given(variances, angles, ratios)
def test_covariance_has_the_fields_axes(variance, angle_rad, ratio):
    sigma = covariance_matrix(*(torch.tensor(v, dtype=torch.float64) for v in (variance, angle_rad, ratio)))
    assert torch.equal(sigma, sigma.T)
    assert torch.linalg.det(sigma).item() == pytest.approx(variance**2, rel=1e-9)
    minor, major = torch.linalg.eigvalsh(sigma).tolist()
    assert (minor, major) == pytest.approx((variance / ratio**2, variance * ratio**2), rel=1e-9)
    direction = torch.tensor([math.cos(angle_rad), math.sin(angle_rad)], dtype=torch.float64)  # x, y
    torch.testing.assert_close(sigma @ direction, major * direction, rtol=1e-9, atol=1e-9 * major)


@given(variances, angles, ratios)
def test_covariance_is_covariant_under_rotation(variance, angle_rad, ratio):
    variance, angle_rad, ratio, zero = (
        torch.tensor(v, dtype=torch.float64) for v in (variance, angle_rad, ratio, 0.0)
    )
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    rotation = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    turned = rotation @ covariance_matrix(variance, zero, ratio) @ rotation.T
    torch.testing.assert_close(covariance_matrix(variance, angle_rad, ratio), turned, rtol=1e-9, atol=1e-9)


def test_covariance_broadcasts():
    sigma = covariance_matrix(torch.ones(3, 1), torch.zeros(2), torch.tensor(2.0))
    assert sigma.shape == (3, 2, 2, 2)
    assert sigma[2, 1].tolist() == [[4, 0], [0, 0.25]]


def test_gaussians_sum_to_one_and_have_their_covariance():
    """On a grid fine enough for its moments to be the integral's."""
    covariance = covariance_matrix(*torch.tensor([[2.0, 1.0], [0.4, 1.3], [1.5, 1.0]], dtype=torch.float64))
    kernels = gaussian_kernels(covariance, 81, domain=14.0)
    assert kernels.shape == (2, 81, 81)
    grid = torch.linspace(-14, 14, 81, dtype=torch.float64)
    for kernel, sigma in zip(kernels, covariance, strict=True):
        assert kernel.sum().item() == pytest.approx(1)
        points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"))  # x along columns, y along rows
        moments = torch.einsum("hw,ihw,jhw->ij", kernel, points, points)
        torch.testing.assert_close(moments, sigma, rtol=1e-6, atol=1e-9)


# --- weights ---


def test_weights_of_more_outputs_than_inputs_hold_a_field_per_output():
    kernels = torch.arange(24.0 * 9).view(24, 3, 3)
    weights = bank_weights(kernels, *bank_layout(24, 24, 2))
    assert weights.shape == (24, 2, 3, 3)
    assert torch.equal(weights[:, 0], kernels) and torch.equal(weights[:, 1], kernels)


@pytest.mark.parametrize("out_channels, in_channels", [(24, 24), (3, 24), (4, 16)])
def test_weights_of_no_more_outputs_than_inputs_hold_a_field_per_input(out_channels, in_channels):
    kernels = torch.arange(24.0 * 9).view(24, 3, 3)
    weights = bank_weights(kernels, *bank_layout(24, out_channels, in_channels))
    assert weights.shape == (out_channels, in_channels, 3, 3)
    assert all(torch.equal(row, kernels[:in_channels]) for row in weights)


def test_weights_of_more_inputs_than_fields():
    kernels = torch.arange(4.0 * 9).view(4, 3, 3)
    weights = bank_weights(kernels, *bank_layout(4, 4, 16))
    assert weights.shape == (4, 16, 3, 3)
    assert all(torch.equal(weights[:, i], kernels) for i in range(16))


# --- time ---


def test_temporal_rates_are_those_of_the_paper():
    assert temporal_rates_hz(4).tolist() == pytest.approx([182.57, 91.29, 45.64, 22.82], abs=5e-3)
    assert temporal_rates_hz(1).tolist() == pytest.approx([182.57], abs=5e-3)


def test_uniform_rates_are_drawn_between_the_slowest_and_the_fastest():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([temporal_rates_hz(4, "uniform", generator) for _ in range(200)])
    low, high = 22.82, 182.58
    assert drawn.min() >= low and drawn.max() <= high
    assert drawn.mean().item() == pytest.approx((low + high) / 2, rel=0.05)
    assert drawn.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    assert not torch.equal(drawn, drawn.sort(descending=True).values)  # not put in order
    again = temporal_rates_hz(4, "uniform", torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn[0])


def test_a_single_uniform_rate_is_not_drawn():
    assert torch.equal(temporal_rates_hz(1, "uniform"), temporal_rates_hz(1))
