// Convolution "same" over frequencies on a CPU, of frames with few channels, channels last.
//
//     y[i, j, n] = sum over c, a, b of  w[a, b, c, n] x[i + a - r, j + b - r, c]        r = k / 2
//
// Compiled by native.py, called by spectral_native.py.  Fields are cut into tiles that overlap by 2 r pixels.  The
// two-dimensional Fourier transform X of a tile turns the sum over a and b into a product,
// Y(f) = sum over c of X(f) conj(W(f)): for each frequency f a matrix product over tiles and channels.
//
// Two tiles are the real and the imaginary part of one complex transform: kernels are real, so the parts of the result
// are the two results.  For the same reason W(-f) = conj(W(f)): half of the frequencies are kept, and conj(X(-f)) is a
// further row of the product at f.  Gradients of kernels are such products summed over tiles, of X(f) and conj(dY(f)).
//
// A vector holds one value of neighbouring channels, and transforms take vectors for numbers.  They are Stockham's, of
// radix 2, 3, 4 and 5: each pass takes n numbers from one buffer to another, and the last one leaves them in order.
// An inverse transform is a transform with real and imaginary parts exchanged before and after.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using index = std::int64_t;

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
constexpr int ROWS = WIDTH == 64 ? 6 : 4;  // of a product, whose sums stay in registers
constexpr index PAIRS = 6;                 // of tiles at a time, or a multiple: their spectra stay in cache
constexpr index CACHED = 1 << 18;          // bytes of them
constexpr index LEAST_PARTS = 4, PARTS = 8;  // of a sum over tiles
constexpr index SUMMED = 1 << 24;            // bytes of more than the fewest

template <typename R>
struct Lanes {
    typedef R Vector __attribute__((vector_size(WIDTH)));
    typedef R Memory __attribute__((vector_size(WIDTH), aligned(alignof(R)), may_alias));
    static constexpr int count = WIDTH / sizeof(R);
};
template <typename R>
constexpr index groups(index channels) {  // of lanes
    return (channels + Lanes<R>::count - 1) / Lanes<R>::count;
}

template <typename R>
using Vector = typename Lanes<R>::Vector;

template <typename R>
struct Complex {
    Vector<R> re, im;
};

template <typename R>
inline Vector<R> load(const R *from) {
    return *reinterpret_cast<const typename Lanes<R>::Memory *>(from);
}

template <typename R>
inline void store(R *to, Vector<R> v) {
    *reinterpret_cast<typename Lanes<R>::Memory *>(to) = v;
}

// The first n lanes; others are zero, or left as they are.
template <typename R>
inline Vector<R> load_some(const R *from, index n) {
    if (n >= Lanes<R>::count) return load(from);
    alignas(WIDTH) R some[Lanes<R>::count];
#pragma omp simd
    for (int i = 0; i < Lanes<R>::count; i++) some[i] = i < n ? from[i] : R(0);
    return load(some);
}

template <typename R>
inline void store_some(R *to, Vector<R> v, index n) {
    if (n >= Lanes<R>::count) return store(to, v);
    alignas(WIDTH) R some[Lanes<R>::count];
    store(some, v);
#pragma omp simd
    for (int i = 0; i < Lanes<R>::count; i++)
        if (i < n) to[i] = some[i];
}

// --- transforms: X(f) = sum over t of x(t) exp(-2 pi i f t / n) ---

template <typename R, int r>
struct Roots {  // of one
    R cos[r], sin[r];
    Roots() {
        for (int i = 0; i < r; i++) cos[i] = std::cos(2 * M_PI * i / r), sin[i] = std::sin(2 * M_PI * i / r);
    }
};
template <typename R, int r>
const Roots<R, r> roots;

