"""Pictures are judged by their pixels: where colours are, which, and what a file holds after a failure."""

import importlib.util
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from nrf.pictures import films, plots
from nrf.pictures.films import track_gif
from nrf.pictures.plots import error_boxes, kernel_bank, kernel_grid, learning_curves, prediction_panel
from nrf.system.files import whole_file

RED, BLUE = (255, 0, 0), (0, 0, 255)
FRAME, MISSING = (215, 215, 215), (64, 64, 64)
VIOLET, YELLOW = (68, 1, 84), (253, 231, 36)  # the ends of viridis


def read(path):
    """All pictures of a file, uint8 RGB (T, H, W, 3), and their delays in ms."""
    pictures, delays = [], []
    with Image.open(path) as image:
        for t in range(getattr(image, "n_frames", 1)):
            image.seek(t)
            pictures.append(np.array(image.convert("RGB")))
            delays.append(image.info.get("duration"))
    return np.stack(pictures), delays


def where(picture, colour):
    """Rows and columns (n, 2) of the pixels of exactly this colour."""
    return np.argwhere((picture == colour).all(-1))


def track(T=3, n=1, H=48, W=48):
    """No events, all objects still at the centre and found there."""
    return np.zeros((T, 2, H, W), bool), *(np.full((T, n, 2), [H / 2, W / 2]) for _ in range(2))


@pytest.fixture
def written(monkeypatch):
    """All strings drawn into pictures."""
    strings, text = [], plots.ImageDraw.ImageDraw.text

    def record(self, xy, string, *style):
        strings.append(string)
        text(self, xy, string, *style)

    monkeypatch.setattr(plots.ImageDraw.ImageDraw, "text", record)
    return strings


def test_a_kernel_shows_its_values_blue_white_red():
    kernel = np.zeros((1, 4, 4))
    kernel[0, 1, 1], kernel[0, 2, 2], kernel[0, 1, 2] = 3, -3, 1.5
    picture = kernel_grid(kernel)
    gap, zoom = 2, 16
    cell = {(i, j): tuple(picture[gap + i * zoom + 8, gap + j * zoom + 8]) for i, j in np.ndindex(4, 4)}
    assert picture.dtype == np.uint8 and cell[1, 1] == RED and cell[2, 2] == BLUE
    assert cell[1, 2][0] == 255 and abs(int(cell[1, 2][1]) - 127) <= 2  # half way to red
    assert min(cell[0, 0]) >= 253  # zero is white, but for the parity of the colour map


