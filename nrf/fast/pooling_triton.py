"""`pooling.pooled_neurons` as Triton kernels, for CUDA.

Forward a program takes BLOCK columns of 2 x 2 cells through all of time, their voltages in registers: each
current passes through memory once, and a quarter of the responses.  Backward it takes BLOCK cells.  Of leaky
integrators it walks back over the bits and slopes that were kept.  Of the others it notes their voltages
every SEGMENT steps, then walks back over the segments, each computed again in registers.  Where K channels
share a current, they follow each other in one program, which adds up their gradients.  Channels are last in
memory.  Tested on a CPU by Triton's interpreter (TRITON_INTERPRET=1), and by compiling for a GPU.
"""

import torch
import triton
import triton.language as tl

BLOCK = 256  # of a program
SEGMENT = 8  # steps that are in registers at a time
WORD = 32  # bits, one per step
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
def _corner(
    x_ptr, inside, v, slope, bits, n, decay, v_th, weight,
    NET: tl.constexpr, SKIP: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """One cell of the four behind a step: its voltage, that one's derivative at decay, and its bits; its
    response with the skip connection's, and the derivatives at decay and at the connection's weight."""
    x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
    u = _charge(x, v, decay, NET)
    y = _output(u, v_th, NET)
    at_decay = slope
    if SLOPES:
        slope += x - v - decay * slope
        at_decay = tl.where(u <= 0, 0.0, slope)
        bits = tl.where(n == 0, 0, bits) | tl.where(u <= 0, 0, 1 << n)
    if SKIP:
        y += weight * x
    return _reset(u, v_th, NET), slope, bits, tl.where(inside, y, 0.0), at_decay, x


@triton.jit
def _store_four(ptr, C, row, a, b, c, d, left, right, low_left, low_right, IF: tl.constexpr):
    if IF:
        tl.store(ptr, a, mask=left)
        tl.store(ptr + C, b, mask=right)
        tl.store(ptr + row, c, mask=low_left)
        tl.store(ptr + row + C, d, mask=low_right)


@triton.jit
def _note_starts(x_ptr, starts_ptr, v, inside, decay, v_th, T, step, SEGMENT: tl.constexpr):
    """Writes the voltages before every segment of neurons that fire."""
    for t in range(T):
        if t % SEGMENT == 0:
            tl.store(starts_ptr, v, mask=inside)
            starts_ptr += step
        x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
        v = _reset(_charge(x, v, decay, 2), v_th, 2)
        x_ptr += step
    tl.debug_barrier()


@triton.jit
def _pool(
    x_ptr, decay_ptr, v0_ptr, skip_ptr, pooled_ptr, last_ptr, sums_ptr,
    above_ptr, at_decay_ptr, last_slope_ptr, at_skip_ptr, v_th, T, K, groups, B, H, W, C,
    STATE: tl.constexpr, NET: tl.constexpr, REST: tl.constexpr, SKIP: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK: tl.constexpr, WORD: tl.constexpr,
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
    s00, s01, s10, s11, total = nothing, nothing, nothing, nothing, nothing
    zeros = tl.full((BLOCK,), 0, tl.int32)
    b00, b01, b10, b11 = zeros, zeros, zeros, zeros
    x_ptr += (k % groups * B + b) * frame + at
    pooled = (b * 0 + H // 2) * (W // 2) * C
    to = (k * B + b) * pooled + (strip * (W // 2) + j) * C + c
    for t in range(T):
        n = t % WORD
        v00, s00, b00, y00, d00, x00 = _corner(
            x_ptr, left, v00, s00, b00, n, decay, v_th, weight, NET, SKIP, SLOPES)  # fmt: skip
        v01, s01, b01, y01, d01, x01 = _corner(
            x_ptr + C, right, v01, s01, b01, n, decay, v_th, weight, NET, SKIP, SLOPES)  # fmt: skip
        v10, s10, b10, y10, d10, x10 = _corner(
            x_ptr + row, low_left, v10, s10, b10, n, decay, v_th, weight, NET, SKIP, SLOPES)  # fmt: skip
        v11, s11, b11, y11, d11, x11 = _corner(
            x_ptr + row + C, low_right, v11, s11, b11, n, decay, v_th, weight, NET, SKIP, SLOPES)  # fmt: skip
        y = (y00 + y10) + (y01 + y11)
        tl.store(pooled_ptr + to, 0.25 * y, mask=low_right)
        _store_cells(at_decay_ptr + to, 0.25 * ((d00 + d10) + (d01 + d11)), low_right, SLOPES)
        _store_cells(at_skip_ptr + to, 0.25 * ((x00 + x10) + (x01 + x11)), low_right, SLOPES & SKIP)
        if NET == 2:
            total += y
        if SLOPES and (n == WORD - 1 or t == T - 1):
            word_ptr = above_ptr + t // WORD * K * B * frame + state
            _store_four(word_ptr, C, row, b00, b01, b10, b11, left, right, low_left, low_right, True)
        x_ptr += groups * B * frame
        to += K * B * pooled
    _store_four(last_ptr + state, C, row, v00, v01, v10, v11, left, right, low_left, low_right, NET != 0)
    _store_four(last_slope_ptr + state, C, row, s00, s01, s10, s11, left, right, low_left, low_right, SLOPES)
    sums_ptr += ((k * B + b) * tl.num_programs(1) + strip) * tl.num_programs(0) + tl.program_id(0)
    _store_sum(sums_ptr, total, NET == 2)


@triton.jit
def _cells(B, H, W, C, BLOCK: tl.constexpr):
    """Of a program: group and b; its cells of a frame, how many a frame has, which of them exist; their
    place in a pooled frame, its size, which are pooled, which the first of four.  All in 64 bits."""
    group, b = (tl.program_id(1) // B).to(tl.int64), (tl.program_id(1) % B).to(tl.int64)
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column, h, w = cell // (W * C), cell // C % W, (b * 0 + H) // 2, W // 2
    inside, place = cell < (b * 0 + H) * W * C, (row // 2 * w + column // 2) * C + cell % C
    is_pooled = inside & (row < 2 * h) & (column < 2 * w)
    is_first = is_pooled & (row % 2 == 0) & (column % 2 == 0)
    return group, b, cell, (b * 0 + H) * W * C, inside, place, h * w * C, is_pooled, is_first


@triton.jit
def _pool_backward(
    dpooled_ptr, dlast_ptr, each_ptr, x_ptr, decay_ptr, v0_ptr, skip_ptr, starts_ptr, dx_ptr, dv0_ptr,
    changes_ptr, skips_ptr, v_th, alpha, T, K, groups, B, H, W, C, STATE: tl.constexpr,
    NET: tl.constexpr, REST: tl.constexpr, SKIP: tl.constexpr,
    POOLED: tl.constexpr, LAST: tl.constexpr, EACH: tl.constexpr, TO_REST: tl.constexpr, BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    group, b, cell, frame, inside, place, pooled, is_pooled, _ = _cells(B, H, W, C, BLOCK)
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
            _note_starts(x_ptr + at, starts_ptr + at, start, inside, decay, v_th, T, step, SEGMENT)
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


@triton.jit
def _pool_slopes_backward(
    dpooled_ptr, dlast_ptr, above_ptr, at_decay_ptr, last_slope_ptr, at_skip_ptr, decay_ptr, skip_ptr,
    dx_ptr, dv0_ptr, decays_ptr, skips_ptr, T, K, groups, B, H, W, C, STATE: tl.constexpr,
    SKIP: tl.constexpr, POOLED: tl.constexpr, LAST: tl.constexpr, TO_REST: tl.constexpr, BLOCK: tl.constexpr,
    WORD: tl.constexpr,
):  # fmt: skip
    group, b, cell, frame, inside, place, pooled, is_pooled, is_first = _cells(B, H, W, C, BLOCK)
    for k in range(group, K, groups):
        state = (k * B + b) * frame + cell
        decay, weight = tl.load(decay_ptr + k), _load(skip_ptr + k, SKIP)
        nothing = tl.full((BLOCK,), 0.0, STATE)
        h_v = nothing + _load_cells(dlast_ptr + state, inside, LAST)
        decays = h_v * _load_cells(last_slope_ptr + state, inside, LAST)
        skips, bits = nothing, tl.full((BLOCK,), 0, tl.int32)
        for s in range(T):
            t = T - 1 - s
            if s == 0 or t % WORD == WORD - 1:
                bits = tl.load(above_ptr + t // WORD * K * B * frame + state, mask=inside, other=0)
            at = ((t * K + k) * B + b) * pooled + place
            dp = nothing + _load_cells(dpooled_ptr + at, is_pooled, POOLED)
            decays += dp * _load_cells(at_decay_ptr + at, is_first, POOLED)
            skips += dp * _load_cells(at_skip_ptr + at, is_first, POOLED & SKIP)
            g = tl.where((bits >> t % WORD & 1) == 1, 0.25 * dp, 0.0) + h_v
            h_v = (1 - decay) * g
            dx = decay * g + weight * (0.25 * dp)
            to_ptr = dx_ptr + ((t * groups + group) * B + b) * frame + cell
            if k >= groups:
                dx += tl.load(to_ptr, mask=inside, other=0.0).to(STATE)
            tl.store(to_ptr, dx, mask=inside)
        _store_cells(dv0_ptr + state, h_v, inside, TO_REST)
        program = (k * B + b) * tl.num_programs(0) + tl.program_id(0)
        _store_sum(decays_ptr + program, decays, True)
        _store_sum(skips_ptr + program, skips, SKIP)
        tl.debug_barrier()  # before the next k adds to the gradients


def pool(net, K, current, decay, v0, skips, v_th, slopes):
    """As in `scan_native.py`; states and sums in the dtype of the voltages."""
    sizes = T, K, groups, B, H, W, C = len(current), K, *current.shape[1:]
    dtype = _state_dtype(current.dtype, decay)
    out = current.dtype if net == 0 and skips is None else dtype
    pooled = current.new_empty(T, K, B, H // 2, W // 2, C, dtype=out)
    last = None if net == 0 else current.new_empty(K, B, H, W, C, dtype=dtype)
    grid = (triton.cdiv(-(-W // 2) * C, BLOCK), -(-H // 2), K * B)
    sums = current.new_zeros(K, B * grid[0] * grid[1] if net == 2 else 1, dtype=dtype)  # of each program
    pointers = current, decay, v0, skips, pooled, last, sums, *slopes
    flags = dict(STATE=TYPES[dtype], NET=net, REST=v0 is None, SKIP=skips is not None)
    flags |= dict(SLOPES=slopes[0] is not None, BLOCK=BLOCK, WORD=WORD, **OPTIONS)
    with torch.cuda.device_of(current):
        _pool[grid](*_some(pointers), v_th, *sizes, **flags)
    return pooled, last, sums.sum(1, dtype=torch.float64)


def pool_backward(net, K, grads, kept, shape, dtype, decay, skips, v_th, alpha, to_rest):
    """As in `scan_native.py`."""
    sizes = T, K, groups, B, H, W, C = shape[0], K, *shape[1:]
    states, new = _state_dtype(dtype, decay), kept[0].new_empty
    grad_current = new(shape, dtype=dtype if groups == K else states)
    grad_v0 = new(K, B, H, W, C, dtype=states) if to_rest else None
    grid = (triton.cdiv(H * W * C, BLOCK), groups * B)
    sums = new(2, K, B * grid[0], dtype=states).zero_()  # of each program: at decays, at skips
    given = dict(zip(("POOLED", "LAST", "EACH"), (grad is not None for grad in grads), strict=True))
    flags = dict(STATE=TYPES[states], SKIP=skips is not None, TO_REST=to_rest, BLOCK=BLOCK, **OPTIONS)
    with torch.cuda.device_of(grad_current):
        if net == 1:
            del given["EACH"]
            pointers = *grads[:2], *kept, decay, skips, grad_current, grad_v0, *sums
            _pool_slopes_backward[grid](*_some(pointers), *sizes, **flags, **given, WORD=WORD)
        else:
            current, v0 = kept
            starts = None if net == 0 else new(triton.cdiv(T, SEGMENT), *shape[1:], dtype=states)
            pointers = *grads, current, decay, v0, skips, starts, grad_current, grad_v0, *sums
            flags |= dict(NET=net, REST=v0 is None, SEGMENT=SEGMENT)
            _pool_backward[grid](*_some(pointers), v_th, alpha, *sizes, **flags, **given)
    return grad_current, sums.sum(2, dtype=torch.float64).T, grad_v0


def _some(pointers):
    """Any tensor in place of None, where it is not touched."""
    some = next(p for p in pointers if p is not None)
    return [some if p is None else p for p in pointers]


def _state_dtype(current, decay):
    """Of voltages under a current of this dtype: float32 at least."""
    return torch.promote_types(torch.float32, current if decay is None else decay.dtype)
