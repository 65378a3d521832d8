// Neurons over time on a CPU: the scans of neurons.py, and neurons with the pooling after them.
//
// Compiled by native.py, called by scan_native.py.  A block of cells walks through all of time before the next
// one does, so that states stay in cache and every current, output and gradient passes through memory once.  Each
// cell takes the operations of the readable loops in their order, without contraction to fused multiply-adds:
// voltages and spikes equal the loops' bit by bit.  Sums over cells are made per block and added up in a fixed order,
// whatever the number of threads.
//
// R: float or double, of states and parameters.  X: R, or bfloat16, of currents, pooled responses and their gradients;
// all is computed in R.  T: steps.  K: temporal channels, each of its decay.  groups: K, or 1 where all K see the
// same current.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

using index = std::int64_t;

constexpr index BLOCK = 1024;    // cells that are scanned at a time
constexpr index KEPT = 1 << 17;  // cells, times steps, that a pooled backward pass keeps in cache
enum Net { RELU, LI, LIF };      // as in pooling.py

enum class bfloat16 : std::uint16_t {};  // the upper half of a float; a struct's loops are not vectorised

inline double value(double x) { return x; }
inline float value(float x) { return x; }
inline float value(bfloat16 half) {
    const std::uint32_t bits = std::uint32_t(half) << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

template <typename X, typename R>
inline X rounded(R x) {  // to even
    if constexpr (std::is_same_v<X, R>) return x;
    else {
        std::uint32_t bits;
        __builtin_memcpy(&bits, &x, sizeof bits);
        return X(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
    }
}

// --- one step of one cell: v before it, x its current, u the voltage before the reset ---

template <Net NET, typename R>
inline R charge(R x, R v, R decay) {
    return NET == RELU ? x : v + decay * (x - v);
}

template <typename R>
inline R fires(R u, R v_th) {
    return u > v_th ? R(1) : R(0);
}

template <Net NET, typename R>
inline R reset(R u, R v_th) {
    return NET == LIF ? (1 - fires(u, v_th)) * u : u;
}

template <Net NET, typename R>
inline R output(R u, R v_th) {  // spikes, or the rectified voltage
    return NET == LIF ? fires(u, v_th) : u < 0 ? R(0) : u;
}

// what voltages before step t are reset above: those before the first step have been reset
template <typename R>
inline R threshold_before(index t, R v_th) {
    return t ? v_th : std::numeric_limits<R>::infinity();
}

// dL/du from dL/dv, h, and dL/doutput, dy
template <Net NET, typename R>
inline R gradient(R u, R h, R dy, R v_th, R alpha) {
    if (NET != LIF) return (u <= 0 ? R(0) : dy) + h;
    const R distance = u - v_th, steepness = alpha * std::abs(distance) + 1;
    return (1 - fires(u, v_th)) * h + (dy - u * h) / (steepness * steepness);
}

// Working memory of this thread by number: fresh memory costs more than what is done in it.
template <typename R>
R *workspace(int number, index n) {
    thread_local std::vector<R> buffers[8];
    if (index(buffers[number].size()) < n) buffers[number].resize(n);
    return buffers[number].data();
}

// What gradients are added to: those of a k before that had the same current, held in `copy`, or none.
template <typename R>
const R *base(const R *grads, bool some, index n, R *copy, const R *none) {
    return some ? std::copy_n(grads, n, copy), copy : none;
}

// Sums are made in place, or, of narrower numbers, in working memory, from which they are kept at the end.
template <typename R, typename X>
constexpr bool IN_PLACE = std::is_same_v<R, X>;

template <typename R, typename X>
R *sum_at(X *place, R *working, index at) {
    if constexpr (IN_PLACE<R, X>) return place;
    else return working + at;
}

template <typename R, typename X>
void keep(const R *sums, index n, X *to) {
    if constexpr (!IN_PLACE<R, X>)
#pragma omp simd
        for (index i = 0; i < n; i++) to[i] = rounded<X>(sums[i]);
}

template <typename R>
double total(const R *values, index n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index i = 0; i < n; i++) sum += values[i];
    return sum;
}

// --- scans of cells (T, K, n) under currents (T, groups, n); decay (K, 1), or (K, n) if per_cell ---

struct Scan {
    index T, K, groups, n, per_cell, threads;

    // at(k, first, cells, decay) for blocks of cells; k of one group one after the other
    template <typename R, typename F>
    void each_block(const R *decay, F at) const {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
        for (index group = 0; group < groups; group++)
            for (index first = 0; first < n; first += BLOCK) {
                const index cells = std::min(BLOCK, n - first);
                R d[BLOCK];
                for (index k = group; k < K; k += groups) {
                    for (index i = 0; i < cells; i++) d[i] = per_cell ? decay[k * n + first + i] : decay[k];
                    at(k, first, cells, d);
                }
            }
    }
};

// Voltages (LI), or spikes and the last voltages (LIF).
template <Net NET, typename R>
void scan(Scan s, const R *current, const R *decay, const R *v0, R threshold, R *out, R *last) {
    s.each_block(decay, [=](index k, index first, index cells, const R *d) {
        const R v_th = threshold;  // a copy here cannot be what a store writes to
        R v[BLOCK];
        std::copy_n(v0 + k * s.n + first, cells, v);
        for (index t = 0; t < s.T; t++) {
            const R *x = current + (t * s.groups + k % s.groups) * s.n + first;
            R *y = out + (t * s.K + k) * s.n + first;
#pragma omp simd
            for (index i = 0; i < cells; i++) {
                const R u = charge<NET>(x[i], v[i], d[i]);
                y[i] = NET == LIF ? fires(u, v_th) : u;
                v[i] = reset<NET>(u, v_th);
            }
        }
        if (NET == LIF) std::copy_n(v, cells, last + k * s.n + first);
    });
}

template <typename R>
void integrate_backward(Scan s, const R *grad_voltages, const R *voltages, const R *decay, const R *v0, R *grad_current,
                        R *changes, R *grad_v0) {
    s.each_block(decay, [=](index k, index first, index cells, const R *d) {
        R h[BLOCK] = {}, change[BLOCK] = {}, copy[BLOCK], none[BLOCK] = {};
        for (index t = s.T - 1; t >= 0; t--) {
            const R *dv = grad_voltages + (t * s.K + k) * s.n + first;
            const R *v = voltages + (t * s.K + k) * s.n + first;
            const R *before = t ? v - s.K * s.n : v0 + k * s.n + first;
            R *dx = grad_current + (t * s.groups + k % s.groups) * s.n + first;
            const R *others = base(dx, k >= s.groups, cells, copy, none);
#pragma omp simd
            for (index i = 0; i < cells; i++) {
                const R g = dv[i] + h[i];
                change[i] += g * (v[i] - before[i]);
                h[i] = (1 - d[i]) * g;
                dx[i] = others[i] + d[i] * g;
            }
        }
        std::copy_n(h, cells, grad_v0 + k * s.n + first);
        std::copy_n(change, cells, changes + k * s.n + first);
    });
}

// The voltages are computed again: only the current is kept.
template <typename R>
void fire_backward(Scan s, const R *grad_spikes, const R *grad_last, const R *current, const R *decay, const R *v0,
                   R threshold, R steepness, R *grad_current, R *changes, R *grad_v0) {
    s.each_block(decay, [=](index k, index first, index cells, const R *d) {
        const R v_th = threshold, alpha = steepness;
        R h[BLOCK], change[BLOCK] = {}, copy[BLOCK], none[BLOCK] = {};
        R *voltages = workspace<R>(0, (s.T + 1) * BLOCK);  // before the reset; the first are those at the start
        std::copy_n(v0 + k * s.n + first, cells, voltages);
        for (index t = 0; t < s.T; t++) {
            const R *x = current + (t * s.groups + k % s.groups) * s.n + first;
            const R *before = voltages + t * BLOCK;
            const R v_th_before = threshold_before(t, v_th);
            R *u = voltages + (t + 1) * BLOCK;
#pragma omp simd
            for (index i = 0; i < cells; i++)
                u[i] = charge<LIF>(x[i], reset<LIF>(before[i], v_th_before), d[i]);
        }
        std::copy_n(grad_last + k * s.n + first, cells, h);
        for (index t = s.T - 1; t >= 0; t--) {
            const R *dz = grad_spikes + (t * s.K + k) * s.n + first;
            const R *u = voltages + (t + 1) * BLOCK;
            const R *before = voltages + t * BLOCK;
            const R v_th_before = threshold_before(t, v_th);
            R *dx = grad_current + (t * s.groups + k % s.groups) * s.n + first;
            const R *others = base(dx, k >= s.groups, cells, copy, none);
#pragma omp simd
            for (index i = 0; i < cells; i++) {
                const R g = gradient<LIF>(u[i], h[i], dz[i], v_th, alpha);
                change[i] += g * (u[i] - reset<LIF>(before[i], v_th_before));
                h[i] = (1 - d[i]) * g;
                dx[i] = others[i] + d[i] * g;
            }
        }
        std::copy_n(h, cells, grad_v0 + k * s.n + first);
        std::copy_n(change, cells, changes + k * s.n + first);
    });
}

// --- neurons, [skip connection] and 2 x 2 average pooling of currents (T, groups, B, H, W, C) ---
//
//     y = output(u) + skip x            pooled (T, K, B, H / 2, W / 2, C)
//
// decay, skip (K,), the latter or null; states (K, B, H, W, C), or null for rest; sums (B, strips, K, ...), a strip
// being two rows.  The last row or column of an odd size is not pooled.

struct Pooled {
    index T, K, groups, B, H, W, C, threads;

    index row() const { return W * C; }
    index frame() const { return H * W * C; }
    index pooled_row() const { return W / 2 * C; }
    index strips() const { return (H + 1) / 2; }

    struct Block {  // `rows` rows of `cells` cells, whose first `pairs` pairs of pixels are pooled
        index b, strip, k, rows, cells, pairs, at, pooled_at;
    };

    index at(index t, index many, index k, index b) const { return (t * many + k % many) * B + b; }
    index current_at(index t, Block block, index r) const {
        return at(t, groups, block.k, block.b) * frame() + block.at + r * row();
    }
    index state_at(Block block, index r) const { return (block.k * B + block.b) * frame() + block.at + r * row(); }
    index pooled_at(index t, Block block) const {
        return at(t, K, block.k, block.b) * (H / 2) * pooled_row() + block.pooled_at;
    }

    template <typename F>
    void each_block(F visit) const {
        const index most = std::max<index>(2, KEPT / (T * 2 * C) / 2 * 2);  // pixels, an even number
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
        for (index b = 0; b < B; b++)
            for (index strip = 0; strip < strips(); strip++)
                for (index left = 0; left < W; left += most)
                    for (index k = 0; k < K; k++) {
                        const index rows = std::min<index>(2, H - 2 * strip), pixels = std::min(most, W - left);
                        visit(Block{b, strip, k, rows, pixels * C, rows == 2 ? pixels / 2 : 0,
                                    2 * strip * row() + left * C, strip * pooled_row() + left / 2 * C});
                    }
    }
};

// Means over 2 x 2 pixels, from the sums over rows of `pairs` pairs of pixels.
template <typename R, typename X>
void average(const R *sums, index pairs, index C, X *to) {
    for (index j = 0; j < pairs; j++) {
        const R *left = sums + 2 * j * C, *right = left + C;
        X *out = to + j * C;
#pragma omp simd
        for (index c = 0; c < C; c++) out[c] = rounded<X>((left[c] + right[c]) * R(0.25));
    }
}

// And back: gradients at each pixel of a row, from those at the means (or null) and at the sum of all pixels.
template <typename R, typename X>
void spread(const X *grads, index pairs, index C, R each, R *to, index n) {
    std::fill_n(to, n, each);
    for (index j = 0; grads && j < pairs; j++) {
        const X *grad = grads + j * C;
        R *left = to + 2 * j * C, *right = left + C;
#pragma omp simd
        for (index c = 0; c < C; c++) left[c] = right[c] = each + R(0.25) * value(grad[c]);
    }
}

template <Net NET, typename R, typename X>
void pool(Pooled p, const X *current, const R *decay, const R *v0, R threshold, const R *skip, X *pooled, R *last,
          double *sums) {
    p.each_block([=](Pooled::Block block) {
        const index n = block.cells, k = block.k, both = 2 * n;
        const R d = NET == RELU ? R(1) : decay[k], weight = skip ? skip[k] : R(0), v_th = threshold;
        R *v = workspace<R>(0, both), *y = workspace<R>(1, n), *spikes = workspace<R>(2, n);
        std::fill_n(v, both, R(0));
        std::fill_n(spikes, n, R(0));
        for (index r = 0; NET != RELU && v0 && r < block.rows; r++)
            std::copy_n(v0 + p.state_at(block, r), n, v + r * n);
        for (index t = 0; t < p.T; t++) {
            std::fill_n(y, n, R(0));
            for (index r = 0; r < block.rows; r++) {
                const X *x = current + p.current_at(t, block, r);
                R *v_r = v + r * n;
#pragma omp simd
                for (index i = 0; i < n; i++) {
                    const R u = charge<NET>(value(x[i]), v_r[i], d), out = output<NET>(u, v_th);
                    v_r[i] = reset<NET>(u, v_th);
                    y[i] += skip ? out + weight * value(x[i]) : out;
                }
            }
            if (NET == LIF)
#pragma omp simd
                for (index i = 0; i < n; i++) spikes[i] += y[i];
            average(y, block.pairs, p.C, pooled + p.pooled_at(t, block));
        }
        for (index r = 0; NET != RELU && r < block.rows; r++) std::copy_n(v + r * n, n, last + p.state_at(block, r));
        if (NET == LIF) sums[(block.b * p.strips() + block.strip) * p.K + k] += total(spikes, n);
    });
}

// grad_pooled, grad_last and grad_each (K,), the gradient at the sum of all y of a k: each or null.
// sums: of the gradients at decay and skip.
template <Net NET, typename R, typename X>
void pool_backward(Pooled p, const X *grad_pooled, const R *grad_last, const R *grad_each, const X *current,
                   const R *decay, const R *v0, R threshold, R steepness, const R *skip, X *grad_current, R *grad_v0,
                   double *sums) {
    p.each_block([=](Pooled::Block block) {
        const index n = block.cells, k = block.k, both = 2 * n;
        const R d = NET == RELU ? R(1) : decay[k], weight = skip ? skip[k] : R(0);
        const R v_th = threshold, alpha = steepness, each = grad_each ? grad_each[k] : R(0);
        R *voltages = workspace<R>(0, (p.T + 1) * both);  // before the reset; the first are those at the start
        R *h = workspace<R>(1, both), *dy = workspace<R>(2, n), *at_decay = workspace<R>(3, both), *at_skip = workspace<R>(4, both);
        R *copy = workspace<R>(5, n), *none = workspace<R>(6, n);
        const bool is_added = k >= p.groups, is_whole = k + p.groups >= p.K;
        R *narrow = IN_PLACE<R, X> ? nullptr : workspace<R>(7, p.groups < p.K ? p.T * both : both);
        std::fill_n(none, n, R(0));
        for (R *zero : {voltages, h, at_decay, at_skip}) std::fill_n(zero, both, R(0));
        for (index r = 0; NET != RELU && r < block.rows; r++) {
            if (v0) std::copy_n(v0 + p.state_at(block, r), n, voltages + r * n);
            if (grad_last) std::copy_n(grad_last + p.state_at(block, r), n, h + r * n);
        }
        for (index t = 0; NET != RELU && t < p.T; t++)
            for (index r = 0; r < block.rows; r++) {
                const X *x = current + p.current_at(t, block, r);
                const R *before = voltages + t * both + r * n;
                const R v_th_before = threshold_before(t, v_th);
                R *u = voltages + (t + 1) * both + r * n;
#pragma omp simd
                for (index i = 0; i < n; i++)
                    u[i] = charge<NET>(value(x[i]), reset<NET>(before[i], v_th_before), d);
            }
        for (index t = p.T - 1; t >= 0; t--) {
            spread(grad_pooled ? grad_pooled + p.pooled_at(t, block) : nullptr, block.pairs, p.C, each, dy, n);
            for (index r = 0; r < block.rows; r++) {
                const index cell = p.current_at(t, block, r);
                const X *x = current + cell;
                const R *before = voltages + t * both + r * n;
                const R v_th_before = threshold_before(t, v_th);
                const R *u = voltages + (t + 1) * both + r * n;
                R *h_r = h + r * n, *dx = sum_at(grad_current + cell, narrow, (p.groups < p.K ? t * both : 0) + r * n);
                const R *others = base(dx, is_added, n, copy, none);
                R *decays = at_decay + r * n, *skips = at_skip + r * n;
#pragma omp simd
                for (index i = 0; i < n; i++) {
                    const R x_i = value(x[i]), g = gradient<NET>(NET == RELU ? x_i : u[i], h_r[i], dy[i], v_th, alpha);
                    if (NET != RELU) {
                        decays[i] += g * (x_i - reset<NET>(before[i], v_th_before));
                        h_r[i] = (1 - d) * g;
                    }
                    skips[i] += dy[i] * x_i;
                    dx[i] = others[i] + (d * g + weight * dy[i]);
                }
                if (is_whole) keep(dx, n, grad_current + cell);
            }
        }
        for (index r = 0; grad_v0 && r < block.rows; r++) std::copy_n(h + r * n, n, grad_v0 + p.state_at(block, r));
        double *sum = sums + ((block.b * p.strips() + block.strip) * p.K + k) * 2;
        sum[0] += total(at_decay, block.rows * n);
        sum[1] += total(at_skip, block.rows * n);
    });
}

// --- convolution of sparse frames: every cell that is not zero brings its weights to the pixels that see it ---
//
//     y[f, i, j, n] = sum over c, a, b of  w[n, c, a, b] x[f, i + a - padding, j + b - padding, c]
//
// cells: (f, y, x, c) of each, in the order of memory, those of frame f from starts[f] to starts[f + 1]; values: of x.
// weight (C, k, k, N): w turned round, so that what one cell brings to a row of pixels is one run of memory.

struct Sparse {
    index F, H, W, C, N, k, padding, threads;

    index height() const { return H + 2 * padding - k + 1; }
    index width() const { return W + 2 * padding - k + 1; }

    struct Stamp {  // where the weights of a cell come to lie: taps [first, last) of a row, rows [upper, lower)
        index c, top, left, upper, lower, first, last;
    };

    Stamp stamp(const index *cell) const {
        const index top = cell[1] + padding - k + 1, left = cell[2] + padding - k + 1;
        return {cell[3], top, left, std::max<index>(0, -top), std::min(k, height() - top), std::max<index>(0, -left),
                std::min(k, width() - left)};
    }
};

template <typename R, typename X>
inline void add_scaled(R *to, const X *from, R by, index n) {
#pragma omp simd
    for (index i = 0; i < n; i++) to[i] += by * value(from[i]);
}

template <typename R, typename X>
void sparse(Sparse s, const index *cells, const index *starts, const R *values, const R *weight, X *out) {
    const index row = s.width() * s.N, height = s.height();
#pragma omp parallel for schedule(static) num_threads(s.threads)
    for (index f = 0; f < s.F; f++) {
        R *working = IN_PLACE<R, X> ? nullptr : workspace<R>(0, height * row);
        X *to = out + f * height * row;
        R *frame = sum_at(to, working, 0);
        index cleared = 0, kept = 0;  // rows, just before they are first added to and after they last are: in cache
        for (index e = starts[f]; e < starts[f + 1]; e++) {
            const Sparse::Stamp at = s.stamp(cells + 4 * e);
            const index first = at.top + at.upper, bottom = at.top + at.lower;
            if (bottom > cleared) std::fill(frame + cleared * row, frame + bottom * row, R(0)), cleared = bottom;
            if (first > kept) keep(frame + kept * row, (first - kept) * row, to + kept * row), kept = first;
            for (index a = at.upper; a < at.lower && at.first < at.last; a++)
                add_scaled(frame + (at.top + a) * row + (at.left + at.first) * s.N,
                           weight + ((at.c * s.k + a) * s.k + at.first) * s.N, values[e], (at.last - at.first) * s.N);
        }
        std::fill(frame + cleared * row, frame + height * row, R(0));
        keep(frame + kept * row, (height - kept) * row, to + kept * row);
    }
}

// The gradient with respect to `weight`, as it is turned there; each row of taps sums over all cells in their order.
template <typename R, typename X>
void sparse_backward(Sparse s, const index *cells, const index *starts, const R *values, const X *grad, R *grad_weight) {
    const index row = s.width() * s.N, height = s.height();
#pragma omp parallel for collapse(2) schedule(static) num_threads(s.threads)
    for (index c = 0; c < s.C; c++)
        for (index a = 0; a < s.k; a++) {
            R *to = grad_weight + (c * s.k + a) * s.k * s.N;
            std::fill_n(to, s.k * s.N, R(0));
            for (index f = 0; f < s.F; f++)
                for (index e = starts[f]; e < starts[f + 1]; e++) {
                    const Sparse::Stamp at = s.stamp(cells + 4 * e);
                    if (at.c == c && a >= at.upper && a < at.lower && at.first < at.last)
                        add_scaled(to + at.first * s.N,
                                   grad + (f * height + at.top + a) * row + (at.left + at.first) * s.N, values[e],
                                   (at.last - at.first) * s.N);
                }
        }
}

}  // namespace

