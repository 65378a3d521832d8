"""Where a run is kept: checkpoints whole or not at all, the newest that can be read, a folder for each
run."""

import sys
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from archive import GIB, ArchiveError, load_archive, save_whole

MAX_BYTES = 4 * GIB
# settings that may change when a run goes on
FREE = ("num_workers", "temporal_backend", "convolution", "checkpoint_activations", "compile")


class TrainingError(RuntimeError):
    """Training cannot go on; its message is for the user."""


def read_checkpoint(path):
    """The content of a checkpoint, on the CPU. TrainingError naming it where it is damaged or foreign."""
    try:
        content = load_archive(path, MAX_BYTES)
        wanted = {"state_dict", "hyper_parameters", "loops", "global_step", "optimizer_states", "callbacks"}
        if not isinstance(content, dict) or not wanted <= content.keys():
            raise ArchiveError("no checkpoint of learn_shapes.py")
    except (ArchiveError, OSError) as error:
        raise TrainingError(f"{path}: damaged or foreign ({error})") from error
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
    others = set()  # folders of runs of other settings
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        if path.parent in others or path.name.startswith("."):
            continue
        try:
            trained_with = read_checkpoint(path)["hyper_parameters"]
        except TrainingError as error:
            if rank_zero_only.rank == 0:
                print(f"{error}: looking for an earlier one", file=sys.stderr)
            continue
        if all(trained_with.get(k) == v for k, v in settings.items() if k not in FREE):
            return path
        others.add(path.parent)
    return None


def batches_served(checkpoint, n_batches):
    """Batches of its unfinished epoch that a checkpoint's run had trained on; 0 at the end of an epoch."""
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    return batches if batches < n_batches else 0


def version_of(checkpoint, run_folder):
    """The version of `run_folder` that the checkpoint is of, where the run goes on; None if of none."""
    path = Path(checkpoint).resolve()
    if path.parent.parent.parent != run_folder.resolve():
        return None
    return int(path.parent.parent.name.removeprefix("version_"))


class RunLogger(TensorBoardLogger):
    """TensorBoard's logs in a `version_k` of their own, even if several runs start at once; or, with
    `version`, those of a run that goes on: what it logged from `purge_step` on is forgotten."""

    def __init__(self, log_root, name, version=None, purge_step=None):
        further = {} if purge_step is None else {"purge_step": purge_step}
        super().__init__(log_root, name=name, version=version, default_hp_metric=False, **further)
        self._claimed = version

    @property
    def version(self):
        if self._claimed is None and rank_zero_only.rank == 0:
            self._claimed = claim_version(Path(self.root_dir))
        return self._claimed or 0


def claim_version(run_folder):
    """Make the next `version_k` under `run_folder`, for this run alone; returns k."""
    run_folder.mkdir(parents=True, exist_ok=True)
    numbers = [path.name.removeprefix("version_") for path in run_folder.glob("version_*")]
    number = max((int(text) + 1 for text in numbers if text.isdigit()), default=0)
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
