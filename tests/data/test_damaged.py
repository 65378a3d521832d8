"""Damaged and hostile files: refused or read right, in bounded memory, and nothing in them runs.

A process of its own, whose address space may grow by no more than `ROOM`, reads one after the other.
"""

import copy
import io
import json
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from test_learn_shapes import TINY, render

from nrf.commands import learn_shapes
from nrf.commands.config_files import config_lines
from nrf.data.recordings import DataError, read_recording, write_recording
from nrf.system.archive import ArchiveError, load_archive, load_tensors
from nrf.training.callbacks import Drawing
from nrf.training.persistence import TrainingError, read_checkpoint

ROOM = 400 * 2**20  # bytes
BOMB = 2**29
SHAPE = (6, 2, 12, 9)


def original(path):
    rng = np.random.default_rng(0)
    write_recording(path, rng.integers(0, SHAPE, (60, 4)), rng.uniform(0, 9, (6, 3, 2)), SHAPE)
    return path.read_bytes()


def entries(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(records, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_pickle(content, pickled):
    records = entries(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    return zipped(records | {name: pickled})


def pickle_of(content):
    return next(c for name, c in entries(content).items() if name.endswith("data.pkl"))


def edited_numbers(content, choose, value):
    """The archive with the numbers of its pickle that `choose(i, n)` accepts replaced by `value`."""
    pickled, out, last = pickle_of(content), b"", 0
    ops = list(pickletools.genops(pickled))
    numbers = 0
    for (opcode, argument, position), (_, _, end) in zip(ops, ops[1:], strict=False):
        if opcode.name in ("BININT", "BININT1", "BININT2"):
            if choose(numbers, argument):
                out += pickled[last:position] + b"\x8a\x08" + struct.pack("<q", value)
                last = end
            numbers += 1
    return with_pickle(content, out + pickled[last:])


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def sparse(indices, values, shape):
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)


class Calls:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class Stored(pickle.Pickler):
    """Writes None as a storage with a name."""

    def __init__(self, file, name):
        super().__init__(file, protocol=2)
        self.name = name

    def persistent_id(self, content):
        return ("storage", torch.FloatStorage, self.name, "cpu", 1) if content is None else None


def stored(name):
    file = io.BytesIO()
    Stored(file, name).dump([None])
    return file.getvalue()


def mutations(folder):
    """(name, bytes or a way to write the file, whether it may only be refused) of 200 and more."""
    whole, draw = original(folder / "original.dat"), random.Random(1)
    yield "as it was", whole, False
    yield from damages(whole, draw)
    yield from contents(whole, draw)
    yield from traps(whole)


def damages(whole, draw):
    for i in range(45):
        yield f"truncated {i}", whole[: draw.randrange(len(whole))], True
    for i in range(70):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield f"flipped bit {i}", bytes(flipped), False
    for i in range(30):
        at, n = draw.randrange(len(whole)), draw.randrange(1, 200)
        yield f"noise {i}", whole[:at] + draw.randbytes(n) + whole[at + n :], False


def contents(whole, draw):
    good = torch.load(io.BytesIO(whole), weights_only=True)
    frames, labels = good
    indices, values = frames.indices(), frames.values()
    for i, shape in enumerate([(6, 3, 1), (5, 3, 2), (6, 2), (0, 3, 2), (6, 3, 2, 2), (6, 3, 3)]):
        yield f"labels of shape {i}", saved([frames, torch.zeros(shape)]), True
    for kind in (torch.int64, torch.complex64, torch.bool):
        yield f"labels of {kind}", saved([frames, labels.to(kind)]), True
    for kind in (torch.complex64, torch.complex128):
        yield f"events of {kind}", saved([frames.to(kind), labels]), True
    for i, shape in enumerate([(6, 3, 12, 9), (6, 2, 12), (6, 2, 12, 9, 1), (12, 9)]):
        yield f"dense or other events {i}", saved([torch.zeros(shape).to_sparse(), labels]), True
    for axis in range(4):
        for bad in (-1, SHAPE[axis], 2**40, -(2**63)):
            wrong = indices.clone()
            wrong[axis, draw.randrange(50)] = bad
            yield f"index {bad} along {axis}", saved([sparse(wrong, values, SHAPE), labels]), True
    for bad in (float("nan"), float("inf"), -float("inf"), 1e39, -(2.0**24)):
        wrong = labels.double()
        wrong[draw.randrange(6), 0, 0] = bad
        yield f"label {bad}", saved([frames, wrong]), True
    yield "value nan", saved([sparse(indices, values * float("nan"), SHAPE), labels]), True
    yield "negative values", saved([sparse(indices, -values, SHAPE), labels]), False
    yield "unsorted", saved([sparse(indices.flip(1), values, SHAPE), labels]), False
    yield "doubled", saved([sparse(indices.repeat(1, 2), values.repeat(2), SHAPE), labels]), False
    few = sparse(indices[:, :5] // 9, values[:5], (3, 2, 2**31, 2**29))
    yield "huge field", saved([few, labels[:3]]), True
    yield "huge and empty", saved([sparse(indices[:, :0], values[:0], (6, 2, 2**20, 2**20)), labels]), False
    yield "labels that repeat one number", saved([frames, torch.zeros(1).expand(6, 10**10, 2)]), True


def traps(whole):
    frames, labels = torch.load(io.BytesIO(whole), weights_only=True)
    pickled = pickle_of(whole)
    numbers = sum(op.name.startswith("BININT") for op, _, _ in pickletools.genops(pickled))
    for i in range(numbers):  # offsets, sizes, strides and lengths of storages, each a lie
        yield (
            f"number {i} of the pickle is huge",
            edited_numbers(whole, lambda k, n, i=i: k == i, 2**40),
            False,
        )
        yield (
            f"number {i} of the pickle is negative",
            edited_numbers(whole, lambda k, n, i=i: k == i, -3),
            False,
        )
    yield (
        "a zip bomb",
        zipped({"archive/data.pkl": pickled, "archive/data/0": bytes(BOMB)}, zipfile.ZIP_DEFLATED),
        True,
    )
    yield "a sparse file", lambda path: os.truncate(path, 2**40), True
    yield "records over each other", overlapping(whole), True
    nested = []
    for _ in range(40):  # a text of which would be longer than any memory
        nested = [nested, nested]
    yield "a layout of lists", saved([Calls(torch.serialization._get_layout, nested), labels]), True
    yield "a storage named by lists", with_pickle(whole, stored(nested)), True
    yield "a million of one tensor", saved([labels] * 10**6), True
    negative = torch.complex(labels.float(), labels.float()).conj().imag
    yield "labels to be negated", saved([frames, negative]), True
    for order in (b"big", b"", b"little "):
        records = {k: order if k.endswith("byteorder") else v for k, v in entries(whole).items()}
        yield f"byte order {order}", zipped(records), True
    yield "room for a memo", with_pickle(whole, b"\x80\x02Nr\xff\xff\xff\x7f."), True
    for function, *arguments in (
        (os.mkdir, "sprung"),
        (os.system, "touch sprung"),
        (eval, "open('sprung', 'w')"),
        (exec, "open('sprung', 'w')"),
        (bytearray, 10**12),
        (torch.Tensor, 10**11),
        (torch.zeros, 10**11),
        (open, "sprung", "w"),
        (getattr, "text", "upper"),
        (pickle.loads, b"cposix\nmkdir\n(Vsprung\ntR."),
    ):
        yield f"calls {function.__name__}", saved([Calls(function, *arguments), labels]), True
    for name, content in {
        "empty": b"",
        "text": b"PK" * 99,
        "pickle": pickle.dumps([1, 2]),
        "list": saved([1, 2]),
    }.items():
        yield name, content, True


def overlapping(whole):
    """Many entries of the directory for one record."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of(whole))
        archive.writestr("archive/data/0", bytes(2**20))
        first = archive.infolist()[-1]
        for i in range(1, 5000):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, name, getattr(first, name))
            archive.filelist.append(copy)
    return file.getvalue()


def told(reader, path):
    """What became of a file: "read" and what was in it, "refused" and why."""
    try:
        content = reader(path)
    except (DataError, ArchiveError, TrainingError) as error:
        return ["refused", str(error)]
    if reader is read_recording:
        return ["read", content.events.tolist(), content.labels.tolist(), list(content.shape)]
    return ["read"]


def read_all(reader, paths, results):
    """In a process of its own: a line for each file, written before the next one is touched."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    torch.set_num_threads(1)
    with open(results, "w") as file:
        for path in paths:
            print(json.dumps(told(reader, path)), file=file, flush=True)


def read_apart(reader, paths, folder):
    process = multiprocessing.get_context("fork").Process(
        target=read_all, args=(reader, paths, folder / "results")
    )
    process.start()
    process.join(120)
    lines = (folder / "results").read_text().splitlines()
    assert process.exitcode == 0, f"reading {paths[len(lines)]} ended the process ({process.exitcode})"
    return [json.loads(line) for line in lines]


def write_all(folder, found):
    folder.mkdir()
    paths = []
    for i, (_, content, _) in enumerate(found):
        paths.append(folder / f"{i}.dat")
        paths[-1].write_bytes(b"" if callable(content) else content)
        if callable(content):
            content(paths[-1])
    return paths


linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits a process's memory as Linux does"
)


@linux
def test_200_mutations_of_a_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(mutations(tmp_path))
    assert len(found) >= 200
    results = read_apart(read_recording, write_all(tmp_path / "mutated", found), tmp_path)
    right = told(read_recording, tmp_path / "original.dat")
    empty = [right[0], [], right[2], right[3]]
    read = {}
    for (name, _, only_refused), (verdict, *content) in zip(found, results, strict=True):
        assert verdict == "refused" or not only_refused, name
        if verdict == "read":
            read[name] = ["read", *content]
        else:
            assert "nrf generate_data" in content[0] and "\n" not in content[0], name
    assert read["as it was"] == right
    assert read["negative values"] == empty and read["unsorted"] == read["doubled"] == right
    assert read["huge and empty"][1] == []
    # what else was read has all that was in the original: a bit of the zip's dates, for example
    others = {
        k: v for k, v in read.items() if k not in ("negative values", "unsorted", "doubled", "huge and empty")
    }
    assert others and all(
        content[1:] == right[1:] or (content[1] == right[1] and name.startswith("number"))
        for name, content in others.items()
    ), [name for name, content in others.items() if content != right]
    assert not list(tmp_path.rglob("sprung"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = render(folder / "shapes")
    assert learn_shapes.main([str(data), str(folder / "logs"), *TINY]) == 0
    return next(folder.glob("logs/*/*/checkpoints/last.ckpt")), data


@linux
def test_mutations_of_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = checkpoint
    whole, draw = path.read_bytes(), random.Random(2)
    found = [(f"truncated {i}", whole[: draw.randrange(len(whole))], True) for i in range(20)]
    for i in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        found.append((f"flipped bit {i}", bytes(flipped), False))
    for i in range(40):
        found.append((f"number {i}", edited_numbers(whole, lambda k, n, i=i: k == i, 2**40), False))
    found += [
        ("calls os.system", saved({"state_dict": Calls(os.system, "touch sprung")}), True),
        ("calls bytearray", saved({"state_dict": Calls(bytearray, 10**12)}), True),
        ("a list", saved([1]), True),
        ("no settings", saved({"state_dict": {}}), True),
        ("a zip bomb", zipped({"archive/data.pkl": bytes(BOMB)}, zipfile.ZIP_DEFLATED), True),
        ("a sparse file", lambda path: os.truncate(path, 2**40), True),
    ]
    results = read_apart(read_checkpoint, write_all(tmp_path / "mutated", found), tmp_path)
    for (name, _, only_refused), (verdict, *_) in zip(found, results, strict=True):
        assert verdict == "refused" or not only_refused, name
    assert sum(verdict == "refused" for verdict, *_ in results) > 60
    assert not list(tmp_path.rglob("sprung"))


def test_a_sum_is_checked_over_every_record(tmp_path):
    """A flipped bit in the numbers themselves, which torch does not notice."""
    whole = original(tmp_path / "0.dat")
    with zipfile.ZipFile(tmp_path / "0.dat") as archive:
        record = max(archive.infolist(), key=lambda entry: "/data/" in entry.filename and entry.file_size)
    start = whole.index(entries(whole)[record.filename])
    for at in (record.header_offset, *range(start, start + record.file_size, 97)):
        changed = bytearray(whole)
        changed[at] ^= 1
        (tmp_path / "1.dat").write_bytes(changed)
        with pytest.raises(ArchiveError):
            load_archive(tmp_path / "1.dat")
        with pytest.raises(ArchiveError):
            load_tensors(tmp_path / "1.dat", 2)


DRAW = torch.Generator().manual_seed(0)
TENSORS = {
    **{
        str(dtype): torch.randint(0, 2, (3, 5), generator=DRAW).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
        + (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    },
    "columns": torch.arange(12.0).view(3, 4).T,
    "a part": torch.arange(40.0).view(5, 8)[1:4, 2:7:2],
    "repeated": torch.arange(9.0).as_strided((4, 2), (0, 3)),
    "one number": torch.tensor(2.5),
    "none": torch.empty(0, 3),
    "to train": torch.nn.Parameter(torch.ones(2)),
    "sparse": torch.eye(3).to_sparse(),
    "sparse in part": torch.eye(3)[:, :, None].expand(3, 3, 2).to_sparse(2),
    "sparse and empty": torch.zeros(2, 2).to_sparse(),
    "unsorted": sparse(torch.tensor([[2, 0, 2], [1, 1, 1]]), torch.tensor([1.0, 2.0, 3.0]), (3, 3)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_those_that_torch_reads(tmp_path, name):
    whole = saved([TENSORS[name], torch.ones(1)])
    padded = {k: content for k, content in entries(whole).items() if not k.endswith("byteorder")}
    for i, content in enumerate((whole, zipped(padded), zipped({"x/odd": b"1"} | padded))):  # aligned, or not
        (tmp_path / f"{i}").write_bytes(content)
        ours, theirs = load_tensors(tmp_path / f"{i}", 2)[0], torch.load(io.BytesIO(whole))[0]
        assert (ours.dtype, ours.layout, ours.shape) == (theirs.dtype, theirs.layout, theirs.shape)
        pairs = [(ours, theirs)]
        if theirs.is_sparse:
            pairs = [(ours._indices(), theirs._indices()), (ours._values(), theirs._values())]
        for one, other in pairs:
            assert torch.equal(one, other) and one.stride() == other.stride() and not one.requires_grad
            assert one.data_ptr() % one.element_size() == 0
    with pytest.raises(ArchiveError, match="not a list of 3"):
        load_tensors(tmp_path / "0", 3)


def test_config_files_of_noise_are_refused_or_words(tmp_path):
    draw = random.Random(3)
    for i in range(200):
        text = "".join(draw.choice(" \t\n'\"\\#$`;|&*~(){}<>-=a0\0\x1bé") for _ in range(draw.randrange(60)))
        content = text.encode() if i % 4 else draw.randbytes(40)
        (tmp_path / "runs.txt").write_bytes(content)
        try:
            lines = list(config_lines(tmp_path / "runs.txt"))
        except ValueError as error:
            assert "not a text" in str(error)
            continue
        for _, words, problem in lines:
            assert problem or all(isinstance(word, str) and "\0" not in word for word in words)


def test_a_checkpoint_that_does_not_fit_is_told(checkpoint, tmp_path, capsys):
    path, data = checkpoint
    flags = [*TINY, "--n_temporal_scales=3", f"--ckpt_path={path}"]
    assert learn_shapes.main([str(data), str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--ckpt_path" in error and "do not fit" in error
    (tmp_path / "half.ckpt").write_bytes(path.read_bytes()[:5000])
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, f"--ckpt_path={tmp_path / 'half.ckpt'}"]) == 1
    assert "half.ckpt: damaged or foreign" in capsys.readouterr().err


ODD = (None, [], {}, "many", -1, float("nan"), 1e300, [1], {"a": 1}, True)
KNOWN = {  # of what is asked for by name
    "loops": {},
    "callbacks": [],
    "global_step": "many",
    "optimizer_states": [],
    "state_dict": {"net": 1},
    "hyper_parameters": None,
    "epoch": -3,
}


def places(content, path=()):
    """Every place in nested dicts and lists, as keys from outside to inside."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, part in pairs:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def replaced(content, path, value):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


def mutated_checkpoints(content, draw, n):
    for name, value in KNOWN.items():
        yield (name,), value
    state = content["optimizer_states"][0]
    yield ("optimizer_states", 0, "state"), {}
    yield ("optimizer_states", 0, "param_groups"), [state["param_groups"][0] | {"lr": -0.1}]
    found = [path for path in places(content) if path[0] != "state_dict"]
    for _ in range(n):
        yield draw.choice(found), draw.choice(ODD)


def test_a_changed_checkpoint_is_refused_in_a_line_or_trains_on(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Drawing, "picture", lambda *arguments: None)
    path, data = checkpoint
    content, codes = torch.load(path, weights_only=True), []
    for i, (place, value) in enumerate(mutated_checkpoints(content, random.Random(3), 4)):
        torch.save(replaced(content, place, value), tmp_path / "changed.ckpt")
        flags = [*TINY, "--max_epochs=2", "--limit_val_batches=1", f"--ckpt_path={tmp_path}/changed.ckpt"]
        codes.append(learn_shapes.main([str(data), str(tmp_path / str(i)), *flags]))
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("learn_shapes.py")]
        assert len(told) == (codes[-1] != 0), (place, value, told)
    n = len(KNOWN) + 2
    assert codes[:n] == [1] * n and set(codes) <= {0, 1, 2}