#define SCAN index T, index K, index groups, index n, index per_cell, index threads
#define POOLED index T, index K, index groups, index B, index H, index W, index C, index threads
#define SPARSE index F, index H, index W, index C, index N, index k, index padding, index threads
#define SIZES {T, K, groups, B, H, W, C, threads}
#define EXPORT(R, suffix)                                                                                               \
    void integrate_##suffix(SCAN, const R *x, const R *decay, const R *v0, R *v) {                                      \
        scan<LI, R>({T, K, groups, n, per_cell, threads}, x, decay, v0, 0, v, nullptr);                                 \
    }                                                                                                                   \
    void integrate_backward_##suffix(SCAN, const R *dv, const R *v, const R *decay, const R *v0, R *dx, R *changes,     \
                                     R *dv0) {                                                                          \
        integrate_backward<R>({T, K, groups, n, per_cell, threads}, dv, v, decay, v0, dx, changes, dv0);                \
    }                                                                                                                   \
    void fire_##suffix(SCAN, double v_th, const R *x, const R *decay, const R *v0, R *z, R *last) {                     \
        scan<LIF, R>({T, K, groups, n, per_cell, threads}, x, decay, v0, v_th, z, last);                                \
    }                                                                                                                   \
    void fire_backward_##suffix(SCAN, double v_th, double alpha, const R *dz, const R *dlast, const R *x,               \
                                const R *decay, const R *v0, R *dx, R *changes, R *dv0) {                               \
        fire_backward<R>({T, K, groups, n, per_cell, threads}, dz, dlast, x, decay, v0, v_th, alpha, dx, changes, dv0); \
    }

