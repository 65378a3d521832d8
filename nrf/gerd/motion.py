"""How a shape moves: random numbers and trajectories of GERD's two versions and of `clean`.

Every function takes the random numbers from a stream passed in: `OwnStream`, a numpy generator, or
`TorchStream`, which consumes the Mersenne Twister words exactly where torch does while GERD renders. What
GERD draws and throws away is skipped word by word in a replay and costs nothing otherwise. Source:
GERD, by running it; FIDELITY 30-35.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nrf.gerd.outlines import Poses, TruePictures, f32, unit_corners
from nrf.gerd.pictures import UPSAMPLING

if TYPE_CHECKING:
    from nrf.gerd.render import RenderParameters

WARMUP_STEPS = 5  # frames that move the integrators before the recording starts
BORDER = 5  # pixels that GERD keeps free between a shape and the border
SIZE_RANGE = (0.05, 0.7)  # smallest and largest size as parts of the shorter side
SHEAR_MAX = 30.0  # degrees
SHEAR_JITTER = (
    0.01  # degrees: GERD shears by U[s, s + 0.01] along x and U[0, 0.01] along y, drawn again in every frame
)
OFF_START = 10.0  # kept: degrees of rotation and shear in the published version when both are off


class OwnStream:
    """Random numbers of our own for one recording.  generator: numpy Generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def uniform(self) -> float:
        return self.generator.random()

    def sign(self) -> float:
        return 1.0 if self.generator.random() > 0.5 else -1.0

    lone_sign = sign

    def integer(self, stop: int) -> int:
        return int(self.generator.integers(stop))

    def skip(self, words: int) -> None:
        """Nothing is thrown away here."""


class TorchStream:
    """The words of torch's CPU generator after `torch.manual_seed(seed)`, in torch's order.

    seed: what torch takes, -2^63 to 2^64 - 1; its state keeps 64 bits, of which 32 decide.  ValueError for
    others.
    """

    def __init__(self, seed: int) -> None:
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed {seed}: expected -2^63 to 2^64 - 1, as torch takes")
        self.seed = int(seed) % 2**64
        self.random = np.random.RandomState(self.seed % 2**32)
        self.drawn = False

    def words(self, count: int) -> np.ndarray:
        """The next `count` 32-bit words, uint32."""
        if count == 0:
            return np.zeros(0, "<u4")
        self.drawn = True
        return np.frombuffer(self.random.bytes(4 * count), "<u4")

    def skip(self, words: int) -> None:
        while words > 0:
            self.words(min(words, 1 << 20))
            words -= 1 << 20

    def uniform(self) -> float:
        return float(self.words(1)[0] & 0xFFFFFF) / 2**24

    def uniforms(self, count: int) -> np.ndarray:
        """`count` float32 in [0, 1), as `torch.rand` gives them."""
        return (self.words(count) & 0xFFFFFF).astype(f32) * f32(2**-24)

    def double(self) -> float:
        high, low = (int(w) for w in self.words(2))
        return (high << 32 | low) % 2**53 / 2**53

    def sign(self) -> float:
        return 1.0 if self.double() > 0.5 else -1.0

    def lone_sign(self) -> float:
        """torch draws a single category another way: the smaller of two exponential numbers wins."""
        first, second = self.double(), self.double()
        return 1.0 if second < first else -1.0

    def integer(self, stop: int) -> int:
        return int(self.words(1)[0]) % stop

    def state(self) -> np.ndarray:
        """The generator's state as `torch.get_rng_state()` returns it, uint8 (5056,)."""
        key, position = (self.random.get_state(legacy=False)["state"][name] for name in ("key", "pos"))
        state = np.zeros(5056, np.uint8)
        state[:8].view("<u8")[0] = self.seed
        state[8:16].view("<i4")[:] = (625 - position if self.drawn else 1, 1)
        state[16:24].view("<u8")[0] = position if self.drawn else 0
        state[24 : 24 + 8 * 624].view("<u8")[:] = key
        return state


class Drawn(NamedTuple):
    """One shape's motion, and in a replay what GERD drew for its pixels meanwhile: `integrators` (H * W,)
    float32 start values and `kept` (frames, H * W) bool where events survive (None: not drawn yet, or all
    survive)."""

    poses: Poses
    integrators: np.ndarray | None = None
    kept: np.ndarray | None = None


class _Axis:
    """A number that moves by `speed` per frame and turns round at two walls, as GERD moves it."""

    def __init__(self, value: float, speed: float, low: float = -np.inf, high: float = np.inf) -> None:
        self.value, self.speed, self.low, self.high = value, speed, low, high

    def step(self) -> None:
        self.value += self.speed
        self.turn()

    def turn(self) -> None:
        if self.value <= self.low:
            self.value, self.speed = self.low, -self.speed
        elif self.value >= self.high:
            self.value, self.speed = self.high, -self.speed


