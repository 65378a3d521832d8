"""Where a run is kept: checkpoints whole or not at all, the newest that can be read, a folder for each
run."""

import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from nrf.config import result_affecting
from nrf.system.archive import GIB, ArchiveError, load_archive, save_whole
from nrf.system.files import fcntl
from nrf.training.checkpoint_content import problem_of
from nrf.training.errors import CheckpointError, TrainingError

MAX_BYTES = 4 * GIB
TO_PREDICT = {"state_dict", "hyper_parameters"}  # what a checkpoint must hold
TO_RESUME = TO_PREDICT | {"global_step", "optimizer_states", "callbacks"}
WANTED = "expected a .ckpt file of learn_shapes.py"
UNFINISHED = ".unfinished"


def read_checkpoint(path: str | Path, wanted: set[str] = TO_RESUME) -> dict[str, Any]:
    """What Lightning saved, as a dict on the CPU. CheckpointError for anything but our own checkpoints."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {WANTED}")
    try:
        content = load_archive(path, MAX_BYTES)
    except (ArchiveError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or foreign ({error}); {WANTED}") from error
    missing = wanted - content.keys() if isinstance(content, dict) else wanted
    if missing:
        raise CheckpointError(f"{path}: damaged or foreign (no {', '.join(sorted(missing))}); {WANTED}")
    if problem := problem_of(content):
        raise CheckpointError(f"{path}: damaged or foreign ({problem}); {WANTED}")
    return content


class WholeFiles(CheckpointIO):
    """Checkpoints written whole or not at all, to the disk, and read without trusting them.

    One whose weights are not finite is refused: every checkpoint there is can be resumed from.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                raise TrainingError(
                    diverged(f"{name} is no longer finite", checkpoint["global_step"], path.parent)
                )
        path.parent.mkdir(exist_ok=True)  # and not its parents: a folder of logs that vanished is reported
        save_whole(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def diverged(what: str, step: int, folder: str | Path | None) -> str:
    """The message of a run whose numbers are no longer finite.  folder: of its checkpoints, or None."""
    good = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns) if folder else []
    return (
        f"{what} at step {step}; last good checkpoint: {good[-1] if good else 'none yet'}; try a smaller "
        "--lr, --gradient_clip_val 1, --precision 32, or --detect_anomaly true to see where it comes from"
    )


