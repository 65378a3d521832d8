"""`pooling.pooled_neurons` as Triton kernels, for CUDA.

Forward a program takes BLOCK columns of 2 x 2 cells through all of time, their voltages in registers: each
current passes through memory once, and a quarter of the responses.  Backward it takes BLOCK cells: it notes
their voltages every SEGMENT steps, then walks back over the segments, each computed again in registers.
Where K channels share a current, they follow each other in one program, which adds up their gradients.
Channels are last in memory.  Tested on a CPU by Triton's interpreter (TRITON_INTERPRET=1), and by compiling
for a GPU.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # of a program
SEGMENT = 8  # steps that are in registers at a time
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # multiplications and additions apart, as in the loops


@triton.jit
def _load(ptr, IF: tl.constexpr):
    """A number, 0 unless IF."""
    value = 0.0
    if IF:
        value = tl.load(ptr)
    return value


@triton.jit
def _load_cells(ptr, inside, IF: tl.constexpr):
    value = 0.0
    if IF:
        value = tl.load(ptr, mask=inside, other=0.0)
    return value


@triton.jit
def _store_cells(ptr, value, inside, IF: tl.constexpr):
    if IF:
        tl.store(ptr, value, mask=inside)


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _store_sum(ptr, values, IF: tl.constexpr):
    if IF:
        tl.store(ptr, tl.reduce(values, 0, _add))


@triton.jit
def _charge(x, v, decay, NET: tl.constexpr):
    """The voltage before the reset."""
    u = x
    if NET != 0:
        u = v + decay * (x - v)
    return u


@triton.jit
def _reset(u, v_th, NET: tl.constexpr):
    if NET == 2:
        u = u * tl.where(u - v_th > 0, 0.0, 1.0)  # NaN of an infinite voltage, as in the loops
    return u


@triton.jit
def _output(u, v_th, NET: tl.constexpr):
    """Spikes, or the rectified voltage."""
    if NET == 2:
        y = tl.where(u - v_th > 0, 1.0, 0.0).to(u.dtype)
    else:
        y = tl.where(u < 0, 0.0, u)
    return y


@triton.jit
def _gradient(u, h, dy, v_th, alpha, NET: tl.constexpr):
    """dL/du from dL/dv, h, and dL/doutput, dy."""
    if NET == 2:
        steepness = alpha * tl.abs(u - v_th) + 1
        g = h * tl.where(u - v_th > 0, 0.0, 1.0) + (dy - u * h) / (steepness * steepness)
    else:
        g = tl.where(u <= 0, 0.0, dy) + h
    return g


@triton.jit
def _corner(x_ptr, inside, v, decay, v_th, weight, NET: tl.constexpr, SKIP: tl.constexpr):
    """One step of one cell of four: its voltage, and its response with the skip connection's."""
    x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
    u = _charge(x, v, decay, NET)
    y = _output(u, v_th, NET)
    if SKIP:
        y += weight * x
    return _reset(u, v_th, NET), tl.where(inside, y, 0.0)


@triton.jit
def _store_four(ptr, C, row, a, b, c, d, left, right, low_left, low_right, IF: tl.constexpr):
    if IF:
        tl.store(ptr, a, mask=left)
        tl.store(ptr + C, b, mask=right)
        tl.store(ptr + row, c, mask=low_left)
        tl.store(ptr + row + C, d, mask=low_right)


@triton.jit
def _note_starts(
    x_ptr, starts_ptr, v, inside, decay, v_th, T, step, NET: tl.constexpr, SEGMENT: tl.constexpr
):
    """Writes the voltages before every segment."""
    for t in range(T):
        if t % SEGMENT == 0:
            tl.store(starts_ptr, v, mask=inside)
            starts_ptr += step
        x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
        v = _reset(_charge(x, v, decay, NET), v_th, NET)
        x_ptr += step
    tl.debug_barrier()


