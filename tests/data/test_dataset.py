"""Recordings and batches: equal to a textbook reading of the published windows; or refused, in one line."""

import os
import pickle
import re

import gerd
import numpy as np
import pytest
import torch

from nrf.data.dataset import EventBatch, ShapeDataset, collate, dense_frames, loader, stacked
from nrf.data.recordings import DataError, read_recording, write_recording

GERD = (  # of release 0.5.1, and of the paper's version
    "gerd0.5.1_v0.50_s20_seed0",
    "published_v0.20_s10",
    "published_v0.20_s20",
    "published_v0.64_scaling_seed0",
)
SHAPE = (128, 2, 9, 6)
# timesteps, stack_frames, sum_frames
WINDOWS = [
    (t, stack, sums)
    for t in (1, 4, 20, 40)
    for stack in (1, 3, 8)
    for sums in (0, 1)
    if stack > 1 or not sums
]


def random_recording(seed=0, shape=SHAPE, n=400, shapes=2):
    rng = np.random.default_rng(seed)
    return rng.integers(0, shape, (n, 4)), rng.uniform(0, 9, (shape[0], shapes, 2)).astype("f4"), shape


def write_many(root, names, **kwargs):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_recording(root / name, *random_recording(seed, **kwargs))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_many(tmp_path_factory.mktemp("data"), [f"a/{i}.dat" for i in range(5)])


def textbook(path, chunk, t, stack, sums, delay):
    """Warm-up and actual frames (t, C, H, W), labels (t, N, 2), frame by frame as published."""
    frames, labels = torch.load(path, weights_only=True)
    tau = t + stack - 1
    start = chunk * tau
    mid, end = start + tau, start + 2 * tau
    dense = frames.to_dense()[start:end].clip(0, 1).to(torch.uint8)
    halves = []
    for half in (dense[:tau], dense[tau:]):
        assert len(half) == tau
        steps = []
        for k in range(t):
            seen = [half[k + j] for j in range(stack)]
            steps.append(torch.stack(seen).sum(0) if sums else torch.cat(seen))
        halves.append(torch.stack(steps))
    return *halves, labels.reshape(len(labels), -1, 2)[mid + delay : end + delay][stack - 1 :]


def assert_equals_textbook(dataset, items, t, stack, sums, delay):
    batch = collate([dataset[i] for i in items])
    frames = dense_frames(batch, dataset.resolution, t, stack, sums)
    for b, i in enumerate(items):
        file, chunk = divmod(i, dataset.chunks)
        *halves, labels = textbook(dataset.files[file], chunk, t, stack, sums, delay)
        for actual, wanted in zip(frames, halves, strict=True):
            assert actual.dtype == torch.uint8 and torch.equal(actual[:, b].long(), wanted.long())
        assert torch.equal(batch.labels[b], labels) and len(labels) == t
    assert all(half.shape[:3] == (t, len(items), dataset.n_channels) for half in frames)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("t, stack, sums", WINDOWS)
def test_windows_are_the_published_ones(data, t, stack, sums, delay):
    dataset = ShapeDataset(data, t, "train", delay, stack, sums)
    assert len(dataset) == len(dataset.files) * dataset.chunks > 0
    assert_equals_textbook(dataset, [*range(dataset.chunks), len(dataset) - 1], t, stack, sums, delay)


@pytest.mark.parametrize("t, stack, sums, delay", [(40, 1, 0, 1), (20, 3, 0, 0), (4, 8, 1, 1), (1, 1, 0, 0)])
def test_windows_of_gerds_own_recordings(golden, t, stack, sums, delay):
    files = [golden(f"gerd/{name}.dat") for name in GERD]
    dataset = ShapeDataset(files[0].parents[1], t, "all", delay, stack, sums)
    assert dataset.files == files and dataset.n_classes == 3 and dataset.resolution == (300, 300)
    items = [0, dataset.chunks - 1, len(dataset) - 1]
    assert_equals_textbook(dataset, items, t, stack, sums, delay)


