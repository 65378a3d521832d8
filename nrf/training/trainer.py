"""What trains a network: optimisers and schedules by name, Lightning's Trainer, and processes that agree."""

import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.optim import lr_scheduler

from nrf.config import table
from nrf.system import slurm
from nrf.training.persistence import WholeFiles

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


def optimizers(named_parameters, config):
    """Lists of the optimizer of these parameters, and of its schedule, if any."""
    groups = {"spatial": [], "temporal": []}
    for name, parameter in named_parameters:
        groups["temporal" if name.endswith("tau_mem_inv") else "spatial"].append(parameter)
    spatial, temporal = groups.values()
    groups = [{"params": spatial + temporal}]
    if config.optimizer_split and temporal:
        groups = [{"params": spatial}, {"params": temporal, "lr": config.lr * TEMPORAL_LR_FACTOR}]
    # time constants may alias one memory cell (FIDELITY 14): update parameter by parameter
    optimizer = OPTIMIZERS[config.optimizer](
        groups, lr=config.lr, weight_decay=config.weight_decay, foreach=False
    )
    schedule = SCHEDULERS[config.lr_step]
    return [optimizer], [schedule(optimizer, config)] if schedule else []


def build_trainer(flags, logger, callbacks):
    """Lightning's Trainer with our logger and callbacks; the strategy dp, gone from it, becomes ddp."""
    if flags["strategy"] == "dp":
        flags["strategy"] = "auto" if str(flags["devices"]) in ("1", "auto") else "ddp"
        notice = f"--strategy=dp is gone from Lightning 2: taking {flags['strategy']}"
        rank_zero_only(print)(notice, file=sys.stderr)
    if flags["sync_batchnorm"]:
        raise ValueError("--sync_batchnorm: batch normalisation here is per time step, and per process")
    flags["use_distributed_sampler"] = False  # loaders share out their items themselves
    if flags["enable_checkpointing"] is not False:
        best = ModelCheckpoint(
            monitor="val/norm",
            save_top_k=5,
            save_last=True,
            filename="{epoch}-{step}",
            enable_version_counter=False,
        )
        callbacks.append(best)
    if torch.cuda.is_available() and flags["enable_progress_bar"] is not False:
        callbacks.append(TQDMProgressBar(flags["log_every_n_steps"] or 50))  # each refresh waits for the GPU
    plugins = [flags["plugins"]] if isinstance(flags["plugins"], str) else flags["plugins"] or []
    flags["plugins"] = [*plugins, WholeFiles()]
    # sweep.sh requeues, and nothing else does; the only task of a job starts its processes itself
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        environment = SLURMEnvironment(auto_requeue=False) if slurm.srun() else LightningEnvironment()
        flags["plugins"].append(environment)
    trainer = pl.Trainer(**flags, logger=logger, callbacks=callbacks)
    # a batch's only floats are labels, which --precision 16-true shall not round
    trainer.precision_plugin.convert_input = lambda batch: batch
    return trainer


def first_decides(trainer, decide):
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