@triton.jit
def _pool(
    x_ptr, decay_ptr, v0_ptr, skip_ptr, pooled_ptr, last_ptr, sums_ptr,
    v_th, T, K, groups, B, H, W, C,
    STATE: tl.constexpr, NET: tl.constexpr, REST: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k, b = (tl.program_id(2) // B).to(tl.int64), (tl.program_id(2) % B).to(tl.int64)
    strip = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # pair of columns, channel
    j, c = e // C, e % C
    row, frame = W * C, (b * 0 + H) * W * C  # 64 bits
    at = 2 * strip * row + 2 * j * C + c
    left, right, is_low = 2 * j < W, 2 * j + 1 < W, 2 * strip + 1 < H
    low_left, low_right = left & is_low, right & is_low
    decay, weight = _load(decay_ptr + k, NET != 0), _load(skip_ptr + k, SKIP)
    nothing = tl.full((BLOCK,), 0.0, STATE)
    state = (k * B + b) * frame + at
    v00 = nothing + _load_cells(v0_ptr + state, left, not REST)
    v01 = nothing + _load_cells(v0_ptr + state + C, right, not REST)
    v10 = nothing + _load_cells(v0_ptr + state + row, low_left, not REST)
    v11 = nothing + _load_cells(v0_ptr + state + row + C, low_right, not REST)
    total = nothing
    x_ptr += (k % groups * B + b) * frame + at
    pooled = (b * 0 + H // 2) * (W // 2) * C
    to = (k * B + b) * pooled + (strip * (W // 2) + j) * C + c
    for _ in range(T):
        v00, y00 = _corner(x_ptr, left, v00, decay, v_th, weight, NET, SKIP)
        v01, y01 = _corner(x_ptr + C, right, v01, decay, v_th, weight, NET, SKIP)
        v10, y10 = _corner(x_ptr + row, low_left, v10, decay, v_th, weight, NET, SKIP)
        v11, y11 = _corner(x_ptr + row + C, low_right, v11, decay, v_th, weight, NET, SKIP)
        y = (y00 + y10) + (y01 + y11)
        tl.store(pooled_ptr + to, 0.25 * y, mask=low_right)
        if NET == 2:
            total += y
        x_ptr += groups * B * frame
        to += K * B * pooled
    _store_four(last_ptr + state, C, row, v00, v01, v10, v11, left, right, low_left, low_right, NET != 0)
    sums_ptr += ((k * B + b) * tl.num_programs(1) + strip) * tl.num_programs(0) + tl.program_id(0)
    _store_sum(sums_ptr, total, NET == 2)


@triton.jit
def _cells(B, H, W, C, BLOCK: tl.constexpr):
    """Of a program: group and b; its cells of a frame, how many a frame has, which of them exist; their
    place in a pooled frame, its size, which are pooled.  All in 64 bits."""
    group, b = (tl.program_id(1) // B).to(tl.int64), (tl.program_id(1) % B).to(tl.int64)
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column, h, w = cell // (W * C), cell // C % W, (b * 0 + H) // 2, W // 2
    inside, place = cell < (b * 0 + H) * W * C, (row // 2 * w + column // 2) * C + cell % C
    is_pooled = inside & (row < 2 * h) & (column < 2 * w)
    return group, b, cell, (b * 0 + H) * W * C, inside, place, h * w * C, is_pooled


@triton.jit
def _pool_backward(
    dpooled_ptr, dlast_ptr, each_ptr, x_ptr, decay_ptr, v0_ptr, skip_ptr, starts_ptr, dx_ptr, dv0_ptr,
    changes_ptr, skips_ptr, v_th, alpha, T, K, groups, B, H, W, C, STATE: tl.constexpr,
    NET: tl.constexpr, REST: tl.constexpr, SKIP: tl.constexpr,
    POOLED: tl.constexpr, LAST: tl.constexpr, EACH: tl.constexpr, TO_REST: tl.constexpr, BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    group, b, cell, frame, inside, place, pooled, is_pooled = _cells(B, H, W, C, BLOCK)
    step = groups * B * frame
    at = (group * B + b) * frame + cell
    for k in range(group, K, groups):
        state = (k * B + b) * frame + cell
        decay, weight = _load(decay_ptr + k, NET != 0), _load(skip_ptr + k, SKIP)
        each = _load(each_ptr + k, EACH)
        nothing = tl.full((BLOCK,), 0.0, STATE)
        start = nothing + _load_cells(v0_ptr + state, inside, not REST)
        h_v = nothing + _load_cells(dlast_ptr + state, inside, LAST)
        changes, skips = nothing, nothing
        if NET != 0:
            _note_starts(x_ptr + at, starts_ptr + at, start, inside, decay, v_th, T, step, NET, SEGMENT)
        segments = (T + SEGMENT - 1) // SEGMENT
        for s in range(segments):
            segment = segments - 1 - s
            first = segment * SEGMENT
            v = nothing + _load_cells(starts_ptr + segment * step + at, inside, NET != 0)
            xs, us, vs, dys = (), (), (), ()  # currents, voltages, those before a step, outputs' gradients
            for n in tl.static_range(SEGMENT):
                t, there = first + n, inside & (first + n < T)
                x = tl.load(x_ptr + t * step + at, mask=there, other=0.0).to(STATE)
                from_ptr = dpooled_ptr + ((t * K + k) * B + b) * pooled + place
                dy = 0.25 * (nothing + _load_cells(from_ptr, is_pooled & there, POOLED)) + each
                u = _charge(x, v, decay, NET)
                xs, us, vs, dys = xs + (x,), us + (u,), vs + (v,), dys + (dy,)
                v = _reset(u, v_th, NET)
            for n in tl.static_range(SEGMENT - 1, -1, -1):
                t, there = first + n, inside & (first + n < T)
                x, dy = xs[n], dys[n]
                g = _gradient(us[n], h_v, dy, v_th, alpha, NET)
                dx = g
                if NET != 0:
                    changes += tl.where(there, g * (x - vs[n]), 0.0)
                    h_v = tl.where(there, (1 - decay) * g, h_v)
                    dx = decay * g
                if SKIP:
                    skips += tl.where(there, dy * x, 0.0)
                    dx += weight * dy
                if k >= groups:
                    dx += tl.load(dx_ptr + t * step + at, mask=there, other=0.0).to(STATE)
                tl.store(dx_ptr + t * step + at, dx, mask=there)
        _store_cells(dv0_ptr + state, h_v, inside, TO_REST)
        program = (k * B + b) * tl.num_programs(0) + tl.program_id(0)
        _store_sum(changes_ptr + program, changes, NET != 0)
        _store_sum(skips_ptr + program, skips, SKIP)
        tl.debug_barrier()  # before the next k takes the working memory


def pool(
    net: int,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As in `scan_native.py`; states and sums in the dtype of the voltages."""
    sizes = T, K, groups, B, H, W, C = len(current), K, *current.shape[1:]
    dtype = _state_dtype(current.dtype, decay)
    pooled = current.new_empty(T, K, B, H // 2, W // 2, C)
    last = None if net == 0 else current.new_empty(K, B, H, W, C, dtype=dtype)
    grid = (triton.cdiv(-(-W // 2) * C, BLOCK), -(-H // 2), K * B)
    sums = current.new_zeros(K, B * grid[0] * grid[1] if net == 2 else 1, dtype=dtype)  # of each program
    pointers = current, decay, v0, skips, pooled, last, sums
    flags = dict(STATE=TYPES[dtype], NET=net, REST=v0 is None, SKIP=skips is not None)
    flags |= dict(BLOCK=BLOCK, **OPTIONS)
    with torch.cuda.device_of(current):
        _pool[grid](*_some(pointers), v_th, *sizes, **flags)
    return pooled, last, sums.sum(1, dtype=torch.float64)


def pool_backward(
    net: int,
    K: int,
    grads: Sequence[Tensor | None],
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float,
    alpha: float,
    to_rest: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As in `scan_native.py`."""
    sizes = T, K, groups, B, H, W, C = len(current), K, *current.shape[1:]
    states, new = _state_dtype(current.dtype, decay), current.new_empty
    grad_current = new(current.shape, dtype=current.dtype if groups == K else states)
    grad_v0 = new(K, B, H, W, C, dtype=states) if to_rest else None
    grid = (triton.cdiv(H * W * C, BLOCK), groups * B)
    sums = new(2, K, B * grid[0], dtype=states).zero_()  # of each program: at decays, at skips
    starts = None if net == 0 else new(triton.cdiv(T, SEGMENT), *current.shape[1:], dtype=states)
    pointers = *grads, current, decay, v0, skips, starts, grad_current, grad_v0, *sums
    flags = dict(zip(("POOLED", "LAST", "EACH"), (grad is not None for grad in grads), strict=True))
    flags |= dict(STATE=TYPES[states], NET=net, REST=v0 is None, SKIP=skips is not None)
    flags |= dict(TO_REST=to_rest, BLOCK=BLOCK, SEGMENT=SEGMENT, **OPTIONS)
    with torch.cuda.device_of(current):
        _pool_backward[grid](*_some(pointers), v_th, alpha, *sizes, **flags)
    return grad_current, sums.sum(2, dtype=torch.float64).T, grad_v0


def _some(pointers: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Any tensor in place of None, where it is not touched."""
    some = next(p for p in pointers if p is not None)
    return [some if p is None else p for p in pointers]


def _state_dtype(current: torch.dtype, decay: Tensor | None) -> torch.dtype:
    """Of voltages under a current of this dtype: float32 at least."""
    return torch.promote_types(torch.float32, current if decay is None else decay.dtype)
