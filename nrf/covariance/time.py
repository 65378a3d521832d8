"""How far the recursions over time are from the covariance of the theory, and what moves in space and time.

    play an input S times slower, with time constants S tau:   r'(S t) = r(t)

Truth is continuous: the recursion exact for inputs constant within a step, at a 64th of the network's step.
"exact" is that recursion at 1 ms, "euler" the published step v += dt / tau (x - v), "geometric" Lindeberg's.
Times are in ms.  Source: paper, Results and Methods (temporal, joint and Galilean covariance).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nrf.covariance.space import (
    MEASURED_ORDERS,
    Image,
    Row,
    blobs,
    errors,
    filtered,
    kernels_of,
    rotation,
    support_of,
)
from nrf.gerd.render import RenderParameters, render
from nrf.network.neurons import (
    ALPHA,
    V_TH,
    LIBoxParameters,
    LIFBoxParameters,
    leaky_integrate,
    leaky_integrate_and_fire,
)
from nrf.theory.affine_gaussian import affine_kernels, field_from_axes, mapped
from nrf.theory.cascades import integrate_cascade, lindeberg_time_constants, stage_decay

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the time axis
RECURSIONS = ("exact", "euler", "geometric")
NAMES = {"exact": "exponential", "euler": "euler"}  # of these for one stage, in `stage_decay`
FINE = 64  # steps of the truth per ms
DURATION = 160  # ms, of the inputs at S = 1
PIECE = 4  # ms that an input of pieces stays constant


def pieces(t: Tensor) -> Tensor:
    """An input that is constant for `PIECE` ms at a time, at times t."""
    heights = torch.rand(DURATION // PIECE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return heights[(t / PIECE).long().clamp(0, len(heights) - 1)] * (t < DURATION)


def bumps(t: Tensor) -> Tensor:
    """A smooth input, three Gaussians of 4 to 10 ms, at times t."""
    bump = ((20.0, 4.0, 1.0), (60.0, 10.0, 0.7), (105.0, 6.0, 1.3))
    heights = (height * torch.exp(-(((t - mean) / sigma) ** 2) / 2) for mean, sigma, height in bump)
    return sum(heights, torch.zeros_like(t))


def response(signal: Tensor, tau: Tensor, step: str = "exact", dt: float = 1.0) -> Tensor:
    """Outputs (T, ...) of a cascade of time constants tau (n,) to signal (T, ...).  step: of `RECURSIONS`."""
    if step == "exact":
        return integrate_cascade(signal, tau, dt)[0][..., -1]
    for decay in stage_decay(tau, dt, step):
        signal, _ = leaky_integrate(signal, LIBoxParameters(tau_mem_inv=decay), dt=1.0)
    return signal


def sampled(function: Callable[[Tensor], Tensor], scale: float, dt: float = 1.0) -> Tensor:
    """The input, S = scale times slower, in the middle of each step: (T, 1)."""
    t = (torch.arange(round(DURATION * scale / dt), dtype=torch.float64) + 0.5) * dt
    return function(t / scale)[:, None]


def linear_rows() -> list[Row]:
    """Rows {neuron, input, scale, step, error, true_error} of leaky integrators and cascades."""
    neurons = {
        "leaky integrator": torch.tensor([10.0], dtype=torch.float64),
        "cascade of 3": lindeberg_time_constants(100.0, 3),
    }
    rows = []
    for (name, tau), function in ((n, f) for n in neurons.items() for f in (pieces, bumps)):
        truth = response(sampled(function, 1.0, 1 / FINE), tau, dt=1 / FINE)[FINE * PIECE - 1 :: FINE * PIECE]
        here = {step: response(sampled(function, 1.0), tau, step)[PIECE - 1 :: PIECE] for step in RECURSIONS}
        for scale in SCALES:
            every = round(PIECE * scale)  # at S t for t = 4, 8, ... ms
            for step in RECURSIONS:
                there = response(sampled(function, scale), scale * tau, step)[every - 1 :: every]
                error, true = (errors(there, wanted)[0].item() for wanted in (here[step], truth))
                rows.append(
                    {
                        "neuron": name,
                        "input": function.__name__,
                        "scale": scale,
                        "step": step,
                        "error": error,
                        "true_error": true,
                    }
                )
    return rows


def spike_times(current: float, duration: float, tau: float, v_th: float = V_TH) -> Tensor:
    """True spike times (n,) of a leaky integrate-and-fire neuron at rest that gets a constant current."""
    if current <= v_th:
        return torch.zeros(0, dtype=torch.float64)
    interval = tau * math.log(current / (current - v_th))
    return interval * torch.arange(1, math.floor(duration / interval) + 1, dtype=torch.float64)


def firing_rows(tau: float = 20.0, trials: int = 40) -> list[Row]:
    """Rows {neuron, scale, step, rate_error, true_rate_error, late_ms} of spiking neurons in trials of a
    constant current each, 1.2 to 6 thresholds.

    rate_error: mean over trials of how much the number of spikes differs, relative to the same recursion's at
    S = 1; true_rate_error: to the truth.  late_ms: median of how much later than in truth the first comes,
    over S."""
    currents = torch.linspace(1.2, 6.0, trials, dtype=torch.float64) * V_TH
    truth = [spike_times(current, DURATION, tau) for current in currents.tolist()]
    true_counts = torch.tensor([float(len(times)) for times in truth])
    first = torch.stack([times[0] for times in truth])
    rows = []
    for step in ("exact", "euler"):
        counts, late = {}, {}
        for scale in SCALES:
            decay = stage_decay(torch.tensor(scale * tau, dtype=torch.float64), 1.0, NAMES[step])
            p = LIFBoxParameters(tau_mem_inv=decay, v_th=torch.tensor(V_TH), alpha=torch.tensor(ALPHA))
            spikes, _ = leaky_integrate_and_fire(currents.expand(round(DURATION * scale), -1), p, dt=1.0)
            counts[scale] = spikes.sum(0)
            late[scale] = ((spikes.argmax(0) + 1) / scale - first).median().item()
        rows += [
            {
                "neuron": "leaky integrate-and-fire",
                "scale": scale,
                "step": step,
                "rate_error": (counts[scale] / counts[1.0] - 1).abs().mean().item(),
                "true_rate_error": (counts[scale] / true_counts - 1).abs().mean().item(),
                "late_ms": late[scale],
            }
            for scale in SCALES
        ]
    return rows


# --- space and time ---


def places(reach: float = 6.0, n: int = 5) -> Tensor:
    line = torch.linspace(-reach, reach, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line) + 0.137


def moving(image: Image, velocity: Tensor, t: Tensor) -> Image:
    """The image at time t, moved by velocity (2,) pixels a ms: a function of points."""
    return lambda points: image(points - velocity * t)


def joint_rows(duration: int = 40) -> list[Row]:
    """Rows {map, scale, family, order, error}: space by A and time by S at once, of blobs that move, through
    a spatial kernel and a leaky integrator; the published family by its Euler step."""
    eye = torch.eye(2, dtype=torch.float64)
    maps = (
        ("scaling 2, time 2", 2 * eye, 2.0),
        ("scaling 0.71, time 0.5", 2**-0.5 * eye, 0.5),
        ("rotation 30°, time 2", rotation(math.radians(30)), 2.0),
        ("shear 0.5, time 0.5", torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64), 0.5),
    )
    image, velocity = blobs(), torch.tensor([0.15, -0.1], dtype=torch.float64)
    field = field_from_axes(*torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64))
    tau = torch.tensor([10.0], dtype=torch.float64)
    rows = []
    for name, matrix, scale in maps:
        there = mapped(field, matrix)
        size = max(support_of(field), support_of(there))
        for family, step in (("exact", "exact"), ("published", "euler")):
            responses = []
            for one, own_map, own_scale in ((field, eye, 1.0), (there, matrix, scale)):
                kernels = kernels_of(family, one, MEASURED_ORDERS, size)
                own, speed = image.mapped(own_map), own_map @ velocity / own_scale
                middles = torch.arange(round(duration * own_scale)) + 0.5
                currents = torch.stack(
                    [filtered(moving(own, speed, t), places() @ own_map.T, kernels) for t in middles]
                )
                every = round(PIECE * own_scale)
                responses.append(response(currents, own_scale * tau, step)[every - 1 :: every].flatten(0, 1))
            error, shape = errors(responses[1], responses[0])
            rows += [
                {"map": name, "family": family, **row} for row in by_order(error=error, shape_error=shape)
            ]
    return rows


def galilean_rows(tau: float = 10.0, lags: int = 120, time: float = 30.0) -> list[Row]:
    """Rows {velocity, fields, order, error}: an image that moves by u seen by fields that move along with u,
    and by fields that stand still as the network's do, against the still image seen by still fields.

    A moving field is its kernel at every lag, off its centre by velocity times lag, exact there too."""
    image, slow = blobs(), torch.tensor([0.1, 0.05], dtype=torch.float64)
    field = field_from_axes(*torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64))
    size, decay = support_of(field) + 2, stage_decay(torch.tensor(tau, dtype=torch.float64)).item()
    ages = torch.arange(lags, dtype=torch.float64) + 0.5
    weights = decay * (1 - decay) ** torch.arange(lags, dtype=torch.float64)

    def seen(velocity: Tensor, field_velocity: Tensor) -> Tensor:
        """Responses at the places, which move by the image's velocity, (P, orders)."""
        shifts = ages[:, None] * field_velocity
        whole = shifts.round()
        few = field._replace(covariance=field.covariance.expand(lags, 2, 2), directions=field.directions)
        kernels = affine_kernels(few, MEASURED_ORDERS, size, offset=shifts - whole)
        points = places() + velocity * time
        seen_then = (
            weight * filtered(moving(image, slow + velocity, time - age), points - shift, kernel)
            for weight, age, shift, kernel in zip(weights, ages, whole, kernels, strict=True)
        )
        return sum(seen_then, points.new_zeros(()))

    still = torch.zeros(2, dtype=torch.float64)
    wanted, rows = seen(still, still), []
    for velocity in ((0.2, 0.1), (0.5, 0.0), (1.3, -0.7)):
        u = torch.tensor(velocity, dtype=torch.float64)
        for name, own in (("moving along", u), ("standing still", still)):
            error, shape = errors(seen(u, own), wanted)
            rows += [
                {"velocity": "{} {}".format(*velocity), "fields": name, **row}
                for row in by_order(error=error, shape_error=shape)
            ]
    return rows


