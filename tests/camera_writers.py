"""Event cameras' formats as their definitions have them, in numpy: what the readers are tested against.

Events are rows (t in microseconds, x, y, polarity) in the order of time.
"""

import struct

import numpy as np

SENSOR = (48, 64)  # rows, columns


def draw(n=2000, seed=0, sensor=SENSOR, span_us=60_000):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, span_us, n)) + 4_200_000
    return np.stack(
        [t, rng.integers(0, sensor[1], n), rng.integers(0, sensor[0], n), rng.integers(0, 2, n)], 1
    )


def header(*lines):
    return "".join(f"% {line}\n" for line in lines).encode()


def geometry(sensor):
    return [f"geometry {sensor[1]}x{sensor[0]}"] if sensor else []


def evt2(events, sensor=SENSOR):
    """32 bits: type, 6 low bits of time, x, y; type 8: the 28 bits of time above them."""
    words, high = [], None
    for t, x, y, p in events.tolist():
        if t >> 6 != high:
            high = t >> 6
            words.append(8 << 28 | high)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return header("evt 2.0", *geometry(sensor), "end") + np.array(words, "<u4").tobytes()


def evt3(events, sensor=SENSOR):
    """16 bits: 8 time above 12 bits, 6 time below, 0 row, 2 column and polarity; 3 and 4: twelve columns."""
    words, now = [], (None, None, None)
    for i, (t, x, y, p) in enumerate(events.tolist()):
        high, low = t >> 12 & 0xFFF, t & 0xFFF
        words += [8 << 12 | high] * (high != now[0]) + [6 << 12 | low] * ((high, low) != now[:2])
        words += [y] * ((high, low, y) != now)
        now = high, low, y
        words += [3 << 12 | p << 11 | x, 4 << 12 | 1] if i % 5 == 0 else [2 << 12 | p << 11 | x]
    return header("evt 3.0", *geometry(sensor), "end") + np.array(words, "<u2").tobytes()


def dat(events, sensor=SENSOR):
    """64 bits: time, then 14 bits of x, 14 of y, 4 of polarity."""
    t, x, y, p = events.T
    size = [f"Width {sensor[1]}", f"Height {sensor[0]}"] if sensor else []
    words = np.stack([t, x | y << 14 | p << 28], 1).astype("<u4").tobytes()
    return header("Data file containing CD events.", "Version 2", *size) + b"\x0c\x08" + words


def es(events, sensor=SENSOR):
    """A byte of 7 bits of time since the last event and the polarity (255: 127 us more), x, y from below."""
    parts, last = [b"Event Stream", bytes([2, 0, 0, 1]), struct.pack("<HH", *sensor[::-1])], 0
    for t, x, y, p in events.tolist():
        later, step = divmod(t - last, 127)
        parts += [b"\xff" * later, bytes([step << 1 | p]), struct.pack("<HH", x, sensor[0] - 1 - y)]
        last = t
    return b"".join(parts)


def text(events, first="t,x,y,p", order="txyp", separator=",", unit_us=1):
    """Lines of numbers behind a first line, if there is one."""
    columns = dict(zip("txyp", events.T.tolist(), strict=True))
    if unit_us != 1:
        columns["t"] = [f"{t / unit_us:.6f}" for t in columns["t"]]
    rows = zip(*(columns[name] for name in order), strict=True)
    lines = [first] * bool(first) + [separator.join(map(str, row)) for row in rows]
    return "\n".join(lines).encode() + b"\n"


def named(events):
    """The events as a structured array."""
    columns = {"t": "<i8", "x": "<u2", "y": "<u2", "p": "<i2"}
    array = np.empty(len(events), list(columns.items()))
    for name, column in zip(columns, events.T, strict=True):
        array[name] = column
    return array