template <typename R, int r>
inline void butterfly(Complex<R> *z) {
    if constexpr (r == 2) {
        const Complex<R> a = z[0], b = z[1];
        z[0] = {a.re + b.re, a.im + b.im};
        z[1] = {a.re - b.re, a.im - b.im};
    } else if constexpr (r == 4) {
        const Complex<R> a = {z[0].re + z[2].re, z[0].im + z[2].im}, b = {z[0].re - z[2].re, z[0].im - z[2].im};
        const Complex<R> c = {z[1].re + z[3].re, z[1].im + z[3].im}, d = {z[1].re - z[3].re, z[1].im - z[3].im};
        z[0] = {a.re + c.re, a.im + c.im};
        z[1] = {b.re + d.im, b.im - d.re};
        z[2] = {a.re - c.re, a.im - c.im};
        z[3] = {b.re - d.im, b.im + d.re};
    } else {  // odd: sums of z(t) and z(r - t) take cosines, differences sines
        const Roots<R, r> &root = roots<R, r>;
        constexpr int half = r / 2;
        Complex<R> sum[half + 1], difference[half + 1];
        const Complex<R> first = z[0];
        for (int t = 1; t <= half; t++) {
            sum[t] = {z[t].re + z[r - t].re, z[t].im + z[r - t].im};
            difference[t] = {z[t].re - z[r - t].re, z[t].im - z[r - t].im};
            z[0].re += sum[t].re, z[0].im += sum[t].im;
        }
        for (int f = 1; f <= half; f++) {
            Complex<R> even = first, odd = {difference[1].re * root.sin[f], difference[1].im * root.sin[f]};
            for (int t = 1; t <= half; t++) {
                const R c = root.cos[f * t % r], s = root.sin[f * t % r];
                even.re += c * sum[t].re, even.im += c * sum[t].im;
                if (t > 1) odd.re += s * difference[t].re, odd.im += s * difference[t].im;
            }
            z[f] = {even.re + odd.im, even.im - odd.re};
            z[r - f] = {even.re - odd.im, even.im + odd.re};
        }
    }
}

template <typename R>
struct Line {  // numbers at equal distances
    Complex<R> *at;
    index stride;
    Complex<R> operator()(index i) const { return at[i * stride]; }
    void operator()(index i, Complex<R> z) const { at[i * stride] = z; }
};

template <typename R>
struct Axis {
    index n;
    std::vector<int> radices;  // two or more
    std::vector<R> waves;      // cos and sin of each pass

    explicit Axis(index points) : n(points) {
        for (int r : {4, 2, 3, 5})
            for (; points % r == 0; points /= r) radices.push_back(r);
        index left = n;
        for (int r : radices) {
            for (index p = 0; p < left / r; p++)
                for (int k = 1; k < r; k++) {
                    waves.push_back(std::cos(2 * M_PI * p * k / left));
                    waves.push_back(std::sin(2 * M_PI * p * k / left));
                }
            left /= r;
        }
    }

    // s transforms of n points, side by side, to n transforms of n / r
    template <int r, typename X, typename Y>
    static void pass(index n, index s, const R *wave, X x, Y y) {
        const index m = n / r;
        for (index p = 0; p < m; p++, wave += 2 * (r - 1))
            for (index q = 0; q < s; q++) {
                Complex<R> z[r];
                for (int k = 0; k < r; k++) z[k] = x(q + s * (p + m * k));
                butterfly<R, r>(z);
                y(q + s * r * p, z[0]);
                for (int k = 1; k < r; k++) {
                    const R c = wave[2 * k - 2], d = wave[2 * k - 1];
                    y(q + s * (r * p + k),
                      p ? Complex<R>{c * z[k].re + d * z[k].im, c * z[k].im - d * z[k].re} : z[k]);
                }
            }
    }

    template <typename X, typename Y>
    static void any_pass(int r, index n, index s, const R *wave, X x, Y y) {
        r == 4 ? pass<4>(n, s, wave, x, y) : r == 2 ? pass<2>(n, s, wave, x, y)
               : r == 3 ? pass<3>(n, s, wave, x, y) : pass<5>(n, s, wave, x, y);
    }

    // y(f, X(f)) for all f, of x(t); with two lines of working memory
    template <typename X, typename Y>
    void transform(X x, Y y, Complex<R> *one, Complex<R> *other) const {
        index left = n, s = 1;
        const R *wave = waves.data();
        for (int r : radices) {
            const Line<R> from{other, 1}, to{one, 1};
            if (left == n) any_pass(r, left, s, wave, x, to);
            else if (left > r) any_pass(r, left, s, wave, from, to);
            else any_pass(r, left, s, wave, from, y);
            left /= r, s *= r, wave += 2 * left * (r - 1);
            std::swap(one, other);
        }
    }
};

// --- two tiles as real and imaginary parts, and their spectrum ---

template <typename P>
struct Pair {
    using R = std::remove_const_t<P>;
    struct Tile {
        P *at;  // pixel (0, 0), maybe outside of the frame
        index top, bottom, left, right;  // rows and columns inside
    } a, b;
    index row, column, lanes;  // distances of pixels in memory; channels

    struct Row {
        const Pair &pair;
        index i;

