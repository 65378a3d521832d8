"""Train the paper's network:  python3 learn_shapes.py DATA LOGS [flags].

    recordings -> nrf/training/run.py -> LOGS/<run>/version_k/checkpoints, TensorBoard, LOGS/<run>_<data>.csv

The command lives in nrf/commands/learn_shapes.py, the Lightning module in nrf/training/module.py.
"""

from nrf.__main__ import leave
from nrf.commands.learn_shapes import main
from nrf.training.module import ShapesModel

__all__ = ["ShapesModel", "main"]

if __name__ == "__main__":
    leave(main)