def speed_rows(slow: float = 0.5, tau: float = 20.0, frames: int = 60) -> list[Row]:
    """Rows {shape, step, order, error}: events of a GERD shape at velocity v through tau, against 2 v through
    tau / 2, where it is at the same place; an event is an impulse, so that rates double.

    Shapes of 18 pixels in 64 x 64, rendered clean and without noise, through fields of 1.5 pixels."""
    field = field_from_axes(*torch.tensor([1.5, 1.5, 0.0], dtype=torch.float64))
    kernels = kernels_of("exact", field, MEASURED_ORDERS, support_of(field))[:, None].float()
    rows = []
    for shape in ("circle", "square", "triangle"):
        currents, where = zip(
            *(shape_currents(shape, slow * factor, 2 * frames // factor, kernels) for factor in (1, 2)),
            strict=True,
        )
        same = torch.cdist(where[1], where[0]) < 1e-3  # is at the same place: frames of 2 v by frames of v
        same[: frames // 3] = False  # while integrators fill
        n, m = same.nonzero().T
        if not len(n):
            raise RuntimeError(f"{shape}: no places in common at {slow} and {2 * slow} pixels a frame")
        for step in ("exact", "euler"):
            calm, fast = (
                response(current.double(), torch.tensor([tau / factor]).double(), step) / factor
                for current, factor in zip(currents, (1, 2), strict=True)
            )
            error, shaped = errors(*(v.movedim(1, -1).flatten(0, -2) for v in (fast[n], calm[m])))
            rows += [
                {"shape": shape, "velocity": slow, "step": step, **row}
                for row in by_order(error=error, shape_error=shaped)
            ]
    return rows


def shape_currents(shape: str, velocity: float, frames: int, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Events of polarity 1 of a moving shape through kernels (n, 1, s, s): (T, n, H, W), and its places (T,
    2)."""
    p = RenderParameters("clean", (64, 64), frames, (shape,), 18.0, velocity, bg_density=0.0)
    recording = render(p, seed=3)
    dense = torch.zeros(recording.shape)
    dense[tuple(torch.from_numpy(recording.events).long().T)] = 1
    currents = torch.nn.functional.conv2d(dense[:, 1:], kernels.flip(-1, -2), padding="same")
    return currents, torch.from_numpy(recording.labels[:, 0]).double()


def by_order(**columns: Tensor) -> list[Row]:
    """A row for each of `MEASURED_ORDERS`, of columns (orders,)."""
    return [
        {"order": "{}{}".format(*order), **{name: values[i].item() for name, values in columns.items()}}
        for i, order in enumerate(MEASURED_ORDERS)
    ]
