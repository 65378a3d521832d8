"""Trained networks out of checkpoint files, on the device asked for."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nrf.training.module import ShapesModel
from nrf.training.persistence import TO_PREDICT, WANTED, CheckpointError, read_checkpoint


class Trained(NamedTuple):
    path: Path
    model: ShapesModel  # in evaluation mode
    settings: dict[str, Any]  # fields of Config
    error_px: Any  # val/error_px of these very weights, None if they were not validated


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """The network of a checkpoint, ready to predict on `device`."""
    content = read_checkpoint(path, TO_PREDICT)
    settings = content["hyper_parameters"]
    try:
        model = ShapesModel(**settings)
        model.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: its settings and weights do not fit this version: {reason}"
        ) from error
    published = content.get("callbacks", {}).get("Published", {})
    return Trained(Path(path), model.to(device).eval(), settings, published.get("error_px"))


def pick_device(name: str) -> torch.device:
    """The torch device of this name. ValueError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        known = re.match(r"(cuda|mps|xpu|cpu)(:\d+)?$", name)
        why = str(error).splitlines()[0].partition(". ")[0] if known else "no such device"
        why = "not available here" if isinstance(error, NotImplementedError) and known else why
        raise ValueError(f"--device {name}: {why}; expected auto, cpu, cuda, cuda:1 or mps") from None
    return torch.device(name)


def find_checkpoints(paths: Iterable[str | Path]) -> list[Path]:
    """The checkpoints that the paths name: files as they are, and of a folder the best one of each run in it.

    The best has the smallest val/norm, as the run's `last.ckpt` states; without one, that of the highest
    step is taken. CheckpointError for a path that is not there or a folder without checkpoints.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        folders = sorted({file.parent for file in path.rglob("*.ckpt")})
        if not folders:
            raise CheckpointError(f"{path}: no .ckpt file in this folder; {WANTED}")
        found += [_best(folder) for folder in folders]
    return found


def _best(folder: Path) -> Path:
    if (folder / "last.ckpt").is_file():
        callbacks = read_checkpoint(folder / "last.ckpt", TO_PREDICT).get("callbacks", {})
        norms = callbacks.get("Checkpoints", {}).get("best", {})
        for name, state in callbacks.items():
            if name.startswith("ModelCheckpoint"):  # of an earlier version, by path
                norms = {Path(path).name: norm for path, norm in state["best_k_models"].items()}
        for name in sorted(norms, key=norms.get):
            if (folder / name).is_file():
                return folder / name
    steps = {path: read_checkpoint(path, TO_PREDICT).get("global_step", 0) for path in folder.glob("*.ckpt")}
    return max(steps, key=steps.__getitem__)