def test_all_kernels_share_one_scale_and_golden_rows():
    picture = kernel_grid(np.stack([np.full((9, 9), value) for value in np.linspace(-1, 1, 144)]))
    columns, zoom, gap = 19, 1000 // (19 * 9), 2  # round(1.618 * 12) a row
    step = 9 * zoom + gap
    frames = where(picture, FRAME)
    assert len(np.unique(frames[:, 0] // step)) == math.ceil(144 / columns) == 8
    assert frames[:, 1].max() == columns * step - 1
    assert tuple(picture[gap + step // 2, gap + step // 2]) == BLUE
    assert tuple(picture[gap + 7 * step + step // 2, gap + (143 % 19) * step + step // 2]) == RED


def test_kernels_that_are_zero_not_finite_or_many_are_drawn_too():
    zeros = kernel_grid(np.zeros((1, 5, 5)))[2:82, 2:82]
    assert zeros.min() == FRAME[0] and zeros[1:-1, 1:-1].min() >= 253
    broken = kernel_grid(np.multiply.outer([np.nan, np.inf, 1], np.ones((5, 5))))[:-30]  # without the bar
    assert len(where(broken, MISSING)) == 2 * (5 * 16 - 2) ** 2  # all of two kernels within their frames
    assert len(where(broken, RED)) >= (5 * 16 - 2) ** 2
    assert kernel_grid(np.ones((144 * 144, 7, 7))).shape[1] < 2200  # one pixel per value
    for wrong in (np.zeros((0, 5, 5)), np.zeros((5, 5))):
        with pytest.raises(ValueError, match=r"kernels: expected \(n, h, w\)"):
            kernel_grid(wrong)


def test_the_bar_states_the_greatest_value(written):
    kernel_grid(np.array([[[0.125, -0.25]]]))
    assert written == ["-0.25", "0.25"]


def test_the_bank_has_a_place_for_each_field(tmp_path):
    rows = [
        (variance, angle, ratio, dx, dy)
        for variance in (1, 2)
        for angle, ratio in ((0, 1), (math.pi / 2, 1.5))
        for dx, dy in ((0, 0), (1, 0))
    ]
    kernels = np.zeros((8, 9, 9))
    kernels[7] = 1  # variance 2, line 1.5 and 90 degrees, first derivative along
    kernel_bank(kernels, rows, tmp_path / "bank.png")
    (picture,), _ = read(tmp_path / "bank.png")
    left, top, step, block = 150, 66, 9 * 6 + 3, 2 * (9 * 6 + 3) + 16
    bank = picture[: top + 2 * step]  # without its colour bar
    red = where(bank, RED)
    corner = (top + step + 1, left + block + step + 1)
    assert len(red) == 52**2 and tuple(red.min(0)) == corner and tuple(red.max(0) - 51) == corner
    kernel_bank(kernels[:7], rows[:7], tmp_path / "bank.png")
    (partial,), _ = read(tmp_path / "bank.png")
    place = tuple(slice(start - 1, start + 53) for start in corner)
    assert partial[place].min() == 255 and (partial[:, :left] == picture[:, :left]).all()


def test_the_bank_says_which_field_is_where(tmp_path, written):
    rows = [(4, 0, 1, 0, 0), (4, math.pi / 4, 1.2247, 1, 1), (4, 0, 1, 2, 0)]
    kernel_bank(np.ones((3, 5, 5)), rows, tmp_path / "bank.png")
    assert set(written) >= {"g", "∂u∂v g", "∂u^2 ∂v^0 g", "4", "ratio 1.00, 0°", "ratio 1.22, 45°"}


def test_the_bank_refuses_rows_that_do_not_fit(tmp_path):
    path = tmp_path / "bank.png"
    with pytest.raises(ValueError, match=r"2 kernels: expected rows \(2, 5 or more\), got \(1, 5\)"):
        kernel_bank(np.ones((2, 5, 5)), [(1, 0, 1, 0, 0)], path)
    with pytest.raises(ValueError, match="the same field is there twice"):
        kernel_bank(np.ones((2, 5, 5)), [(1, 0, 1, 0, 0, 3.0), (1, 0, 1, 0, 0, 4.0)], path)
    assert not path.exists()


def test_the_panel_shows_a_map_where_coordinates_are_read():
    frame, heatmap = np.zeros((300, 300)), np.zeros((22, 22))
    heatmap[2, 19] = 0.5  # DSNT reads 2/21 and 19/21 of 300 pixels
    picture = prediction_panel(frame, heatmap, np.zeros((22, 22)))
    assert picture.shape == (250, 600, 3) and picture.dtype == np.uint8
    dark = where(picture[150:151], VIOLET)[:, 1]  # viridis at 0: two panels in a line of pixels
    panel = dark[dark < 410]
    yellow = where(picture, YELLOW)
    across = (yellow[:, 1].mean() - panel.min()) / (panel.max() - panel.min())
    column = where(picture[:, panel.min() + 5][:, None], VIOLET)[:, 0]
    down = (yellow[:, 0].mean() - column.min()) / (column.max() - column.min())
    assert abs(across - 19 / 21) < 0.02 and abs(down - 2 / 21) < 0.02  # less than half a cell


@pytest.mark.filterwarnings("error")
def test_the_panel_survives_maps_that_are_negative_broken_or_of_one_cell():
    negative = prediction_panel(np.ones((48, 64)), -np.ones((4, 5)), np.full((4, 5), np.nan))
    assert len(where(negative, VIOLET)) > 15_000  # the lowest colour, for less than 0
    single = prediction_panel(np.ones((48, 64)), np.ones((1, 1)), np.zeros((1, 1)))
    assert len(where(single, YELLOW)) > 15_000


def test_a_panel_is_cut_off_nowhere_and_shows_every_shape():
    for size in ((48, 48), (48, 96), (300, 150)):
        picture = prediction_panel(np.ones(size), np.eye(7), np.eye(7))
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all(), size
    maps = np.zeros((3, 7, 7))
    maps[np.arange(3), 3, [0, 3, 6]] = 1
    picture = prediction_panel(np.ones((48, 48)), maps, np.zeros((3, 7, 7)))
    assert picture.shape == (750, 600, 3) and (picture[[0, -1]] == 255).all()
    bright = where(picture, YELLOW)
    lines = [bright[(bright[:, 0] > 250 * n) & (bright[:, 0] < 250 * (n + 1))] for n in range(3)]
    assert lines[0][:, 1].mean() + 40 < lines[1][:, 1].mean() < lines[2][:, 1].mean() - 40


def test_boxes_are_of_three_runs_or_more_and_small_differences_look_small(tmp_path):
    path = tmp_path / "boxes.png"
    boxes = [("LI", "rf", [1.3], None), ("LI", "uniform", [1.475], None)]
    error_boxes({"one": boxes}, path)
    (picture,), _ = read(path)
    blue, orange = (where(picture[:500], colour) for colour in ((0, 114, 178), (213, 94, 0)))
    assert 0 < len(blue) < 200 and 0 < len(orange) < 200  # points, no boxes
    assert 5 < blue[:, 0].mean() - orange[:, 0].mean() < 90  # of some 500 lines
    error_boxes({"one": [("LI", "rf", [1.3, 1.35, 1.475], None)]}, path)
    assert len(where(read(path)[0][0][:500], (0, 114, 178))) > 200


def test_learning_curves_rise_and_fall_with_the_errors(tmp_path):
    path = tmp_path / "curves.png"
    curves = {"fields": ([1, 2, 3], [8.0, 4.0, 2.0]), "uniform": ([1, 2, 3], [8.0, 8.0, 8.0])}
    learning_curves(curves, path, baseline=9)
    (picture,), _ = read(path)
    blue = where(picture, (0, 114, 178))
    blue = blue[blue[:, 1] > 600]  # beyond the legend
    orange = where(picture, (213, 94, 0))
    assert blue[:, 0].max() > orange[orange[:, 1] > 600][:, 0].max() + 250
    assert blue[blue[:, 1].argmax(), 0] > blue[blue[:, 1].argmin(), 0] + 100  # rows grow downwards: it falls
    assert len(where(picture, (89, 89, 89))) > 500  # the baseline


def test_learning_curves_name_the_best_and_refuse_what_does_not_fit(tmp_path, monkeypatch):
    labels, plot = [], Axes.plot

    def record(self, *values, **style):
        labels.append(style["label"])
        return plot(self, *values, **style)

    monkeypatch.setattr(Axes, "plot", record)
    learning_curves({"a": ([0, 1], [math.nan, 3.0]), "b": ([0], [math.nan])}, tmp_path / "a.png")
    assert labels == ["a: 3.00 at best", "b: nan at best"]
    with pytest.raises(ValueError, match="expected at least one"):
        learning_curves({}, tmp_path / "b.png")
    with pytest.raises(ValueError, match="curve 'a': 2 epochs but 1 errors"):
        learning_curves({"a": ([0, 1], [3.0])}, tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_track_has_rows_first_and_shows_polarity(tmp_path):
    frames, true_px, predicted_px = track()
    frames[:, 0, 40, 5] = frames[:, 1, 3, 30] = frames[:, :, 10, 10] = True
    path = tmp_path / "track.gif"
    track_gif(path, frames, true_px, predicted_px, fps=20)
    pictures, delays = read(path)
    assert len(pictures) == 3 and delays == [50] * 3
    field = pictures[1, 10:490, 10:490]
    for colour, row, column in (((230, 159, 0), 40, 5), ((86, 180, 233), 3, 30), ((110, 110, 110), 10, 10)):
        pixels = where(field, colour)
        assert len(pixels) == 100
        assert (pixels.min(0) == [row * 10, column * 10]).all() and (pixels.max(0) == pixels.min(0) + 9).all()


def test_a_track_marks_true_and_predicted_positions(tmp_path):
    frames, true_px, predicted_px = track(H=48, W=32)
    true_px[:], predicted_px[:] = (12, 24), (36, 8)
    track_gif(tmp_path / "track.gif", frames, true_px, predicted_px)
    pictures, _ = read(tmp_path / "track.gif")
    x0 = 10 + (420 - 320) // 2  # a narrow field stands in the middle
    field = pictures[0, 10:490, x0 : x0 + 320]
    ring, cross = where(field, (0, 0, 0)), where(field, (150, 20, 110))
    assert np.abs((ring.min(0) + ring.max(0)) / 2 - [120, 240]).max() <= 2
    assert np.abs((cross.min(0) + cross.max(0)) / 2 - [360, 80]).max() <= 2
    middle = field[236:245, 156:165]  # the line between the two, half way
    assert middle.min() < 150 and field[236:245, 100:109].min() == 255


def test_a_trail_is_as_long_as_asked(tmp_path):
    frames, true_px, predicted_px = track(T=8)
    predicted_px[:, 0, 1] = np.arange(8) * 5 + 5
    predicted_px[:, 0, 0] = 40

    def leftmost(trail):
        path = tmp_path / "track.gif"
        track_gif(path, frames, true_px, predicted_px, trail=trail)
        field = read(path)[0][-1, 10:490, 10:490]
        return np.argwhere((field[395:405] < 250).any((0, 2))).min()

    assert abs(leftmost(2) - (40 - 2 * 5) * 10) <= 3
    assert abs(leftmost(7) - 5 * 10) <= 3
    assert leftmost(0) > 380  # the cross alone


def test_every_frame_states_its_error(tmp_path, written):
    frames, true_px, predicted_px = track(T=2)
    predicted_px[1] += (3, 4)
    track_gif(tmp_path / "one.gif", frames, true_px, predicted_px, title="a title")
    assert {"frame 1 / 2", "error 0.0 px", "frame 2 / 2", "error 5.0 px", "a title"} <= set(written)
    frames, true_px, predicted_px = track(T=2, n=3)
    predicted_px[0, 1] += (0, 6)
    track_gif(tmp_path / "three.gif", frames, true_px, predicted_px)
    assert "mean error 2.0 px" in written


def test_a_heat_map_is_shaded_where_coordinates_are_read(tmp_path):
    frames, true_px, predicted_px = track(T=2)
    true_px[:] = predicted_px[:] = (2, 2)  # out of the way
    heatmaps = np.zeros((2, 2, 4, 4))
    heatmaps[:, 0, 1, 2], heatmaps[:, 1, 3, 3] = 1e-3, -5  # negative values count as none
    track_gif(tmp_path / "track.gif", frames, true_px, predicted_px, heatmaps)
    field = read(tmp_path / "track.gif")[0][0, 10:490, 10:490]
    darkest = where(field, films.SHADES[-1])
    assert np.abs(darkest.mean(0) - [480 * 1 / 3, 480 * 2 / 3]).max() < 6
    assert field[-40:, -40:].min() == 255


@pytest.mark.filterwarnings("error")
def test_a_track_leaves_out_what_is_not_finite_and_holds_the_rest_in_the_field(tmp_path):
    frames, true_px, predicted_px = track(T=2)
    predicted_px[0], predicted_px[1] = np.nan, (-1e9, 24)
    heatmaps = np.full((2, 1, 3, 3), np.nan)
    track_gif(tmp_path / "track.gif", frames, true_px, predicted_px, heatmaps)
    fields = read(tmp_path / "track.gif")[0][:, 10:490, 10:490]
    assert not len(where(fields[0], (150, 20, 110)))
    cross = where(fields[1], (150, 20, 110))
    assert cross[:, 0].max() < 12 and abs(cross[:, 1].mean() - 240) < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "track.avi"}, r"track\.avi: expected a name that ends in \.gif or \.mp4"),
        ({"fps": 0}, "fps 0: expected 1 to 50"),
        ({"fps": 60}, "fps 60: expected 1 to 50"),
        ({"frames": np.zeros((3, 48, 48))}, r"frames: expected \(T, 2, H, W\), got \(3, 48, 48\)"),
        ({"true_px": np.zeros((3, 2))}, r"true positions: expected \(3, N, 2\), got \(3, 2\)"),
        ({"true_px": np.zeros((2, 1, 2))}, r"true positions: expected \(3, N, 2\), got \(2, 1, 2\)"),
        (
            {"predicted_px": np.zeros((3, 2, 2))},
            r"predicted positions: expected \(3, 1, 2\), got \(3, 2, 2\)",
        ),
        ({"heatmaps": np.zeros((3, 4, 4))}, r"heat maps: expected \(3, N, h, w\), got \(3, 4, 4\)"),
    ],
)
def test_a_track_that_does_not_fit_is_refused(tmp_path, change, message):
    frames, true_px, predicted_px = track()
    arguments = {"frames": frames, "true_px": true_px, "predicted_px": predicted_px, **change}
    arguments["path"] = tmp_path / change.get("path", "track.gif")
    with pytest.raises(ValueError, match=message):
        track_gif(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_film_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.mp4 needs a package, pip install imageio-ffmpeg"):
        track_gif(tmp_path / "track.mp4", *track())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "track.gif"
    track_gif(path, *track())
    before = path.read_bytes()

    def fail(self, file, *rest, **options):
        file.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"), whole_file(path, ending=".gif") as partial:
        track_gif(partial, *track(T=5))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["track.gif"]