def gerd_motion(p: RenderParameters, kind: str, stream: OwnStream | TorchStream) -> Drawn:
    """Poses of one shape, in cells, as the release or the paper's version (p.generator) draws them."""
    height, width = p.resolution
    published = p.generator == "published"
    size, turn, shear, (vx, vy), speed = _gerd_axes(p, stream, published)
    near = _border(size.value, published)
    x, y = (
        f32(stream.uniform() * float(f32(UPSAMPLING * n - near) - f32(near)) + float(f32(near)))
        for n in p.resolution
    )
    if turn is None:
        turn = _Axis(float(stream.integer(360)), speed[1])
    if shear is None and p.shear:
        shear = _Axis(float(stream.integer(int(SHEAR_MAX))), speed[2], -SHEAR_MAX, SHEAR_MAX)
    track, pixels = [], _Pixels(p)
    for n in range(p.length + WARMUP_STEPS + 1):
        side = int(size.value * UPSAMPLING)
        if side < UPSAMPLING:
            raise ValueError(
                f"a size falls below 1 pixel by {abs(size.speed):g} pixels a frame: "
                "expected a smaller velocity"
            )
        stream.skip(0 if kind == "triangle" else side * side)  # a density nobody sees
        border = f32(_border(size.value, published))
        far_x, far_y = f32(UPSAMPLING * height) - border, f32(UPSAMPLING * width) - border
        x, y = min(max(f32(x + vx), border), far_x), min(max(f32(y + vy), border), far_y)
        stream.skip(4 * published)
        turn.step()
        stream.skip(2 * (published and p.rotate))
        slant = None
        if shear is not None:
            shear.step()
            stream.skip(2 * published)
            slant = _jittered(shear.value, stream)
        track.append((x, y, size.value, turn.value, slant))
        vx = -vx if x <= border or x >= far_x else vx
        vy = -vy if y <= border or y >= far_y else vy
        size.turn()  # kept: the wall acts a frame late on sizes
        size.value += size.speed
        stream.skip(2 * (published and p.scale == "changing"))
        if n > 0 and isinstance(stream, TorchStream):
            pixels.draw(stream, first=n == 1)
    xs, ys, sizes, angles, slants = (np.array(column) for column in zip(*track, strict=True))
    poses = Poses(xs.astype(f32), ys.astype(f32), sizes, angles, None if shear is None else slants)
    return Drawn(poses, pixels.integrators, np.array(pixels.kept) if pixels.kept else None)


Axes = tuple[_Axis, _Axis | None, _Axis | None, tuple[np.float32, np.float32], list[float]]


class _Pixels:
    """What GERD draws for every pixel between two frames: which events survive, and once the start values."""

    def __init__(self, p: RenderParameters) -> None:
        self.n, self.density = p.resolution[0] * p.resolution[1], p.event_density
        self.kept: list[np.ndarray] = []
        self.integrators: np.ndarray | None = None

    def draw(self, stream: TorchStream, first: bool) -> None:
        if self.density < 1:
            self.kept.append(stream.uniforms(self.n) < f32(self.density))
        else:
            stream.skip(self.n)
        if first:
            self.integrators = stream.uniforms(self.n) * f32(0.9) + f32(-0.45)


def _jittered(shear: float, stream: OwnStream | TorchStream) -> tuple[float, float]:
    """GERD's shear in degrees along both axes in one frame; none at exactly 0."""
    if shear == 0:
        return 0.0, 0.0
    stream.skip(1)
    low, high = float(f32(shear)), float(f32(shear + SHEAR_JITTER))
    return float(f32(stream.uniform() * float(f32(high - low)) + low)), float(
        f32(stream.uniform() * SHEAR_JITTER)
    )