@pytest.mark.parametrize(
    "t, stack, delay, chunks",
    [(40, 1, 1, 1), (40, 8, 1, 1), (20, 1, 1, 3), (4, 1, 1, 14), (63, 1, 1, 1), (64, 1, 0, 1), (4, 8, 1, 10)],
)
def test_chunks_are_counted_as_published_where_they_fit(data, t, stack, delay, chunks):
    assert ShapeDataset(data, t, network_delay=delay, stack_frames=stack).chunks == chunks


def test_items_end(data):
    dataset = ShapeDataset(data, 20)
    assert torch.equal(dataset[-1].events, dataset[len(dataset) - 1].events)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert len(list(dataset)) == 12


def test_a_sample_lets_go_of_its_file(data):
    dataset = ShapeDataset(data, 4)
    held = sum(tensor.untyped_storage().nbytes() for tensor in dataset[0])
    assert held < dataset.files[0].stat().st_size / 5


def test_gerds_data_set_reads_our_files(data):
    theirs = gerd.GerdDataset(str(data), t=5, stack=3, pose_delay=1)
    ours = ShapeDataset(data, 5, stack_frames=3)
    frames = dense_frames(collate([ours[0]]), ours.resolution, 5, 3)
    warmup, actual, labels = theirs[0]
    assert torch.equal(warmup, frames[0][:, 0].float()) and torch.equal(actual, frames[1][:, 0].float())
    assert torch.equal(labels, ours[0].labels) and frames[1].sum() > 10


def test_a_recording_comes_back(tmp_path):
    events, labels, shape = random_recording()
    write_recording(tmp_path / "a", events, labels, shape)
    recording = read_recording(tmp_path / "a")
    assert np.array_equal(recording.events.numpy(), np.unique(events, axis=0)) and recording.shape == shape
    assert np.array_equal(recording.labels.numpy(), labels) and recording.labels.dtype == torch.float32
    write_recording(tmp_path / "b", torch.tensor(events[::-1].copy()), torch.tensor(labels), shape)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    frames, _ = torch.load(tmp_path / "a", weights_only=True)
    assert frames.is_coalesced() and set(frames.values().tolist()) == {1.0}


def test_writing_leaves_the_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "0.dat"
    write_recording(path, *random_recording())
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_recording(path, *random_recording(1))
    assert os.listdir(tmp_path) == ["0.dat"] and path.read_bytes() == before


@pytest.mark.parametrize(
    "events, labels, problem",
    [
        (np.zeros((4, 8), int), np.zeros((9, 1, 2)), r"events of shape \(4, 8\)"),
        ([[9, 0, 0, 0]], np.zeros((9, 1, 2)), "outside the field"),
        ([[0, -1, 0, 0]], np.zeros((9, 1, 2)), "outside the field"),
        ([[0, 0, 0, 0]], np.zeros((8, 1, 2)), "do not go with 9 frames"),
        ([[0, 0, 0, 0]], np.full((9, 1, 2), np.inf), "a label is inf"),
    ],
)
def test_a_recording_that_does_not_fit_is_not_written(tmp_path, events, labels, problem):
    with pytest.raises(ValueError, match=problem):
        write_recording(tmp_path / "0.dat", events, labels, (9, 2, 5, 5))
    assert not os.listdir(tmp_path)


def sparse(indices, values, shape=(9, 2, 5, 5)):
    indices = torch.tensor(indices, dtype=torch.int64).reshape(-1, 4).T
    return torch.sparse_coo_tensor(indices, torch.tensor(values), shape, check_invariants=False)


def test_values_are_clipped_and_repeated_events_are_one(tmp_path):
    cells = [[8, 1, 4, 4], [0, 0, 1, 2], [8, 1, 4, 4], [0, 0, 0, 1], [3, 0, 0, 0], [4, 0, 0, 0], [4, 0, 0, 0]]
    frames = sparse(cells, [1.0, 2.0, 1.0, -1.0, 0.0, 1.0, -1.0])
    torch.save([frames, torch.ones(9, 1, 1, 2)], tmp_path / "0.dat")
    recording = read_recording(tmp_path / "0.dat")
    assert recording.events.tolist() == [[0, 0, 1, 2], [8, 1, 4, 4]]
    assert torch.equal(recording.labels, torch.ones(9, 1, 2))
    wanted = frames.to_dense().clip(0, 1)
    assert wanted.sum() == 2 and all(wanted[tuple(event)] == 1 for event in recording.events)