        P *in(const Tile &tile, index j) const {
            const bool inside = tile.top <= i && i < tile.bottom && tile.left <= j && j < tile.right;
            return inside ? tile.at + i * pair.row + j * pair.column : nullptr;
        }
        Vector<R> of(const Tile &tile, index j) const {
            const P *from = in(tile, j);
            return from ? load_some(from, pair.lanes) : Vector<R>{};
        }
        Complex<R> operator()(index j) const { return {of(pair.a, j), of(pair.b, j)}; }
        void operator()(index j, Complex<R> exchanged) const {
            if (P *to = in(pair.a, j)) store_some(to, exchanged.im, pair.lanes);
            if (P *to = in(pair.b, j)) store_some(to, exchanged.re, pair.lanes);
        }
    };
};

// Spectrum of n points along one axis, of which `width` are kept; the others are conj of those kept of -f.
template <typename P>
struct Kept {
    using R = std::remove_const_t<P>;
    P *direct, *mirrored;
    index stride, imag;  // distances of frequencies, and of the imaginary from the real part
    index n, width;

    Complex<R> operator()(index v) const {  // exchanged
        if (v < width) return {load(direct + v * stride + imag), load(direct + v * stride)};
        const R *z = mirrored + (v ? n - v : 0) * stride;
        return {-load(z + imag), load(z)};
    }
};

template <typename R, bool MIRRORED>
struct Keep {
    Kept<R> to;
    void operator()(index v, Complex<R> z) const {
        if (MIRRORED) v = v ? to.n - v : 0;
        if (v >= to.width) return;
        R *at = (MIRRORED ? to.mirrored : to.direct) + v * to.stride;
        store(at, z.re);
        store(at + to.imag, MIRRORED ? -z.im : z.im);
    }
};

// Transforms of tiles; x runs along a row of pixels and is transformed first.  Frequencies (u, v) of x and y are kept
// for u up to n / 2, and where u is its own mirror for v up to n / 2.
template <typename R>
struct Grid {
    Axis<R> x, y;
    index wide;                 // distance of frequencies u: odd, for even ones share few places of the cache
    std::vector<index> starts;  // of each u, and the number of all

    Grid(index width, index height) : x(width), y(height), wide(height | 1), starts{0} {
        for (index u = 0; u <= x.n / 2; u++) starts.push_back(starts.back() + kept(u));
    }
    index size() const { return starts.back(); }
    index mirror(index u) const { return u ? x.n - u : 0; }
    index kept(index u) const { return mirror(u) == u ? y.n / 2 + 1 : y.n; }
    template <typename P>
    Kept<P> at(Kept<P> spectrum, index u) const {
        const index own = std::min(u, mirror(u)), first = starts[own] * spectrum.stride;
        return {spectrum.direct + first, spectrum.mirrored + first, spectrum.stride, spectrum.imag, y.n, kept(own)};
    }

    struct Workspace {
        std::vector<Complex<R>> field, one, other;
        explicit Workspace(const Grid &g)
            : field(g.x.n * g.wide), one(std::max(g.x.n, g.y.n)), other(one.size()) {}
    };

    void forward(Workspace &w, const Pair<const R> &pair, Kept<R> spectrum) const {
        const index top = std::min(pair.a.top, pair.b.top), bottom = std::max(pair.a.bottom, pair.b.bottom);
        for (index i = 0; i < y.n; i++) {
            const Line<R> line{w.field.data() + i, wide};
            if (top <= i && i < bottom)
                x.transform(typename Pair<const R>::Row{pair, i}, line, w.one.data(), w.other.data());
            else
                for (index u = 0; u < x.n; u++) line(u, Complex<R>{});
        }
        for (index u = 0; u < x.n; u++) {
            const Line<R> line{w.field.data() + u * wide, 1};
            const Kept<R> to = at(spectrum, u);
            if (u <= mirror(u)) y.transform(line, Keep<R, false>{to}, w.one.data(), w.other.data());
            if (u >= mirror(u) && spectrum.mirrored)
                y.transform(line, Keep<R, true>{to}, w.one.data(), w.other.data());
        }
    }

    // times the number of points
    void inverse(Workspace &w, Kept<const R> spectrum, const Pair<R> &pair) const {
        for (index u = 0; u < x.n; u++) {
            Kept<const R> from = at(spectrum, u);
            if (u > mirror(u)) from.width = 0;
            y.transform(from, Line<R>{w.field.data() + u * wide, 1}, w.one.data(), w.other.data());
        }
        for (index i = 0; i < std::max(pair.a.bottom, pair.b.bottom); i++)
            x.transform(Line<R>{w.field.data() + i, wide}, typename Pair<R>::Row{pair, i}, w.one.data(), w.other.data());
    }
};

// --- products: out(i) = [out(i) +] sum over k of a(i, k) conj(b(k)), b and out vectors ---