def _border(size: float, published: bool) -> float:
    return UPSAMPLING * (BORDER + (size // 2 if published else size / 2))


def _gerd_axes(p: RenderParameters, stream: OwnStream | TorchStream, published: bool) -> Axes:
    """Size, rotation and shear before the first frame, the velocity, and the speeds of the three, in GERD's
    order of drawing; rotation and shear are None where their start is drawn after the position."""
    ways = [stream.sign(), stream.sign()] if p.translate else [0.0, 0.0]
    changes = p.scale == "changing", p.rotate, p.shear
    signs = [stream.lone_sign() if changed else 0.0 for changed in changes]
    low, high = (float(int(f32(min(p.resolution)) * f32(part))) for part in SIZE_RANGE)
    start = p.scale
    if isinstance(start, str):
        start = low + (high - low) * stream.uniform()
    if published and p.scale != "changing":
        stream.skip(1)  # a speed that nobody uses
    v = p.velocity
    units = (1.0, 0.05 * UPSAMPLING, 0.05, 0.1) if published else (float(UPSAMPLING), 1.0, 1.0, 1.0)
    velocity = f32(ways[0]) * f32(v) * f32(units[0]), f32(ways[1]) * f32(v) * f32(units[0])
    speed = [s * float(f32(v)) * u for s, u in zip(signs, units[1:], strict=True)]
    size = _Axis(float(start), speed[0], low, high)  # kept: the walls also hold sizes that do not change
    turn = None if p.rotate else _Axis(OFF_START if published else 0.0, 0.0)
    shear = (
        _Axis(OFF_START, min(OFF_START, 0.1 * v), -SHEAR_MAX, SHEAR_MAX)
        if published and not p.shear
        else None
    )
    return size, turn, shear, velocity, speed


def _slack(p: RenderParameters) -> float:
    """How much longer than its size a true shape may get by rotation and shear."""
    return (2**0.5 if p.rotate else 1.0) * (1 + np.tan(np.deg2rad(SHEAR_MAX)) if p.shear else 1.0)


def pixels_needed(p: RenderParameters) -> float:
    """Pixels a side that a field must have for shapes of parameters p to fit, borders included."""
    if p.generator == "clean":
        return 1.0 if isinstance(p.scale, str) else p.scale * _slack(p)
    if isinstance(p.scale, str):  # sizes up to a part of the field
        return 2 * BORDER / (1 - SIZE_RANGE[1])
    return p.scale + 2 * BORDER


def clean_motion(p: RenderParameters, kind: str, stream: OwnStream | TorchStream) -> Drawn:
    """Poses of one true shape, in pixels.

    Its centroid moves by `velocity` pixels a frame along each axis and turns round where the outline would
    leave the field. A changing size changes by `velocity` pixels a frame; rotation and shear move a point
    half a size away from the centre by as much.
    """
    low, high = (min(part, 0.95 / _slack(p)) * min(p.resolution) for part in SIZE_RANGE)
    signs = [stream.sign() for _ in range(5)]
    start = low + (high - low) * stream.uniform() if isinstance(p.scale, str) else p.scale
    size = _Axis(
        start,
        signs[2] * p.velocity * (p.scale == "changing"),
        *((low, high) if isinstance(p.scale, str) else ()),
    )
    rate = np.rad2deg(2 * p.velocity / start)
    turn = _Axis(360 * stream.uniform() * p.rotate, signs[3] * rate * p.rotate)
    slant = _Axis(
        SHEAR_MAX * (2 * stream.uniform() - 1) * p.shear, signs[4] * rate * p.shear, -SHEAR_MAX, SHEAR_MAX
    )
    track = []
    for _ in range(p.length + WARMUP_STEPS + 1):
        track.append((size.value, turn.value, slant.value))
        for axis in (size, turn, slant):
            axis.step()
    sizes, angles, slants = np.array(track).T
    shear = np.stack([slants, 0 * slants], -1) if p.shear else None
    poses = Poses(np.zeros(len(sizes)), np.zeros(len(sizes)), sizes, angles, shear)
    reach = _extents(kind, poses)  # (n, 2, 2): frame, axis, (towards 0, towards the far border)
    paths = [
        _bounce(stream.uniform(), signs[i] * p.velocity * p.translate, reach[:, i], p.resolution[i])
        for i in (0, 1)
    ]
    return Drawn(poses._replace(x=paths[0], y=paths[1]))


def _extents(kind: str, poses: Poses) -> np.ndarray:
    forward = TruePictures.forward(poses)
    if kind == "circle":
        far = np.linalg.norm(forward, axis=2) * (poses.size / 2)[:, None]
        return np.stack([far, far], -1)
    corners = np.einsum("nij,pj->npi", forward, unit_corners(kind)) * poses.size[:, None, None]
    return np.stack([-corners.min(1), corners.max(1)], -1)


def _bounce(start: float, speed: float, reach: np.ndarray, extent: int) -> np.ndarray:
    """Positions (n,) along one axis.  start: part of the free way; reach (n, 2): outline before and after
    the centroid."""
    low, high = reach[:, 0], extent - reach[:, 1]
    if np.any(low > high):
        raise ValueError(
            f"a shape of {reach.sum(1).max():.1f} pixels does not fit into {extent}: expected smaller sizes"
        )
    if np.min(high - low) < abs(speed):  # it would jump from border to border, nearly on the spot
        raise ValueError(
            f"a shape of {reach.sum(1).max():.1f} pixels has {np.min(high - low):.2f} pixels to move in, in "
            f"{extent}, less than its {abs(speed):g} a frame: expected a smaller size or velocity"
        )
    place = low[0] + start * (high[0] - low[0])
    path: list[float] = []
    for first, last in zip(low, high, strict=True):
        place += speed if path else 0.0
        if place < first or place > last:
            speed = -speed
            place = np.clip(2 * (first if place < first else last) - place, first, last)
        path.append(place)
    return np.array(path)