def test_dense_frames_count_a_repeated_event_once(data):
    dataset = ShapeDataset(data, 4)
    sample = dataset[0]
    twice = sample._replace(events=sample.events.repeat(2))
    for once, repeated in zip(
        dense_frames(collate([sample]), dataset.resolution, 4),
        dense_frames(collate([twice]), dataset.resolution, 4),
        strict=True,
    ):
        assert torch.equal(once, repeated) and once.max() == 1


LABELS = torch.ones(9, 1, 2)
FRAMES = sparse([[0, 0, 0, 0]], [1.0])
BAD = {
    "three tensors": [FRAMES, LABELS, LABELS],
    "no tensors": [1, 2],
    "a dictionary": {"events": FRAMES, "labels": LABELS},
    "dense events": [FRAMES.to_dense(), LABELS],
    "three polarities": [sparse([[0, 0, 0, 0]], [1.0], (9, 3, 5, 5)), LABELS],
    "three dimensions": [torch.ones(9, 2, 5).to_sparse(), LABELS],
    "five dimensions": [torch.ones(9, 2, 5, 5, 1).to_sparse(4), LABELS],
    "no field": [sparse([], [], (9, 2, 0, 5)), LABELS],
    "half an event": [sparse([[0, 0, 0, 0]], [0.5]), LABELS],
    "an event that is no number": [sparse([[0, 0, 0, 0]], [float("nan")]), LABELS],
    "complex events": [sparse([[0, 0, 0, 0]], [1j]), LABELS],
    "labels of other frames": [FRAMES, LABELS[1:]],
    "three coordinates": [FRAMES, torch.ones(9, 1, 3)],
    "no shapes": [FRAMES, LABELS[:, :0]],
    "whole-numbered labels": [FRAMES, LABELS.long()],
    "sparse labels": [FRAMES, LABELS.to_sparse()],
    "NaN labels": [FRAMES, LABELS * float("nan")],
    "infinite labels": [FRAMES, LABELS / 0],
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_foreign_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "0.dat")
    assert_refused(tmp_path / "0.dat")


def assert_refused(path, problem=""):
    with pytest.raises(DataError, match=problem) as refused:
        read_recording(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "nrf generate_data" in message


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_files_that_are_no_recordings_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("PK" * 50)
    (tmp_path / "pickle").write_bytes(pickle.dumps([1, 2]))
    torch.save([Trap(), Trap()], tmp_path / "trap")
    wanted = {
        "missing": "No such file",
        "empty": "cut short",
        "folder": "not a file",
        "text": "not a recording",
        "pickle": "not a recording",
        "trap": "damaged or foreign",
    }
    for name, problem in wanted.items():
        assert_refused(tmp_path / name, problem)
    assert not (tmp_path / "sprung").exists()


def test_damaged_files_are_read_or_refused(tmp_path):
    path = tmp_path / "0.dat"
    write_recording(path, *random_recording(n=20, shape=(3, 2, 9, 6)))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:length])
        assert_refused(path)
    refused = 0
    for place in rng.integers(0, len(whole), 400):
        damaged = bytearray(whole)
        damaged[place] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            recording = read_recording(path)
        except DataError as error:
            refused += "\n" not in str(error)
        else:
            refused += recording.events.shape[1] == 4 and recording.labels.isfinite().all().item()
    assert refused == 400


def test_events_outside_of_the_field_are_refused(tmp_path):
    for indices in ([9, 0, 0, 0], [0, 2, 0, 0], [0, 0, 5, 0], [0, 0, 0, -1]):
        frames = sparse([indices], [1.0])
        torch.save([frames, LABELS], tmp_path / "0.dat")
        assert_refused(tmp_path / "0.dat")


def names(dataset):
    return [f"{path.parent.name}/{path.stem}" for path in dataset.files]