def find_last(run_folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint of the highest step, of the newest run of these settings under `run_folder`; None if
    there is none.  One that is damaged is named on stderr, and the one before it taken."""
    versions = {number_of(folder): folder for folder in run_folder.glob("version_*")}
    versions.pop(None, None)
    for _, version in sorted(versions.items(), reverse=True):
        if is_trained(version):
            print(f"{version}: another process trains it", file=sys.stderr)
            continue
        found = []
        for path in version.glob("checkpoints/[!.]*.ckpt"):
            try:
                content = read_checkpoint(path)
            except CheckpointError as error:
                print(f"{error}: looking for an earlier one", file=sys.stderr)
                continue
            if result_affecting(content["hyper_parameters"]) == result_affecting(settings):
                found.append((content["global_step"], path.name == "last.ckpt", path))
        if found:
            return max(found)[-1]
    return None


def where_to_resume(
    ckpt_path: str | Path | None, run_folder: Path, settings: Mapping[str, Any]
) -> tuple[str | Path | None, int | None]:
    """The checkpoint that --ckpt_path means, and which version of `run_folder` it is of.

    Each is None where there is none.  last: the newest of these settings.  FileNotFoundError for one that is
    not there.
    """
    if ckpt_path == "last":
        ckpt_path = find_last(run_folder, settings)
        start = f"nothing to resume in {run_folder}: starting"
        print(f"resumes from {ckpt_path}" if ckpt_path else start)
    if not ckpt_path:
        return None, None
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"--ckpt_path {ckpt_path}: no such file; expected a .ckpt file or last")
    version = version_of(ckpt_path, run_folder)
    if version is not None:
        remove_parts(Path(ckpt_path).parent)
    return ckpt_path, version


def version_of(checkpoint: str | Path, run_folder: Path) -> int | None:
    """The version of `run_folder` that the checkpoint is of, where the run resumes; None if of none."""
    path = Path(checkpoint).resolve()
    if path.parent.parent.parent != run_folder.resolve():
        return None
    return number_of(path.parent.parent)


def number_of(version: Path) -> int | None:
    """k of a folder `version_k`; None for another name, that of somebody's copy, say."""
    number = version.name.removeprefix("version_")
    return int(number) if number.isascii() and number.isdigit() else None


class Nothing:
    """A writer whose every part takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> "Nothing":
        return self

    def __call__(self, *arguments: Any, **named: Any) -> "Nothing":
        return self


class RunLogger(TensorBoardLogger):
    """TensorBoard's logs in a `version_k` of one run alone, also where several start at once.

    `reuse`: a new run may take the place of one that was killed before its first checkpoint. While a run
    lives, and where it did not end well, `version_k/.unfinished` lies there, locked by the living.
    `silent`: the folder alone, without TensorBoard's logs.
    """

    def __init__(self, log_root: str | Path, name: str, reuse: bool = False, silent: bool = False) -> None:
        super().__init__(log_root, name=name, default_hp_metric=False)
        self.silent = silent
        self.resumes, self._reuse = False, reuse
        self._wanted: int | None = None
        self._lock: IO[str] | None = None
        self._sizes: dict[str, int] | None = {}

    def resume(self, version: int, step: int | None, sizes: dict[str, int] | None) -> None:
        """Log to this version, which is there, and forget what it logged after its files had these sizes, or,
        without them, from this step on."""
        self.resumes, self._wanted, self._sizes = True, version, sizes
        if sizes is None:
            self._kwargs["purge_step"] = step

    def sizes(self) -> dict[str, int]:
        """In bytes, of the files logged to so far, by name; in the first process."""
        if rank_zero_only.rank:
            return {}
        self.experiment.flush()
        return {path.name: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        return sorted((Path(self.root_dir) / f"version_{self.version}").glob("events.out.tfevents.*"))

    @property
    def experiment(self) -> Any:
        return Nothing() if self.silent else super().experiment

    @property
    def version(self) -> int:
        if rank_zero_only.rank == 0 and self._lock is None:
            self._claim(Path(self.root_dir))
        return self._wanted or 0

    def _claim(self, run_folder: Path) -> None:
        unsaved = abandoned(run_folder) if self._reuse and self._wanted is None else []
        for number in [self._wanted] if self.resumes else unsaved:
            self._lock = take(run_folder / f"version_{number}")
            if self._lock is not None:
                break
            if self.resumes:
                raise TrainingError(f"{run_folder / f'version_{number}'}: another process trains it")
        if self._lock is not None:
            self._wanted, self.resumes, sizes = number, True, self._sizes
            if sizes is None:
                return
            for path in self._files():
                if path.name in sizes:
                    os.truncate(path, min(path.stat().st_size, sizes[path.name]))
                else:
                    path.unlink()
            return
        self._wanted = claim_version(run_folder)
        self._lock = take(run_folder / f"version_{self._wanted}")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._lock is not None:
            if status == "success":
                (Path(self.root_dir) / f"version_{self._wanted}" / UNFINISHED).unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Let others resume this run, however it ended."""
        if self._lock is not None:
            self._lock.close()


def take(version: Path) -> IO[str] | None:
    """`.unfinished` of a version, open and locked for as long as it stays open; None if it is another's."""
    file = (version / UNFINISHED).open("a")
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    LOCKS.add(file)
    return file


def release_in_child() -> None:
    """A lock is its process's, not of the children that read data, which may outlive it for a moment."""
    for file in LOCKS:
        file.close()


LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()  # the open files of this process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release_in_child)


def is_trained(version: Path) -> bool:
    """Whether a living process trains this version."""
    if not (version / UNFINISHED).exists():
        return False
    lock = take(version)
    if lock:
        lock.close()
    return lock is None


def abandoned(run_folder: Path) -> list[int]:
    """Numbers of the versions whose run ended, not well, before its first checkpoint."""
    folders = [path.parent for path in run_folder.glob(f"version_*/{UNFINISHED}")]
    return [
        number
        for folder in sorted(folders)
        if (number := number_of(folder)) is not None
        and not list(folder.glob("checkpoints/*.ckpt"))
        and not is_trained(folder)
    ]


def claim_version(run_folder: Path) -> int:
    """Make the next `version_k` under `run_folder`, for this run alone; returns k."""
    run_folder.mkdir(parents=True, exist_ok=True)
    numbers = map(number_of, run_folder.glob("version_*"))
    number = max((number + 1 for number in numbers if number is not None), default=0)
    while True:
        try:
            (run_folder / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1


def remove_parts(folder: str | Path) -> None:
    """Remove what a killed writer left of checkpoints in `folder`."""
    for path in Path(folder).glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)
