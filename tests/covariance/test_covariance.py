"""What nrf covariance measures with: images, maps and errors whose truth is known; the command, whole."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nrf.commands import covariance as covariance_command
from nrf.config import Config
from nrf.covariance import report as covariance
from nrf.covariance.families import kernel_rows, nearest_members, sample, time_rows
from nrf.covariance.space import (
    FIELDS,
    MEASURED_FAMILIES,
    MEASURED_ORDERS,
    Shape,
    blobs,
    compare,
    errors,
    field_of,
    filtered,
    kernels_of,
    rotation,
    support_of,
    transformations,
)
from nrf.covariance.time import (
    FINE,
    firing_rows,
    galilean_rows,
    joint_rows,
    linear_rows,
    pieces,
    response,
    sampled,
    speed_rows,
    spike_times,
)
from nrf.network.model import SpatioTemporalModel
from nrf.pictures.theory import commuting_diagram, error_curves
from nrf.theory.affine_gaussian import affine_kernels, mapped
from nrf.theory.receptive_fields import DERIVATIVES, spatial_kernels
from nrf.training.module import ShapesModel

EYE = torch.eye(2, dtype=torch.float64)
SHEAR = torch.tensor([[1.2, 0.5], [-0.1, 0.8]], dtype=torch.float64)


def points(n=200, reach=12.0):
    return (torch.rand(n, 2, generator=torch.Generator().manual_seed(0)).double() - 0.5) * 2 * reach


# --- images and maps ---


def test_images_are_mapped_as_functions():
    """(T_A f)(A x) = f(x)."""
    image = blobs()
    torch.testing.assert_close(image.mapped(SHEAR)(points() @ SHEAR.T), image(points()))


@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
@pytest.mark.parametrize("matrix", [EYE, SHEAR, rotation(2.5), torch.diag(torch.tensor([2.0, 0.5]).double())])
def test_shapes_are_mapped_but_for_their_edges(kind, matrix):
    """Covered entirely or not at all before and behind, everywhere but within two pixels of the edge."""
    shape = Shape(kind, 16.0, EYE)
    here, there = shape(points()), shape.mapped(matrix)(points() @ matrix.T)
    plain = ((here == 0) | (here == 1)) & ((there == 0) | (there == 1))
    assert plain.double().mean() > 0.6 and (here[plain] == 1).any() and (here[plain] == 0).any()
    assert torch.equal(here[plain], there[plain])
    area = shape.mapped(matrix)(torch.cartesian_prod(*[torch.arange(-40.0, 40).double()] * 2)).sum()
    twice, once = shape.mapped(matrix).mapped(SHEAR), shape.mapped(SHEAR @ matrix)
    assert torch.equal(twice(points()), once(points()))
    unit = {"circle": math.pi / 4, "square": 1, "triangle": 0.5}[kind]
    assert area.item() == pytest.approx(unit * 256 * abs(torch.linalg.det(matrix).item()), rel=0.02)


def test_the_true_response_is_the_fine_sum():
    """A quarter pixel apart, where sampled kernels are exact."""
    image, field = blobs(), field_of(1.5, 1.0, 0.5)
    finer = field_of(6.0, 4.0, 0.5)  # the same in quarter pixels
    kernels = affine_kernels(finer, MEASURED_ORDERS, 61, "sampled")
    fine = filtered(lambda p: image(p / 4), 4 * points(20), kernels)
    torch.testing.assert_close(fine, image.response(points(20), field, MEASURED_ORDERS), rtol=1e-5, atol=1e-7)


def test_maps_are_those_announced():
    maps = transformations(torch.Generator().manual_seed(0))
    kinds = [kind for kind, *_ in maps]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "scaling": 7,
        "rotation": 12,
        "shear": 5,
        "random": 8,
    }
    values = [value for kind, value, _ in maps if kind == "scaling"]
    assert min(values) == 0.5 and max(values) == 4
    for kind, _, matrix in maps:
        stretch = torch.linalg.svdvals(matrix)
        assert kind != "random" or (stretch.min() >= 0.5 and stretch.max() <= 2)
        assert kind != "rotation" or torch.allclose(matrix @ matrix.T, EYE)


def test_published_kernels_of_mapped_rows_are_the_published_bank():
    """A scaling or rotation takes a row of the bank to another row."""
    rows = torch.tensor([[2.0, 0.4, 1.5**0.5, *order] for order in DERIVATIVES])
    turned = torch.tensor([[2.0 * 4, 1.1, 1.5**0.5, *order] for order in DERIVATIVES])
    unit = 8 / 12  # pixels of a unit, at size 9
    sigma = 2.0**0.5 * unit
    field = field_of(sigma * 1.5**0.5, sigma / 1.5**0.5, 0.4)
    for family in MEASURED_FAMILIES[1:]:
        for wanted, one in ((rows, field), (turned, mapped(field, 2 * rotation(0.7)))):
            kernels = kernels_of(family, one, DERIVATIVES, 9)
            torch.testing.assert_close(
                kernels.float(), spatial_kernels(wanted, 9, family), rtol=1e-4, atol=1e-5
            )


def test_errors_by_hand():
    wanted = torch.tensor([[3.0, 1.0], [4.0, 0.0]])
    actual = torch.tensor([[6.0, 0.0], [8.0, 1.0]])
    error, shape = errors(actual, wanted)
    assert error.tolist() == pytest.approx([1, 2**0.5])
    assert shape.tolist() == pytest.approx([0, 1], abs=1e-6)


# --- the bars ---


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("matrix", [2**0.5 * EYE, 2 * EYE, rotation(0.5), SHEAR])
def test_exact_fields_are_covariant_and_published_ones_are_not(field, matrix):
    rows = compare(blobs(), field_of(*field), matrix, ("exact", "published"), (0,))
    exact, published = ([r for r in rows if r["family"] == family] for family in ("exact", "published"))
    least = exact[0]["sigma_px"]
    assert all(row["holds"] for row in exact)
    assert max(max(row["error"], row["true_error"]) for row in exact) < (0.01 if least > 0.99 else 0.05)
    derivatives = [row for row in published if row["order"] != "00"]
    assert min(row["error"] for row in derivatives) > 10 * max(row["error"] for row in exact)


def test_a_family_that_forgets_the_map_is_found_out():
    """The measure itself: with the kernel of Sigma on both sides the error is large."""
    image, field, matrix = blobs(), field_of(1.5, 1.0, 0.5), 2 * EYE
    kernels = kernels_of("exact", field, MEASURED_ORDERS, support_of(field))
    here = filtered(image, points(), kernels)
    over = filtered(image.mapped(matrix), points() @ matrix.T, kernels)
    assert errors(over, here)[0][1:].min() > 0.2


# --- time ---


def test_truth_over_time_is_the_closed_form():
    """A leaky integrator under pieces of 4 ms: exponentials, by hand."""
    tau = torch.tensor([10.0], dtype=torch.float64)
    fine = response(sampled(pieces, 1.0, 1 / FINE), tau, dt=1 / FINE)[4 * FINE - 1 :: 4 * FINE, 0]
    v, keep = 0.0, math.exp(-0.4)
    for t, value in enumerate(fine.tolist()):
        v = v * keep + pieces(torch.tensor(4 * t + 2.0)).item() * (1 - keep)
        assert value == pytest.approx(v, abs=1e-9)


def test_recursions_over_time():
    rows = linear_rows()
    exact = [row for row in rows if row["step"] == "exact"]
    assert max(max(r["error"], r["true_error"]) for r in exact if r["input"] == "pieces") < 1e-9
    for row in rows:
        if row["step"] == "euler":
            twin = next(r for r in exact if all(r[k] == row[k] for k in ("neuron", "input", "scale")))
            assert row["true_error"] > 3 * twin["true_error"]
    euler = [r["true_error"] for r in rows if (r["step"], r["input"]) == ("euler", "pieces")][:5]
    assert all(1.8 < a / b < 2.5 for a, b in zip(euler, euler[1:], strict=False))  # of first order


def test_spikes_by_hand():
    assert spike_times(0.1, 100, 10).tolist() == []
    assert spike_times(0.2, 25, 10).tolist() == pytest.approx(
        [10 * math.log(2), 20 * math.log(2), 30 * math.log(2)]
    )
    rows = firing_rows(trials=10)
    for step in ("exact", "euler"):
        own = [row for row in rows if row["step"] == step]
        late = [row["late_ms"] for row in own]
        assert late[-1] < 0.3 < late[0]  # finer steps, sooner
        assert own[-1]["true_rate_error"] < own[0]["true_rate_error"] / 3


def test_space_and_time_together():
    rows = [row for row in joint_rows(duration=16)]
    exact = [row["error"] for row in rows if row["family"] == "exact"]
    assert len(exact) == 4 * len(MEASURED_ORDERS) and max(exact) < 0.02
    assert all(r["error"] > 0.02 for r in rows if r["family"] == "published" and r["order"] != "00")


def test_fields_that_move_along_see_the_still_image():
    rows = galilean_rows(lags=30, time=10.0)
    assert max(row["error"] for row in rows if row["fields"] == "moving along") < 1e-5
    assert min(row["error"] for row in rows if row["fields"] == "standing still") > 0.1


def test_shapes_at_two_speeds():
    rows = speed_rows(frames=30)
    smooth = [row["error"] for row in rows if row["order"] == "00"]
    assert len(rows) == 3 * 2 * len(MEASURED_ORDERS) and 0 < max(smooth) < 0.3


# --- trained networks ---


def test_members_of_the_family_are_found():
    generator = torch.Generator().manual_seed(0)
    for size in (5, 9):
        u = torch.rand(20, 3, generator=generator, dtype=torch.float64)
        sigma = 0.4 + u[:, :2] * (0.18 * size - 0.4)
        kernels = torch.stack(
            [
                (-1) ** i * (1 + i) * affine_kernels(field_of(*s, math.pi * a), [DERIVATIVES[i % 4]], size)[0]
                for i, (s, a) in enumerate(zip(sigma.tolist(), u[:, 2].tolist(), strict=True))
            ]
        )
        distance, parameters, order = nearest_members(kernels)
        assert distance.median() < 0.002 and distance.max() < 0.05
        near = nearest_members(
            kernels + 0.1 * kernels.abs().amax() * torch.randn(kernels.shape, generator=generator)
        )
        assert near[0].median() > 5 * distance.median()


def test_other_kernels_are_far_and_zeros_are_left_out():
    noise = torch.randn(30, 7, 7, generator=torch.Generator().manual_seed(1))
    noise[3] = 0
    distance, *_ = nearest_members(noise)
    assert distance[3].isnan() and distance[torch.arange(30) != 3].min() > 0.5
    delta = torch.zeros(1, 7, 7)
    delta[0, 0, 0] = 1.0
    assert nearest_members(delta)[0].item() == pytest.approx(1, abs=0.02)


def tiny(**settings):
    small = dict(n_spatial_scales=1, n_angles=2, n_ratios=1, n_temporal_scales=3, receptive_fields="exact")
    torch.manual_seed(0)
    return SpatioTemporalModel(Config(resolution=(32, 32), **small | settings))


def test_rows_of_a_network():
    start, net = tiny(), tiny()
    with torch.no_grad():
        net.channels[0].spatiotemporal[1].spatial.spatial.weight.normal_()
        for k, channel in enumerate(net.channels):
            channel.spatiotemporal[0].temporal.tau_mem_inv.fill_(1000 / (5 * 3**k * (1.5 if k == 1 else 1)))
    rows = kernel_rows(net, start)
    assert [row["layer"] for row in rows] == [1, 2, 3]
    assert max(rows[0]["median"], rows[0]["at_start"], rows[1]["at_start"]) < 0.02
    assert rows[1]["median"] > 0.5
    times = time_rows(net)
    assert times[0]["tau_ms"] == "5.00 22.50 45.00" and times[0]["ratio"] == pytest.approx(3, rel=1e-5)
    off = math.log(1.5)
    assert times[0]["distance"] == pytest.approx(off * math.sqrt(2) / 3, rel=1e-4)
    assert time_rows(tiny())[0]["distance"] < 1e-6
    assert time_rows(tiny(net="ann")) == []


def test_samples_are_even_and_the_same():
    weight = torch.arange(300.0 * 9).view(30, 10, 3, 3)
    assert torch.equal(sample(weight), sample(weight)) and len(sample(weight)) == 256
    assert torch.equal(sample(weight[:2]), weight[:2].flatten(0, 1))


# --- pictures, and the command ---


def test_pictures(tmp_path):
    panel = np.eye(8)
    commuting_diagram({"one": ([panel] * 6, 0.01), "two": ([panel] * 6, 1.5)}, tmp_path / "a.png", "title")
    error_curves({"x": ("scale", {"exact": ([1, 2], [1e-9, 0.1])})}, tmp_path / "b.png", bars={0.01: "1 %"})
    for name in ("a.png", "b.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert picture.std() > 5
    with pytest.raises(ValueError, match="one: 5 panels, expected 6"):
        commuting_diagram({"one": ([panel] * 5, 0)}, tmp_path / "c.png", "title")
    assert not (tmp_path / "c.png").exists()


@pytest.fixture
def quick(monkeypatch):
    """The command on one field, four maps and little motion."""
    keep = ("transformations", "FIELDS")
    maps = [t for t in transformations() if t[0] == "scaling"][:2] + [("rotation", 30, rotation(0.5))]
    from nrf.covariance import space

    monkeypatch.setattr(space, keep[0], lambda generator=None: maps)
    monkeypatch.setattr(space, keep[1], ((1.0, 1.0, 0.0),))
    monkeypatch.setattr(covariance, "joint_rows", lambda: joint_rows(duration=8))
    monkeypatch.setattr(covariance, "galilean_rows", lambda: galilean_rows(lags=10, time=5.0))
    monkeypatch.setattr(covariance, "speed_rows", lambda slow: speed_rows(slow, frames=24))


def test_the_command_writes_tables_and_pictures(quick, tmp_path, capsys):
    torch.manual_seed(0)
    settings = dict(n_spatial_scales=1, n_angles=1, n_ratios=1, resolution=[32, 32], seed=0)
    model = ShapesModel(**settings)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(checkpoint, tmp_path / "one.ckpt")
    assert covariance_command.main([str(tmp_path / "one.ckpt"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "out" / "covariance.md").read_text()
    assert "What the exact family promises" in printed and printed.split("\n\nsee ")[0] in written
    promised = [
        line.split("|")[-2].strip() for line in written.split("## Space")[0].splitlines() if "below" in line
    ]
    assert "The checkpoint: distances" in written and promised == ["yes"] * 3
    rows = list(csv.DictReader((tmp_path / "out" / "covariance.csv").open()))
    parts = {"space", "shapes", "discretisations", "network", "time", "firing", "joint", "motion", "speed"}
    assert {row["part"] for row in rows} == parts | {"kernels", "time constants"}
    space = [row for row in rows if row["part"] == "space"]
    assert len(space) == 3 * 4 * len(MEASURED_FAMILIES) * len(MEASURED_ORDERS)
    assert all(math.isfinite(float(row["error"])) for row in space)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"diagram.png", "space.png", "time.png", "discretisations.png"}
    assert names == pictures | {"bank-exact.png", "bank-published.png", "covariance.md", "covariance.csv"}


@pytest.mark.parametrize("words, code", [(["nowhere.ckpt"], 1), (["--outt", "x"], 2)])
def test_mistakes_are_told_in_one_line(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        returned = covariance_command.main(words)
    except SystemExit as end:
        returned = end.code
    err = capsys.readouterr().err
    assert returned == code and err.count("\n") == 1
    assert ("nowhere.ckpt: no such file" if code == 1 else "--outt") in err
    assert list(tmp_path.iterdir()) == []
