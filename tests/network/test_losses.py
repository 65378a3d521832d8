"""Loss terms by hand, and the published oddities they keep."""

import math

import pytest
import torch

from nrf.network.losses import (
    REGULARISERS,
    TARGET_SIGMA,
    coordinate_distance,
    gaussian_targets,
    js_regulariser,
    kl_regulariser,
    no_regulariser,
    spike_regulariser,
    variance_regulariser,
)


def random_maps(*shape, seed=0):
    maps = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return maps / maps.sum((-2, -1), keepdim=True)


def test_distance_is_the_mean_length():
    predicted = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]])
    assert coordinate_distance(predicted, torch.zeros_like(predicted)).item() == 2.5
    assert coordinate_distance(predicted, predicted).item() == 0


def test_targets_are_gaussians_around_height_and_width():
    targets = gaussian_targets(torch.tensor([[[[-0.5, 0.25]]]], dtype=torch.float64), (5, 9))[0, 0, 0]
    assert targets.argmax().item() == 1 * 9 + 5  # row of -0.5, column of 0.25
    assert targets.sum().item() == pytest.approx(1)
    one_cell_off = math.exp(-((0.25 / TARGET_SIGMA) ** 2) / 2)
    assert (targets[1, 6] / targets[1, 5]).item() == pytest.approx(one_cell_off)
    assert (targets[0, 5] / targets[1, 5]).item() == pytest.approx(one_cell_off**4)


def test_targets_sum_to_one_over_the_whole_batch():
    positions = (
        torch.rand(4, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    targets = gaussian_targets(positions, (32, 48))
    assert targets.shape == (4, 2, 3, 32, 48)
    assert targets.sum().item() == pytest.approx(1)
    assert targets[0, 0, 0].sum().item() == pytest.approx(1 / 24, rel=0.3)


def test_a_target_on_the_border_has_half_the_mass_of_one_inside():
    targets = gaussian_targets(torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]], dtype=torch.float64), (41, 41))
    inside, border = targets.sum((-2, -1)).flatten().tolist()
    half_a_cell = 0.5 * 0.05 / (TARGET_SIGMA * math.sqrt(2 * math.pi))  # the cell on the border is whole
    assert border / inside == pytest.approx(0.5 + half_a_cell, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_far_outside_are_zero_not_nan(dtype):
    targets = gaussian_targets(torch.full((2, 1, 3, 2), 99.0, dtype=dtype), (8, 8))
    assert targets.dtype == dtype and torch.equal(targets, torch.zeros_like(targets))


def test_divergences_by_hand():
    """Two cells: (1, 0) against (1/2, 1/2); once per map, summed over 3 steps, averaged over 2 samples."""
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2, 1, 1, 2)
    q = torch.full_like(p, 0.5)
    assert kl_regulariser(p, q).item() == pytest.approx(3 * math.log(2))
    middle = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert js_regulariser(p, q).item() == pytest.approx(3 * middle)
    # the unbiased variance of a step's (1, 0, 1, 0) is 1/3, of its (1/2, 1/2, 1/2, 1/2) 0
    assert variance_regulariser(p, q).item() == pytest.approx(3 * (1 / 3))
    assert no_regulariser(p, q).item() == 0


@pytest.mark.parametrize("kind", ["js", "kl", "var"])
def test_regularisers_vanish_on_the_target_alone(kind):
    p, q = random_maps(4, 2, 3, 5, 6), random_maps(4, 2, 3, 5, 6, seed=1)
    assert REGULARISERS[kind](p, p).item() == pytest.approx(0, abs=1e-12)
    assert REGULARISERS[kind](p, q * q).item() > 1e-4


def test_js_is_symmetric_and_bounded():
    p, q = random_maps(4, 2, 3, 5, 6), random_maps(4, 2, 3, 5, 6, seed=1)
    assert js_regulariser(p, q).item() == pytest.approx(js_regulariser(q, p).item())
    first, last = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 1, 1, 2)
    assert js_regulariser(first, last).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["js", "kl", "var"])
def test_regularisers_grow_with_time_and_not_with_the_batch(kind):
    p, q = random_maps(3, 2, 3, 5, 6), random_maps(3, 2, 3, 5, 6, seed=1)
    once = REGULARISERS[kind](p, q)
    longer = REGULARISERS[kind](p.repeat(2, 1, 1, 1, 1), q.repeat(2, 1, 1, 1, 1))
    assert longer.item() == pytest.approx(2 * once.item())
    if kind != "var":  # whose unbiased variance counts cells
        wider = REGULARISERS[kind](p.repeat(1, 2, 1, 1, 1), q.repeat(1, 2, 1, 1, 1))
        assert wider.item() == pytest.approx(once.item())


@pytest.mark.parametrize("kind", ["js", "kl", "var"])
def test_one_step_and_one_sample_are_no_other_axes(kind):
    """The published code sums a batch of one step over its samples instead."""
    p, q = random_maps(1, 2, 3, 5, 6), random_maps(1, 2, 3, 5, 6, seed=1)
    both = REGULARISERS[kind](p, q).item()
    if kind == "var":
        assert both == pytest.approx(abs((p.var() - q.var()).item()))
    else:
        per_sample = [REGULARISERS[kind](p[:, i : i + 1], q[:, i : i + 1]).item() for i in range(2)]
        assert both == pytest.approx(sum(per_sample) / 2)


@pytest.mark.parametrize("kind", ["js", "kl"])
def test_empty_cells_give_finite_gradients(kind):
    p = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).view(1, 1, 1, 1, 3).requires_grad_()
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).view(1, 1, 1, 1, 3)
    (gradient,) = torch.autograd.grad(REGULARISERS[kind](p, q), p)
    assert torch.isfinite(gradient).all()


def test_spikes_are_drawn_to_their_mean():
    activities = torch.tensor([0.05, 0.25, 0.0], requires_grad=True)
    loss = spike_regulariser(activities)
    assert loss.item() == pytest.approx(0.05 * (0.2**2 + 0.05**2))
    (gradient,) = torch.autograd.grad(loss, activities)
    assert gradient.tolist() == pytest.approx([0, 0.02, -0.005], rel=1e-6, abs=1e-9)
    assert spike_regulariser(activities, mean=0.25, scale=2.0).item() == pytest.approx(2 * (0.2**2 + 0.25**2))


def test_every_published_name_has_its_regulariser():
    assert REGULARISERS == {
        "none": no_regulariser,
        "js": js_regulariser,
        "kl": kl_regulariser,
        "var": variance_regulariser,
    }


def test_constants_are_made_where_the_positions_are():
    """On any device: here one that holds no numbers."""
    targets = gaussian_targets(torch.empty(2, 1, 3, 2, device="meta"), (4, 5))
    assert targets.shape == (2, 1, 3, 4, 5) and targets.device.type == "meta"
    assert all(regulariser(targets, targets).device.type == "meta" for regulariser in REGULARISERS.values())
