"""What trains a network: optimisers and schedules by name, Lightning's Trainer, and processes that agree."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.optim import lr_scheduler

from nrf.config import Config, table
from nrf.system import slurm
from nrf.training.persistence import RunLogger, WholeFiles
from nrf.training.stopping import Checkpoints, Stop

TEMPORAL_LR_FACTOR = 1e-10  # of lr, for time constants under --optimizer_split 1, as published
OPTIMIZERS = table(
    "optimizer",
    {
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    },
)
SCHEDULERS = table(
    "lr_step",
    {
        "step": lambda optimizer, config: lr_scheduler.ExponentialLR(optimizer, config.lr_decay),
        "ca": lambda optimizer, config: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50, 2),
        "none": None,
    },
)


def optimizers(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: Config
) -> tuple[list[torch.optim.Optimizer], list]:
    """Lists of the optimizer of these parameters, and of its schedule, if any."""
    spatial: list[torch.nn.Parameter] = []
    temporal: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        (temporal if name.endswith("tau_mem_inv") else spatial).append(parameter)
    groups: list[dict[str, Any]] = [{"params": spatial + temporal}]
    if config.optimizer_split and temporal:
        groups = [{"params": spatial}, {"params": temporal, "lr": config.lr * TEMPORAL_LR_FACTOR}]
    # time constants may alias one memory cell (FIDELITY 14): update parameter by parameter
    optimizer = OPTIMIZERS[config.optimizer](
        groups, lr=config.lr, weight_decay=config.weight_decay, foreach=False
    )
    schedule = SCHEDULERS[config.lr_step]
    return [optimizer], [schedule(optimizer, config)] if schedule else []


def writes(flags: dict[str, Any]) -> bool:
    """Whether a run of these flags leaves anything behind."""
    return not (flags["fast_dev_run"] or flags["barebones"])


def listed(value: Any) -> list:
    """One, several or none of what a flag takes, as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def build_trainer(flags: dict[str, Any], logger: RunLogger, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer with our logger and callbacks before the flags' own; the strategy dp, gone from it,
    becomes ddp.  ValueError for flags that do not go together."""
    if str(flags["strategy"]).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise ValueError(
            f"--strategy {flags['strategy']}: its processes cannot hand back what they trained; expected ddp"
        )
    if flags["strategy"] == "dp":
        flags["strategy"] = "auto" if str(flags["devices"]) in ("1", "auto") else "ddp"
        notice = f"--strategy=dp is gone from Lightning 2: taking {flags['strategy']}"
        rank_zero_only(print)(notice, file=sys.stderr)
    if flags["accumulate_grad_batches"] < 1:
        raise ValueError(f"--accumulate_grad_batches {flags['accumulate_grad_batches']}: expected 1 or more")
    if flags["sync_batchnorm"]:
        raise ValueError("--sync_batchnorm: batch normalisation here is per time step, and per process")
    flags["use_distributed_sampler"] = False  # loaders share out their items themselves
    callbacks = [Stop(flags.pop("max_time")), *callbacks]
    own = [logger, *listed(flags.pop("logger"))]
    loggers = own if writes(flags) else False
    if flags["enable_checkpointing"] is not False and writes(flags):
        callbacks.append(Checkpoints())
    callbacks += listed(flags.pop("callbacks"))
    if torch.cuda.is_available() and flags["enable_progress_bar"] is not False and not flags["barebones"]:
        callbacks.append(TQDMProgressBar(flags["log_every_n_steps"] or 50))  # each refresh waits for the GPU
    flags["plugins"] = [*listed(flags["plugins"]), WholeFiles()]
    # sweep.sh requeues, and nothing else does; the only task of a job starts its processes itself
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        environment = SLURMEnvironment(auto_requeue=False) if slurm.srun() else LightningEnvironment()
        flags["plugins"].append(environment)
    try:
        trainer = pl.Trainer(**flags, logger=loggers, callbacks=callbacks)
    except (MisconfigurationException, OSError, ValueError):  # say what is wrong themselves
        raise
    except Exception as error:  # noqa: BLE001  odd values of its flags make it raise anything
        raise ValueError(f"Lightning's Trainer: {type(error).__name__}: {error}") from error
    # a batch's only floats are labels, which --precision 16-true shall not round
    trainer.precision_plugin.convert_input = lambda data: data
    return trainer


def first_decides(trainer: pl.Trainer, decide: Callable[[], Any]) -> Any:
    """What decide() returns in the first process, in all that train together, which meet here.

    An error is raised there and ends the others without a word: they would only repeat it.
    """
    strategy, error, decision = trainer.strategy, None, None
    if isinstance(strategy.launcher, _SubprocessScriptLauncher):
        strategy.launcher.launch(strategy.setup_environment)  # and `fit` finds all done
    if trainer.is_global_zero:
        try:
            decision = decide()
        except (OSError, RuntimeError, ValueError) as raised:
            error = raised
    failed, decision = strategy.broadcast((error is not None, decision))
    if error is not None:
        raise error
    if failed:
        raise SystemExit
    return decision