def test_the_split_takes_names_as_text(tmp_path):
    root = write_many(tmp_path, [*(f"b/{i}.dat" for i in range(11)), "a/3.dat", "a/20.dat", "c/0.dat"])
    train = ["a/20", *(f"b/{i}" for i in (0, 1, 10, 2, 3, 4, 5, 6))]
    val = ["a/3", "b/7", "b/8", "b/9", "c/0"]
    assert names(ShapeDataset(root, 1, "train")) == train
    assert names(ShapeDataset(root, 1, "val")) == val
    assert names(ShapeDataset(root, 1, "all")) == ["a/20", "a/3", *train[1:], *val[1:]]
    # the filter comes after the split, and searches the whole path
    assert names(ShapeDataset(root, 1, "val", dataset_filter=r"b/[89]|c/")) == ["b/8", "b/9", "c/0"]
    assert names(ShapeDataset(root, 1, "train", dataset_filter="^/.*/b/1")) == ["b/1", "b/10"]


def test_only_recordings_one_folder_down_count(tmp_path):
    write_many(tmp_path, ["a/0.dat", "a/b/1.dat", "2.dat", ".hidden/3.dat", "a/._0.dat", "a/.4.dat"])
    (tmp_path / "a" / "parameters.json").touch()
    assert names(ShapeDataset(tmp_path, 1, "all")) == ["a/0"]


def test_what_cannot_be_used_is_told_at_once(tmp_path, data):
    one = write_many(tmp_path / "one", ["a/0.dat"])
    direct = write_many(tmp_path / "direct", ["0.dat"])
    (tmp_path / "none").mkdir()
    cut = write_many(tmp_path / "cut", [f"a/{i}.dat" for i in range(5)])
    (cut / "a" / "3.dat").write_bytes((cut / "a" / "3.dat").read_bytes()[:-1])
    problems = [
        (tmp_path / "absent", {}, "absent: no such folder; .*data_generation.sh"),
        (tmp_path / "none", {}, r"none: no \*/\*.dat; .*nrf generate_data"),
        (direct, {}, r"must lie in folders of it"),
        (one, {}, "none of 1 recordings is for training, .*80 %"),
        (data, {"dataset_filter": "xyz"}, "no recording of the split train matches 'xyz'"),
        (cut, {}, "a.3.dat: not a recording, or cut short"),
        (data, {"timesteps": 64}, "a.0.dat: 128 frames; .* need 129; take smaller --timesteps"),
        (data, {"timesteps": 63, "stack_frames": 2}, "need 129"),
        (data, {"resolution": (6, 9)}, "a.0.dat: 2 shapes in 9 x 6 pixels; expected 2 in 6 x 9"),
    ]
    for root, settings, problem in problems:
        with pytest.raises(DataError, match=problem) as refused:
            ShapeDataset(root, **settings)
        assert "\n" not in str(refused.value)
    wrong = [
        ({"split": "test"}, "expected train, val or all"),
        ({"dataset_filter": "("}, "expected a regular expression"),
        ({"timesteps": 0}, "timesteps 0"),
        ({"stack_frames": 0}, "stack_frames 0"),
        ({"network_delay": -1}, "network_delay -1"),
    ]
    for settings, problem in wrong:
        with pytest.raises(ValueError, match=problem) as refused:
            ShapeDataset(data, **settings)
        assert not isinstance(refused.value, DataError)


def test_windows_that_32_bits_cannot_count_are_refused(tmp_path):
    write_many(tmp_path, ["a/0.dat"], shape=(128, 2, 4000, 4000))
    with pytest.raises(ValueError, match="expected fewer than 2.31"):
        ShapeDataset(tmp_path, split="all")
    assert ShapeDataset(tmp_path, 20, split="all").resolution == (4000, 4000)


@pytest.mark.parametrize("workers", [0, 1])
def test_recordings_that_differ_are_told_when_read(tmp_path, workers):
    write_many(tmp_path, ["a/0.dat"])
    for name, shape, shapes, problem in (
        ("size", (128, 2, 6, 9), 2, "2 shapes in 6 x 9 pixels; expected 2 in 9 x 6"),
        ("shapes", SHAPE, 3, "3 shapes in 9 x 6 pixels; expected 2"),
        ("frames", (20, 2, 9, 6), 2, "20 frames, fewer than"),
    )[: 1 if workers else 3]:
        write_recording(tmp_path / "a" / "1.dat", *random_recording(shape=shape, shapes=shapes))
        dataset = ShapeDataset(tmp_path, 4, "all")
        with pytest.raises(DataError, match=problem) as refused:
            list(loader(dataset, 4, False, workers))
        message = str(refused.value)
        assert message.startswith(str(tmp_path)) and "\n" not in message, name