template <typename P>
struct Numbers {  // complex ones: distances from one to the next of i, or k, and to imaginary parts
    P *at;
    index i, k, imag;
};

template <int I, typename R>
void product(index n, index K, Numbers<const R> a, Numbers<const R> b, Numbers<R> out, bool add) {
    for (; n >= I; n -= I, a.at += I * a.i, out.at += I * out.i) {
        Vector<R> re[I], im[I];
        for (int i = 0; i < I; i++) {
            re[i] = add ? load(out.at + i * out.i) : Vector<R>{};
            im[i] = add ? load(out.at + i * out.i + out.imag) : Vector<R>{};
        }
        for (index k = 0; k < K; k++) {
            const Vector<R> b_re = load(b.at + k * b.k), b_im = load(b.at + k * b.k + b.imag);
            for (int i = 0; i < I; i++) {
                const R *z = a.at + i * a.i + k * a.k;
                re[i] += z[0] * b_re;
                im[i] += z[a.imag] * b_re;
                re[i] += z[a.imag] * b_im;
                im[i] -= z[0] * b_im;
            }
        }
        for (int i = 0; i < I; i++) {
            store(out.at + i * out.i, re[i]);
            store(out.at + i * out.i + out.imag, im[i]);
        }
    }
    if constexpr (I > 1)
        if (n) product<I / 2, R>(n, K, a, b, out, add);
}

// --- convolution of frames (F, H, W, C) with weights (k, k, C, N), in tiles of height x width pixels ---
//
// Spectra of `pairs` pairs of tiles are (frequencies, rows, 2, channels), `direct` ones in front of the mirrored; those of
// weights are (frequencies, groups of N, C, 2, lanes).

template <typename R>
struct Convolution {
    index F, H, W, C, N, k, height, width, threads;
    Grid<R> grid;
    index pairs, tiles;  // at a time

    static constexpr index L = Lanes<R>::count;

    Convolution(index F, index H, index W, index C, index N, index k, index height, index width, index y, index x,
                index threads)
        : F(F), H(H), W(W), C(C), N(N), k(k), height(height), width(width), threads(threads), grid(x, y) {
        const index bytes = grid.size() * 2 * PAIRS * row(std::max(C, N)) * sizeof(R);
        pairs = PAIRS * std::max<index>(1, CACHED / bytes);
        tiles = 2 * pairs;
    }

    index down() const { return (H + height - 1) / height; }
    index across() const { return (W + width - 1) / width; }
    index chunks() const { return (F * down() * across() + tiles - 1) / tiles; }
    static index row(index channels) { return 2 * L * groups<R>(channels); }
    std::vector<R> spectra(index channels) const { return std::vector<R>(grid.size() * tiles * row(channels)); }
    std::vector<R> kernels() const { return std::vector<R>(grid.size() * C * row(N)); }

    template <typename P>
    typename Pair<P>::Tile tile(index number, P *frames, index channels, index around) const {
        const index f = number / (down() * across()), i = number / across() % down(), j = number % across();
        if (f >= F) return {nullptr, H, 0, W, 0};
        const index top = i * height - around, left = j * width - around;
        return {frames + ((f * H + top) * W + left) * channels,
                std::max<index>(0, -top), std::min(height + 2 * around, H - top),
                std::max<index>(0, -left), std::min(width + 2 * around, W - left)};
    }

    // visit(pair, spectrum) of pair i % pairs, group of lanes i / pairs of frames' channels
    template <typename P, typename S, typename Visit>
    void pair(index chunk, index i, P *frames, index channels, index around, S *spectra, Visit visit) const {
        const index number = i % pairs, first = i / pairs * L, next = 2 * (chunk * pairs + number);
        S *direct = spectra + number * row(channels) + first;
        visit(Pair<P>{tile(next, frames + first, channels, around), tile(next + 1, frames + first, channels, around),
                      W * channels, channels, std::min(L, channels - first)},
              Kept<S>{direct, direct + pairs * row(channels), tiles * row(channels), row(channels) / 2, 0, 0});
    }

    // visit(kernels, spectrum) of input channel i % C, group of lanes i / C
    template <typename P, typename Visit>
    void kernel(index i, P *weight, R *spectra, Visit visit) const {
        const index first = i / C * L;
        P *at = weight + i % C * N + first;
        visit(Pair<P>{{at, 0, k, 0, k}, {nullptr, k, 0, k, 0}, k * C * N, C * N, std::min(L, N - first)},
              Kept<R>{spectra + i * 2 * L, nullptr, C * row(N), L, 0, 0});
    }