#define EXPORT_NARROW(R, X, suffix)                                                                                     \
    void pool_##suffix(index net, POOLED, double v_th, const X *x, const R *decay, const R *v0, const R *skip, X *out,  \
                       R *last, double *sums) {                                                                         \
        const auto run = net == LIF ? pool<LIF, R, X> : net == LI ? pool<LI, R, X> : pool<RELU, R, X>;                  \
        run(SIZES, x, decay, v0, v_th, skip, out, last, sums);                                                          \
    }                                                                                                                   \
    void pool_backward_##suffix(index net, POOLED, double v_th, double alpha, const X *dout, const R *dlast,            \
                                const R *deach, const X *x, const R *decay, const R *v0, const R *skip, X *dx, R *dv0,  \
                                double *sums) {                                                                         \
        const auto run = net == LIF  ? pool_backward<LIF, R, X>                                                         \
                         : net == LI ? pool_backward<LI, R, X>                                                          \
                                     : pool_backward<RELU, R, X>;                                                       \
        run(SIZES, dout, dlast, deach, x, decay, v0, v_th, alpha, skip, dx, dv0, sums);                                 \
    }                                                                                                                   \
    void sparse_##suffix(SPARSE, const index *cells, const index *starts, const R *values, const R *weight, X *out) {   \
        sparse<R, X>({F, H, W, C, N, k, padding, threads}, cells, starts, values, weight, out);                         \
    }                                                                                                                   \
    void sparse_backward_##suffix(SPARSE, const index *cells, const index *starts, const R *values, const X *grad,      \
                                  R *grad_weight) {                                                                     \
        sparse_backward<R, X>({F, H, W, C, N, k, padding, threads}, cells, starts, values, grad, grad_weight);          \
    }

extern "C" {
EXPORT(float, float)
EXPORT(double, double)
EXPORT_NARROW(float, float, float)
EXPORT_NARROW(double, double, double)
EXPORT_NARROW(float, bfloat16, bfloat16)
}
