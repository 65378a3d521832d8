"""Render data sets of moving shapes as event recordings (GERD `.dat` files).

    python3 nrf generate_data 500 data/spatial --scales 10 20 40 80 --velocities 0.2 --generator published

writes N recordings for every velocity, event density and size, each condition into a folder of its own:

    OUT/v0.20-p1.00-s10.0_1000/0.dat ... 499.dat

named by velocity, event density, size, and whether shapes translate, change size, rotate, shear.
Random size is s0.0 (and s1.0_.1.. when it changes), as GERD names it. An interrupted command resumes where
it stopped; a folder keeps what it was rendered with in parameters.json and refuses anything else.
"""

import argparse
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nrf.data.recordings import DataError, check_file, read_recording, write_recording
from nrf.gerd.render import RenderParameters, render
from nrf.system.files import write_whole

PARAMETERS_FILE = "parameters.json"
FORMAT = 1  # of the random stream: the same number means that the same parameters give the same recordings
AHEAD = 4  # recordings handed to each worker in advance
ALONE_S = 1.0  # seconds that a command renders by itself before it thinks of starting processes,
WORTH_S = 15.0  # and seconds that the rest must take by itself for them to be worth their start


class Folder(NamedTuple):
    """One condition: where its recordings go, what they are made with, and that as it stands in
    parameters.json."""

    path: Path
    parameters: RenderParameters
    description: dict


Job = tuple[Folder, int]  # a recording to render: its folder and index


def folder_name(p: RenderParameters) -> str:
    """GERD's name for a condition, e.g. v0.20-p1.00-s10.0_1000."""
    size = {"random": 0.0, "changing": 1.0}[p.scale] if isinstance(p.scale, str) else p.scale
    flags = "".join(str(int(flag)) for flag in (p.translate, p.scale == "changing", p.rotate, p.shear))
    return f"v{p.velocity:.2f}-p{p.event_density:.2f}-s{size:.1f}_{flags}"


def plan(args: argparse.Namespace) -> tuple[list[Folder], list[Path]]:
    """The folders to fill, checked against what is there. ValueError says what cannot be."""
    backgrounds = sorted(args.bg_files.rglob("*.dat")) if args.bg_files else []
    if args.bg_files and not backgrounds:
        raise ValueError(f"--bg_files {args.bg_files}: no .dat recordings there")
    folders = []
    for velocity, density, scale in itertools.product(args.velocities, args.event_densities, args.scales):
        p = RenderParameters(
            generator=args.generator,
            resolution=tuple(args.resolution),
            length=args.frames,
            shapes=tuple(args.shapes),
            scale=scale,
            velocity=velocity,
            translate=bool(args.translation),
            rotate=bool(args.rotation),
            shear=bool(args.shearing),
            event_density=density,
            bg_density=args.bg_density,
        )
        names = [str(b.relative_to(args.bg_files)) for b in backgrounds]
        description = json.loads(
            json.dumps(asdict(p) | {"seed": args.seed, "bg_files": names, "format": FORMAT})
        )
        folders.append(Folder(args.out / folder_name(p), p, description))
    _check(folders)
    return folders, backgrounds


def _check(folders: list[Folder]) -> None:
    for i, folder in enumerate(folders):
        if folder.path in [other.path for other in folders[:i]]:
            raise ValueError(f"{folder.path}: two conditions would share this name; give each its own OUT")
        if folder.path.is_dir():
            _check_kept(folder)
        elif folder.path.exists():
            raise ValueError(f"{folder.path}: is a file, expected a folder")


def _check_kept(folder: Folder) -> None:
    """Refuse a folder whose recordings were made with anything else."""
    kept = folder.path / PARAMETERS_FILE
    if not kept.exists():
        if any(folder.path.glob("*.dat")):
            raise ValueError(f"{folder.path}: has recordings but no {PARAMETERS_FILE}; take another OUT")
        return
    try:
        there = json.loads(kept.read_text())
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise ValueError(f"{kept}: not readable as JSON; take another OUT, or delete the folder")
    for key in sorted(folder.description | there):
        before, now = there.get(key), folder.description.get(key)
        if before != now:
            raise ValueError(
                f"{folder.path}: was rendered with {key} {before}, not {now}; "
                "take another OUT, or delete the folder"
            )


def render_one(folder: Folder, index: int, backgrounds: list[Path]) -> None:
    """Render recording `index` of a folder and write it: the same whoever calls, in whatever order."""
    seed = (folder.description["seed"], zlib.crc32(folder.path.name.encode()), index)
    background = None
    if backgrounds:
        drawn = read_recording(backgrounds[zlib.crc32(repr(seed).encode()) % len(backgrounds)])
        frames, _, *field = drawn.shape
        if tuple(field) != folder.parameters.resolution or frames < folder.parameters.length:
            raise ValueError(f"the background has {frames} frames of {field[0]} x {field[1]} pixels")
        background = drawn.events.numpy()
    recording = render(folder.parameters, seed, background)
    write_recording(folder.path / f"{index}.dat", *recording)


def _start_worker() -> None:
    """One thread, and gone with its parent."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def render_all(jobs: list[Job], backgrounds: list[Path], workers: int) -> None:
    """Render jobs (folder, index); RenderError with the name of the first that fails.

    Starts alone, and takes `workers` processes for the rest if that is long: each has torch to load first.
    """
    waiting = iter(jobs)
    started = time.monotonic()
    with tqdm(total=len(jobs), unit="recording", disable=None) as bar:
        for done, (folder, index) in enumerate(waiting, start=1):
            try:
                render_one(folder, index, backgrounds)
            except Exception as error:  # noqa: BLE001  as in a worker: any failure names its recording
                raise RenderError(f"{folder.path / f'{index}.dat'}: {_reason(error)}") from error
            bar.update()
            spent = time.monotonic() - started
            if workers > 1 and spent > ALONE_S and spent * (len(jobs) / done - 1) > WORTH_S:
                break
        if done < len(jobs):
            _render_in_processes(waiting, backgrounds, workers, bar)


def _render_in_processes(waiting: Iterator[Job], backgrounds: list[Path], workers: int, bar: tqdm) -> None:
    running: dict[Future, Path] = {}
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        while True:
            # workers start here: Ctrl-C is blocked for them from their first instruction on
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            for folder, index in itertools.islice(waiting, AHEAD * workers - len(running)):
                future = pool.submit(render_one, folder, index, backgrounds)
                running[future] = folder.path / f"{index}.dat"
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                path, error = running.pop(future), future.exception()
                if error is not None:
                    raise RenderError(f"{path}: {_reason(error)}") from error
                bar.update()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class RenderError(Exception):
    """A recording failed; the message names it."""


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "a worker process ended (out of memory?); the same command with fewer --workers resumes"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _write_description(folder: Folder) -> None:
    path = folder.path / PARAMETERS_FILE
    if not path.exists():
        write_whole(path, (json.dumps(folder.description, indent=1) + "\n").encode())


def _missing(jobs: list[Job]) -> list[Job]:
    """Jobs not done yet: damaged files are reported and count as missing; what a killed writer left goes."""
    parts = {folder: list(folder.glob(".*.dat.*")) for folder in {folder.path for folder, _ in jobs}}
    missing = []
    for folder, index in jobs:
        path = folder.path / f"{index}.dat"
        for part in parts[folder.path]:
            if part.name.startswith(f".{path.name}."):
                part.unlink(missing_ok=True)
        try:
            check_file(path)
        except DataError as error:
            missing.append((folder, index))
            if path.exists():
                print(f"rendered again: {error}", file=sys.stderr)
    return missing
