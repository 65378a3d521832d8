"""Where a run is kept: checkpoints whole or not at all, the newest that can be read, a folder for each
run."""

import sys
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from nrf.config import result_affecting
from nrf.system.archive import GIB, ArchiveError, load_archive, save_whole
from nrf.system.files import fcntl
from nrf.system.text import printable
from nrf.training.checkpoint_content import problem_of

MAX_BYTES = 4 * GIB
TO_PREDICT = {"state_dict", "hyper_parameters"}  # what a checkpoint must hold
TO_GO_ON = TO_PREDICT | {"loops", "global_step", "optimizer_states", "callbacks"}
WANTED = "expected a .ckpt file of learn_shapes.py"
UNFINISHED = ".unfinished"


class TrainingError(RuntimeError):
    """Training cannot go on; its message is for the user."""

    def __init__(self, message):
        super().__init__(printable(message))


class CheckpointError(TrainingError):
    """A checkpoint that cannot be used; the message names it and what was expected."""


def read_checkpoint(path, wanted=TO_GO_ON):
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

    One whose weights are not finite is refused: every checkpoint there is can be continued from.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path = Path(path)
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                raise TrainingError(
                    diverged(f"{name} is no longer finite", checkpoint["global_step"], path.parent)
                )
        path.parent.mkdir(exist_ok=True)  # and not its parents: a folder of logs that vanished is told
        save_whole(path, checkpoint)

    def load_checkpoint(self, path, map_location=None, weights_only=True):
        return read_checkpoint(path)

    def remove_checkpoint(self, path):
        Path(path).unlink(missing_ok=True)


def diverged(what, step, folder):
    """The message of a run whose numbers are no longer finite.  folder: of its checkpoints, or None."""
    good = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns) if folder else []
    return (
        f"{what} at step {step}; last good checkpoint: {good[-1] if good else 'none yet'}; try a smaller "
        "--lr, --gradient_clip_val 1, --precision 32, or --detect_anomaly true to see where it comes from"
    )


def find_last(run_folder, settings):
    """The newest checkpoint of a run of these settings under `run_folder`, None if there is none.

    One that is damaged is named on stderr, and the one before it taken.
    """
    paths = run_folder.glob("version_*/checkpoints/*.ckpt")
    others = set()  # folders of runs of other settings, or of a living process
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        if path.parent in others or path.name.startswith(".") or number_of(path.parents[1]) is None:
            continue
        if is_trained(path.parents[1]):
            print(f"{path.parents[1]}: another process trains it", file=sys.stderr)
            others.add(path.parent)
            continue
        try:
            trained_with = read_checkpoint(path)["hyper_parameters"]
        except CheckpointError as error:
            print(f"{error}: looking for an earlier one", file=sys.stderr)
            continue
        if result_affecting(trained_with) == result_affecting(settings):
            return path
        others.add(path.parent)
    return None


def where_to_go_on(ckpt_path, run_folder, settings):
    """The checkpoint that --ckpt_path means, and which version of `run_folder` it is of.

    Each is None where there is none.  last: the newest of these settings.  FileNotFoundError for one that is
    not there.
    """
    if ckpt_path == "last":
        ckpt_path = find_last(run_folder, settings)
        start = f"nothing to continue in {run_folder}: starting"
        print(f"continuing from {ckpt_path}" if ckpt_path else start)
    if not ckpt_path:
        return None, None
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"--ckpt_path {ckpt_path}: no such file; expected a .ckpt file or last")
    version = version_of(ckpt_path, run_folder)
    if version is not None:
        remove_parts(Path(ckpt_path).parent)
    return ckpt_path, version


def batches_served(checkpoint):
    """Batches of its unfinished epoch that a checkpoint's run had trained on; 0 at the end of an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return 0 if progress["is_last_batch"] else progress["current"]["ready"]


def version_of(checkpoint, run_folder):
    """The version of `run_folder` that the checkpoint is of, where the run goes on; None if of none."""
    path = Path(checkpoint).resolve()
    if path.parent.parent.parent != run_folder.resolve():
        return None
    return number_of(path.parent.parent)


def number_of(version):
    """k of a folder `version_k`; None for another name, that of somebody's copy, say."""
    number = version.name.removeprefix("version_")
    return int(number) if number.isascii() and number.isdigit() else None


class Nothing:
    """A writer whose every part takes everything and keeps nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *arguments, **named):
        return self


class RunLogger(TensorBoardLogger):
    """TensorBoard's logs in a `version_k` of one run alone, also where several start at once.

    `reuse`: a new run may take the place of one that was killed before its first checkpoint. While a run
    lives, and where it did not end well, `version_k/.unfinished` lies there, locked by the living.
    `silent`: the folder alone, without TensorBoard's logs.
    """

    def __init__(self, log_root, name, reuse=False, silent=False):
        super().__init__(log_root, name=name, default_hp_metric=False)
        self.silent = silent
        self.goes_on, self._wanted, self._reuse, self._lock = False, None, reuse, None

    def go_on(self, version, step):
        """Log to this version, which is there, and forget what it logged from this step on."""
        self.goes_on, self._wanted, self._kwargs["purge_step"] = True, version, step

    @property
    def experiment(self):
        return Nothing() if self.silent else super().experiment

    @property
    def version(self):
        if rank_zero_only.rank == 0 and self._lock is None:
            self._claim(Path(self.root_dir))
        return self._wanted or 0

    def _claim(self, run_folder):
        unsaved = abandoned(run_folder) if self._reuse and self._wanted is None else []
        for number in [self._wanted] if self.goes_on else unsaved:
            self._lock = take(run_folder / f"version_{number}")
            if self._lock is not None:
                break
            if self.goes_on:
                raise TrainingError(f"{run_folder / f'version_{number}'}: another process trains it")
        if self._lock is not None:
            self._wanted, self.goes_on = number, True
            if number in unsaved:
                for path in (run_folder / f"version_{number}").glob("events.out.tfevents.*"):
                    path.unlink()
            return
        self._wanted = claim_version(run_folder)
        self._lock = take(run_folder / f"version_{self._wanted}")

    @rank_zero_only
    def finalize(self, status):
        super().finalize(status)
        if self._lock is not None:
            if status == "success":
                (Path(self.root_dir) / f"version_{self._wanted}" / UNFINISHED).unlink(missing_ok=True)
            self.close()

    def close(self):
        """Let others go on with this run, however it ended."""
        if self._lock is not None:
            self._lock.close()


def take(version):
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
    return file


def is_trained(version):
    """Whether a living process trains this version."""
    lock = take(version) if (version / UNFINISHED).exists() else False
    if lock:
        lock.close()
    return lock is None


def abandoned(run_folder):
    """Numbers of the versions whose run ended, not well, before its first checkpoint."""
    folders = [path.parent for path in run_folder.glob(f"version_*/{UNFINISHED}")]
    return [
        number_of(folder)
        for folder in sorted(folders)
        if number_of(folder) is not None
        and not list(folder.glob("checkpoints/*.ckpt"))
        and not is_trained(folder)
    ]


def claim_version(run_folder):
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


def remove_parts(folder):
    """Remove what a killed writer left of checkpoints in `folder`."""
    for path in Path(folder).glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)
