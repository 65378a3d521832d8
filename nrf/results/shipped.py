"""Trained networks to start from: weights and settings only, with a card that says what they are."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from nrf import __version__
from nrf.system.archive import save_whole
from nrf.system.markdown import markdown_table
from nrf.training.persistence import TO_PREDICT, read_checkpoint


def ship(checkpoint: Path, path: Path) -> None:
    """Write what predicting needs of a checkpoint to `path`: weights, settings, and the error when it was
    saved.

    `checkpoints.load_trained` reads it, as does torch.load(path, weights_only=True).
    """
    content = read_checkpoint(checkpoint, TO_PREDICT)
    kept = {name: content[name] for name in sorted(TO_PREDICT)}
    if error_px := content.get("callbacks", {}).get("Published", {}).get("error_px"):
        kept["callbacks"] = {"Published": {"error_px": error_px}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, kept)


def file_name(network: str) -> str:
    """Of a network, as it is shipped: li.ckpt, relu-mf.ckpt, ..."""
    return f"{network.lower()}.ckpt"


def card(
    rows: Sequence[Sequence[object]], rendering: str, training: Sequence[str], command: str, reduced: str
) -> str:
    """The model card, in Markdown.

    rows: (file, network, start, data set, seed, mean error in pixels) each.  rendering: words of
    generate_data.  training: words of learn_shapes, a line for each network.
    """
    table = markdown_table(["file", "network", "start", "data", "seed", "error, px"], rows)
    calls = [f"generate_data {rendering}", *(f"learn_shapes DATA LOGS {words}" for words in training)]
    parts = [
        "# Trained networks",
        "Each follows the shapes in its data set's recordings.  The error is the mean distance in pixels on "
        "the recordings not trained on.",
        table,
        f"Reduced: {reduced}" if reduced else "The paper's full size.",
        "## How they were made",
        f"`{command}` takes of each kind the seed with the smallest error; it renders and trains with",
        "```sh\n" + "\n".join(f"python3 -m nrf {line}" for line in calls) + "\n```",
        f"nrf {__version__}, torch {torch.__version__}, {platform.machine()} {platform.system()}.",
    ]
    return "\n\n".join(parts) + "\n"
