"""Every hyper-parameter once: name, type, default (= the paper), help.

The parser, the run name, the log and `config_*.txt` all walk the fields of `Config`.  The choices of a
setting that names one of several things are the keys of a table, `NEURONS = table("net", {...})`, which is
where those things are: a row added to it is accepted everywhere.  Types, defaults and choices that differ
from the published program: FIDELITY 20-22.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

Rows = TypeVar("Rows", bound=Collection)  # a table, or the names alone
Value = TypeVar("Value")

MINIMUM = {
    **dict.fromkeys(("timesteps", "stack_frames", "batch_size", "n_classes"), 1),
    **dict.fromkeys(("n_spatial_scales", "n_temporal_scales", "n_angles", "n_ratios"), 1),
    **dict.fromkeys(("network_delay", "num_workers", "n_angles_grow", "lr", "weight_decay", "seed"), 0),
}  # smallest values, of fields that have one
# how a run is computed, not what
EXECUTION_ONLY = ("num_workers", "temporal_backend", "convolution", "checkpoint_activations", "compile")


TABLES: dict[str, Any] = {}  # by setting: the table, or the tuple of names, that it chooses from


def table(setting: str, rows: Rows) -> Rows:
    """`rows`, whose keys are this setting's choices from now on, including those that are added later."""
    TABLES[setting] = rows
    return rows


def check(setting: str, value: object) -> None:
    """ValueError, with the choices that exist, unless `value` is one of those of `setting`."""
    if value not in TABLES[setting]:
        raise ValueError(f"{setting} {value!r}: expected one of {', '.join(map(str, TABLES[setting]))}")


def pick(setting: str, value: object) -> Any:
    """The row `value` of a setting's table, which has to be there."""
    check(setting, value)
    return TABLES[setting][value]


def option(default: Value, help: str, from_data: bool = False) -> Value:
    """A field with its help.  from_data: on the command line the recordings give its default."""
    return field(default=default, metadata={"help": help, "from_data": from_data})


def flag(default: int, help: str) -> int:
    """A field that is 0 or 1."""
    return field(default=default, metadata={"help": help, "from_data": False, "choices": (0, 1)})


def result_affecting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes: runs are resumed and compared only where these agree."""
    kept = {name: value for name, value in settings.items() if name not in EXECUTION_ONLY}
    if settings.get("temporal_backend") == "norse":
        kept["temporal_backend"] = "norse"  # of lif with a gradient of its own (FIDELITY 5)
    return kept


@dataclass(frozen=True)
class Config:
    """One run. ValueError, naming the field and what was expected, for a value that no run can have."""

    # data
    timesteps: int = option(
        40, "time steps of 1 ms in the window trained on, and as many before it to warm up"
    )
    network_delay: int = option(1, "the network is asked for the position this many ms after its last input")
    stack_frames: int = option(1, "frames stacked as input channels, 2 polarities each")
    sum_frames: int = flag(0, "sum the stacked frames into 2 channels instead")
    resolution: tuple[int, int] = option(
        (300, 300), "height and width of the field in pixels", from_data=True
    )
    batch_size: int = option(8, "recordings per batch")
    dataset_filter: str | None = option(None, "take only files whose path matches this regular expression")
    num_workers: int = option(2, "processes that read data; 0: the main process reads")
    # network
    net: str = option("li", "neuron: leaky integrator, leaky integrate-and-fire, or ReLU")
    n_spatial_scales: int = option(4, "spatial scales of the receptive fields: variances 1, 2, 4, ...")
    n_temporal_scales: int = option(4, "temporal channels: time constants 5.5, 11, 22, 44, ... ms")
    n_angles: int = option(4, "directions of the receptive fields")
    n_ratios: int = option(3, "ratios of the receptive fields: 1, 1.22, 1.5, ...")
    n_angles_grow: int = option(0, "further directions for each further ratio")
    n_classes: int = option(3, "shapes to track", from_data=True)
    dropout: float = option(0.05, "probability to drop a cell of the heat maps")
    separate_spatial_channels: int = flag(0, "one channel per time constant and spatial scale")
    weight_sharing: int = flag(
        1, "share spatial weights between temporal channels, and the time constant within each"
    )
    skip_connections: int = flag(0, "add each convolution's output to its neurons'")
    batch_normalization: int = flag(0, "normalise each convolution's input, per time step")
    coordinate: str = option("dsntli", "heat map to position")
    rectification: str = option("softmax", "rectifier of the heat maps")
    receptive_fields: str = option("published", "family of receptive fields")
    train_receptive_fields: int = flag(
        0, "train deviations, angles and amplitudes of exact fields instead of every weight"
    )
    init_scheme_spatial: str = option("rf", "initial convolutions: receptive fields or uniform noise")
    init_scheme_temporal: str = option("rf", "initial time constants: logarithmic or uniform rates")
    temporal_backend: str = option(
        "auto",
        "scan over time: auto or fused (fast), loop (readable), norse (step by step)",
    )
    convolution: str = option("auto", "convolution: over frequencies, directly, or auto: whichever is faster")
    checkpoint_activations: int = flag(
        1, "large fields: compute the first layer again in the backward pass, the others channel by channel"
    )
    compile: int = flag(0, "compile batch normalisation with torch.compile; needs a C++ compiler on a CPU")
    # loss and optimisation
    regularization: str = option("js", "regulariser of the heat maps")
    regularization_scale: float = option(1e-4, "weight of that regulariser")
    regularization_activity_mean: float = option(0.05, "spikes per neuron and step that lif is drawn to")
    regularization_activity_scale: float = option(0.05, "weight of that pull")
    optimizer: str = option("adam", "optimiser")
    optimizer_split: int = flag(0, "give time constants their own learning rate, 1e-10 of lr")
    lr: float = option(5e-3, "learning rate")
    lr_step: str = option("step", "schedule: decay per epoch, cosine with warm restarts, none")
    lr_decay: float = option(0.95, "factor of the learning rate per epoch, for lr_step step")
    weight_decay: float = option(1e-6, "coupled weight decay")
    warmup: int = option(20, "accepted and unused, as published: the warm-up lasts --timesteps (FIDELITY 12)")
    seed: int = option(0, "seed of weights, dropout, data order and workers")

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            if setting.name in TABLES:
                check(setting.name, getattr(self, setting.name))
        for name, minimum in MINIMUM.items():
            if not getattr(self, name) >= minimum:  # NaN is refused too
                raise ValueError(f"{name} {getattr(self, name)}: expected at least {minimum}")
        start = self.receptive_fields, self.init_scheme_spatial
        if self.train_receptive_fields and start != ("exact", "rf"):
            raise ValueError(
                "train_receptive_fields 1: expected receptive_fields exact, init_scheme_spatial rf"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: expected 0 or more and below 1")

    @property
    def in_channels(self) -> int:
        return 2 if self.sum_frames else 2 * self.stack_frames


TABLES |= {f.name: f.metadata["choices"] for f in dataclasses.fields(Config) if "choices" in f.metadata}


def run_name(config: Config, data_root: str | PathLike) -> str:
    """The published name of a run and its folder of logs; not all settings are in it (FIDELITY 19)."""
    summed = "S" if config.sum_frames else ""
    return (
        f"{config.net}_{config.init_scheme_spatial}-{config.init_scheme_temporal}_{config.stack_frames}{summed}"
        f"_s{config.weight_sharing:b}_d{config.dropout:.2f}_n{config.batch_normalization:b}_({Path(data_root).name})"
    )