    void forward(const R *frames, const R *weight, R *out) const {
        std::vector<R> of_weight = kernels();
#pragma omp parallel num_threads(threads)
        {
            typename Grid<R>::Workspace workspace(grid);
            std::vector<R> of_frames = spectra(C), of_out = spectra(N);
            const auto there = [&](const auto &pair, auto spectrum) { grid.forward(workspace, pair, spectrum); };
            const auto back = [&](const auto &pair, auto spectrum) { grid.inverse(workspace, spectrum, pair); };
#pragma omp for schedule(static)
            for (index i = 0; i < C * groups<R>(N); i++) kernel(i, weight, of_weight.data(), there);
#pragma omp for schedule(static)
            for (index chunk = 0; chunk < chunks(); chunk++) {
                for (index i = 0; i < pairs * groups<R>(C); i++)
                    pair(chunk, i, frames, C, k / 2, of_frames.data(), there);
                const R *weights = of_weight.data();
                for (index f = 0; f < grid.size(); f++)
                    for (index g = 0; g < groups<R>(N); g++, weights += C * 2 * L)
                        product<ROWS, R>(tiles, C, {of_frames.data() + f * tiles * row(C), row(C), 1, row(C) / 2},
                                         {weights, 0, 2 * L, L},
                                         {of_out.data() + f * tiles * row(N) + g * L, row(N), 0, row(N) / 2}, false);
                for (index i = 0; i < pairs * groups<R>(N); i++)
                    pair(chunk, i, out, N, 0, static_cast<const R *>(of_out.data()), back);
            }
        }
    }

    // Twice the gradient with respect to the weight: rows of f and -f are added.  A part of the chunks is summed by one
    // thread, for what another one wrote is far; then the parts are, whatever the number of threads.
    void backward(const R *frames, const R *grad, R *grad_weight) const {
        const index size = grid.size() * C * row(N), most = SUMMED / (size * sizeof(R));
        const index parts = std::min(chunks(), std::clamp(most, LEAST_PARTS, PARTS));
        std::vector<R> of_weight(parts * size);
#pragma omp parallel num_threads(threads)
        {
            typename Grid<R>::Workspace workspace(grid);
            std::vector<R> of_frames = spectra(C), of_grad = spectra(N);
            const auto there = [&](const auto &pair, auto spectrum) { grid.forward(workspace, pair, spectrum); };
#pragma omp for schedule(static)
            for (index part = 0; part < parts; part++)
                for (index chunk = part * chunks() / parts; chunk < (part + 1) * chunks() / parts; chunk++) {
                    for (index i = 0; i < pairs * groups<R>(C); i++)
                        pair(chunk, i, frames, C, k / 2, of_frames.data(), there);
                    for (index i = 0; i < pairs * groups<R>(N); i++)
                        pair(chunk, i, grad, N, 0, of_grad.data(), there);
                    R *sums = of_weight.data() + part * size;
                    for (index f = 0; f < grid.size(); f++)
                        for (index g = 0; g < groups<R>(N); g++, sums += C * 2 * L)
                            product<ROWS, R>(C, tiles, {of_frames.data() + f * tiles * row(C), 1, row(C), row(C) / 2},
                                             {of_grad.data() + f * tiles * row(N) + g * L, 0, row(N), row(N) / 2},
                                             {sums, 2 * L, 0, L}, true);
                }
#pragma omp for schedule(static)
            for (index f = 0; f < grid.size(); f++)
                for (index part = 1; part < parts; part++)
                    for (index i = f * (size / grid.size()); i < (f + 1) * (size / grid.size()); i++)
                        of_weight[i] += of_weight[part * size + i];
#pragma omp for schedule(static)
            for (index i = 0; i < C * groups<R>(N); i++)
                kernel(i, grad_weight, of_weight.data(), [&](const auto &pair, auto own) {
                    grid.inverse(workspace, {own.direct, own.direct, own.stride, own.imag, 0, 0}, pair);
                });
        }
    }
};

}  // namespace

#define SIZES index F, index H, index W, index C, index N, index k, index height, index width, index y, index x, index threads
#define GIVEN F, H, W, C, N, k, height, width, y, x, threads
#define EXPORT(R, suffix)                                                                    \
    void correlate_##suffix(SIZES, const R *frames, const R *weight, R *out) {               \
        Convolution<R>(GIVEN).forward(frames, weight, out);                                  \
    }                                                                                        \
    void correlate_frames_##suffix(SIZES, const R *frames, const R *grad, R *grad_weight) {  \
        Convolution<R>(GIVEN).backward(frames, grad, grad_weight);                           \
    }

extern "C" {
EXPORT(float, float)
EXPORT(double, double)
}
