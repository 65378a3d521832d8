"""A film's legend names what the film shows, and nothing else; networks stand side by side."""

import numpy as np
import pytest
from PIL import Image

from nrf.pictures.films import INKS, Panel, film, terminal_picture


def tracks(n=1, known=True, both=True, T=2):
    """Frames (T, 2, 24, 24), true positions and predictions 4 pixels further along H, heat maps."""
    frames = np.zeros((T, 2, 24, 24), bool)
    frames[:, 0, 2, 2] = frames[:, 1, 3, 3] = True
    frames[:, :, 5, 5] = both
    true_px = np.broadcast_to(np.linspace(6, 18, n)[None, :, None], (T, n, 2)).copy()
    return (
        frames,
        true_px if known else np.full_like(true_px, np.nan),
        true_px + (4, 0),
        np.ones((T, n, 3, 3)),
    )


def legend(written):
    return [text for text in written if not text.startswith(("frame", "error", "mean error")) and text]


@pytest.fixture
def written(monkeypatch):
    """The texts that are drawn."""
    from PIL import ImageDraw

    texts, draw = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *a, **k: (texts.append(text), draw(self, xy, text, *a, **k)),
    )
    return texts


HEAT = "heat map; predicted is its mean, not its peak"


@pytest.mark.parametrize(
    ("n", "known", "both", "heat", "expected"),
    [
        (1, True, True, True, ["true", "predicted", "event off", "event on", "both", HEAT]),
        (1, False, False, False, ["predicted", "event off", "event on"]),
        (2, True, False, False, ["true 1", "predicted 1", "true 2", "predicted 2", "event off", "event on"]),
    ],
)
def test_a_legend_has_what_occurs(tmp_path, written, n, known, both, heat, expected):
    frames, true_px, predicted_px, heatmaps = tracks(n, known, both)
    film(tmp_path / "a.gif", frames, true_px, [Panel(None, predicted_px, heatmaps if heat else None)])
    assert legend(written) == expected


def test_three_shapes_are_named_and_have_marks_and_colours_of_their_own(tmp_path, written):
    frames, true_px, predicted_px, _ = tracks(3, both=False)
    film(tmp_path / "a.gif", frames, true_px, [Panel(None, predicted_px, None)])
    assert legend(written)[:4] == ["true circle", "predicted circle", "true square", "predicted square"]
    picture = np.array(Image.open(tmp_path / "a.gif").convert("RGB"))[10:490, 10:490]
    for colour, (h, w) in zip(INKS, predicted_px[0] * 20, strict=True):
        places = np.argwhere((picture == colour).all(-1))
        assert np.abs((places.min(0) + places.max(0)) / 2 - (h, w)).max() <= 2


def test_networks_stand_side_by_side_with_their_own_errors(tmp_path, written):
    frames, true_px, predicted_px, _ = tracks(both=False)
    panels = [Panel(f"network {k}", predicted_px + (k, 0), None) for k in range(3)]
    film(tmp_path / "a.gif", frames, true_px, panels)
    assert [text for text in written if text.startswith("error")] == [
        f"error {4 + k}.0 px" for k in range(3)
    ] * 2
    picture = np.array(Image.open(tmp_path / "a.gif").convert("RGB"))
    crosses = np.argwhere((picture == INKS[0]).all(-1) & (np.arange(len(picture)) < 38 + 288)[:, None])
    columns = np.unique((crosses[:, 1] - 10) // (288 + 14))
    assert columns.tolist() == [0, 1, 2]


def test_a_terminal_picture_tells_shapes_apart():
    empty = np.full((2, 2), np.nan)
    text = terminal_picture(np.zeros((2, 8, 8)), empty, np.array([[2, 2], [6, 6]]), None, (80, 24))
    assert all("{};{};{}".format(*colour) in text for colour in INKS[:2])