def test_longer_recordings_than_the_first_are_taken(tmp_path):
    write_many(tmp_path, ["a/0.dat"], shape=(20, 2, 9, 6))
    write_recording(tmp_path / "a" / "1.dat", *random_recording(1))
    dataset = ShapeDataset(tmp_path, 9, "all")
    assert len(dataset) == 2 and len(dataset[1].labels) == 9


def batches(loader):
    return [[tensor.clone() for tensor in batch] for batch in loader]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for batch, other in zip(ours, theirs, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


def test_workers_change_nothing(data):
    dataset = ShapeDataset(data, 4)  # 56 items
    alone, helped = (loader(dataset, 3, True, workers, seed=5) for workers in (0, 2))
    before = torch.get_rng_state()
    for epoch in range(2):
        for each in (alone, helped):
            each.batch_sampler.position.epoch = epoch
        first = batches(alone)
        assert len(first) == 18 and equal(first, batches(helped))
        assert first[0][0].dtype == torch.int32 and first[0][2].shape == (3, 4, 2, 2)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from the global generator


def test_the_order_follows_from_seed_and_epoch(data):
    dataset = ShapeDataset(data, 4)

    def order(size=1, seed=1, **position):
        sampler = loader(dataset, size, True, seed=seed).batch_sampler
        vars(sampler.position).update(position)
        return [item for batch in sampler for item in batch]

    first, second = order(), order(epoch=1)
    assert sorted(first) == list(range(56)) and first == order(7) and second != first
    assert order(seed=2) != first != list(range(56))
    assert order(epoch=1, items=5, of=56) == second[5:] and order(9, epoch=1, items=5, of=20) == second[5:20]
    order(seed=2**63 - 1)


def test_training_batches_are_whole_and_validation_leaves_nothing_out(data):
    dataset = ShapeDataset(data, 20)  # 12 items

    def sizes(*args, **kwargs):
        return [len(batch.counts) for batch in loader(dataset, *args, **kwargs)]

    assert sizes(5, True) == [5, 5]
    assert sizes(13, True) == [12]
    assert sizes(5, False) == [5, 5, 2]
    assert sizes(5, True, drop_last=False) == [5, 5, 2] and sizes(5, False, drop_last=True) == [5, 5]
    in_order = torch.cat([batch.labels for batch in loader(dataset, 5, False)])
    assert torch.equal(in_order, torch.stack([sample.labels for sample in dataset]))


def test_a_recording_without_events(tmp_path):
    write_many(tmp_path, ["a/0.dat", "a/1.dat"])
    write_recording(tmp_path / "a" / "0.dat", np.zeros((0, 4), int), *random_recording()[1:])
    dataset = ShapeDataset(tmp_path, 4, "all")
    batch = collate([dataset[0], dataset[dataset.chunks]])
    _, actual = dense_frames(batch, dataset.resolution, 4)
    assert batch.counts[0] == 0 and not actual[:, 0].any() and actual[:, 1].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_frames_are_made_on_the_device_of_pinned_batches(data):
    dataset = ShapeDataset(data, 4, stack_frames=3)
    for batch in loader(dataset, 3, True, 2):
        assert batch.events.is_pinned() and batch.labels.is_pinned()
        on_device = type(batch)(*(tensor.cuda(non_blocking=True) for tensor in batch))
        for ours, wanted in zip(
            dense_frames(on_device, dataset.resolution, 4, 3),
            dense_frames(batch, dataset.resolution, 4, 3),
            strict=True,
        ):
            assert ours.is_cuda and torch.equal(ours.cpu(), wanted)


def test_no_samples_make_an_empty_batch():
    """Of the dtypes of others: a process whose share of the last batch is empty gets one."""
    batch = collate([])
    assert batch.events.dtype == torch.int32 and batch.counts.dtype == torch.int64
    assert batch.events.shape == batch.counts.shape == (0,) and batch.labels.shape == (0, 0, 0, 2)


def test_the_order_is_that_of_a_generator_of_seed_and_epoch(data):
    """Of any seed, and of every process's share: what a run's numbers rest on."""
    dataset = ShapeDataset(data, 4)
    for seed in (0, 7, 2**62 + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 % 2**63)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        alone = list(loader(dataset, 6, shuffle=True, seed=seed).batch_sampler)
        assert sum(alone, []) == order[: len(order) // 6 * 6] and {len(batch) for batch in alone} == {6}
        shares = [loader(dataset, 3, True, seed=seed, rank=k, n_processes=2).batch_sampler for k in range(2)]
        assert [(batch[::2], batch[1::2]) for batch in alone] == list(zip(*shares, strict=True))
    share = loader(dataset, 6, shuffle=True, seed=7).batch_sampler
    share.position.epoch = 3
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 3)
    assert next(iter(share)) == torch.randperm(len(dataset), generator=generator).tolist()[:6]
    shares = [loader(dataset, 5, False, rank=k, n_processes=3).batch_sampler for k in range(3)]
    assert sorted(sum((batch for share in shares for batch in share), [])) == list(range(len(dataset)))
    assert [next(iter(share)) for share in shares] == [list(range(k, 15, 3)) for k in range(3)]
    needed = "--batch_size 40 in 2 processes needs 80 items to train on; there are 56"
    with pytest.raises(ValueError, match=needed):
        loader(dataset, 40, True, n_processes=2)


def test_labels_are_kept_in_float32(tmp_path):
    events, labels, shape = random_recording()
    write_recording(tmp_path / "r.dat", events, labels.astype("f8"), shape)
    assert torch.load(tmp_path / "r.dat", weights_only=True)[1].dtype == torch.float32


def test_messages_name_the_cause(tmp_path):
    torch.save({"a": 1}, tmp_path / "other.dat")
    with pytest.raises(DataError, match=r"other.dat: damaged or foreign \((?!ArchiveError)\w.*\); render"):
        read_recording(tmp_path / "other.dat")
    write_recording(tmp_path / "0.dat", *random_recording())
    text = f"{tmp_path}: no */*.dat; its .dat files must lie in folders of it; render"
    with pytest.raises(DataError, match=re.escape(text)):
        ShapeDataset(tmp_path, 4)


def test_frames_are_made_on_the_device_of_their_events():
    """On any device, without waiting for its numbers: here one that holds none."""
    events = torch.empty(9, dtype=torch.int32, device="meta")
    batch = EventBatch(events, torch.empty(2, dtype=torch.int64, device="meta"), None)
    halves = dense_frames(batch, (4, 5), 3, 2)
    assert all(half.device.type == "meta" and half.shape == (3, 2, 4, 4, 5) for half in halves)


def test_windows_that_32_bits_just_count_are_taken(tmp_path):
    (tmp_path / "a").mkdir()
    shape = (4, 2, 2**14, 2**15 - 1)
    last = torch.tensor([[1, 1, 2**14 - 1, 2**15 - 2]])  # of the window of two frames
    write_recording(tmp_path / "a" / "0.dat", last, torch.zeros(4, 1, 2), shape)
    (sample,) = ShapeDataset(tmp_path, 1, "all")
    assert sample.events.tolist() == [2**31 - 2**16 - 1]


@pytest.mark.parametrize("sums", [0, 1])
def test_frames_stacked_one_by_one_are_those_of_a_batch(data, sums):
    """As a recording is tracked, frame by frame."""
    dataset = ShapeDataset(data, 4, stack_frames=3)
    batch = collate([dataset[0], dataset[5]])
    plain = dense_frames(batch, dataset.resolution, 6)
    for half, wanted in zip(plain, dense_frames(batch, dataset.resolution, 4, 3, sums), strict=True):
        assert torch.equal(stacked(half, 3, sums), wanted) and wanted.any()


def test_workers_stay_and_end_with_their_parent(data):
    dataset = ShapeDataset(data, 4)
    assert not loader(dataset, 2, False).persistent_workers
    several = loader(dataset, 2, False, num_workers=1)
    assert several.persistent_workers and several.worker_init_fn.__module__ == "nrf.data.dataset"
