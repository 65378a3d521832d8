"""Every hyper-parameter once: name, type, default (= the paper), help.

The parser, the run name, the log and `config_*.txt` all walk the fields of `Config`.  Types, defaults and
choices that differ from the published program: FIDELITY 20-22.
"""

import argparse
import dataclasses
import difflib
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import jsonargparse
import shtab

LEAST = {
    **dict.fromkeys(("timesteps", "stack_frames", "batch_size", "n_classes"), 1),
    **dict.fromkeys(("n_spatial_scales", "n_temporal_scales", "n_angles", "n_ratios"), 1),
    **dict.fromkeys(("network_delay", "num_workers", "n_angles_grow", "lr", "weight_decay", "seed"), 0),
}  # smallest values, of fields that have one
# how a run is computed, not what
FREE = ("num_workers", "temporal_backend", "convolution", "checkpoint_activations", "compile")


def option(default, help, choices=None, from_data=False):
    """A field with its help and, where they are fewer than its type allows, its choices.

    from_data: on the command line the recordings give its default.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "from_data": from_data})


def flag(default, help):
    """A field that is 0 or 1."""
    return option(default, help, choices=(0, 1))


def zero_or_one(text):
    """0 or 1, also written False or True; ValueError for anything else."""
    values = {"0": 0, "1": 1, "false": 0, "true": 1}
    if str(text).lower() not in values:
        raise ValueError
    return values[str(text).lower()]


def decisive(settings):
    """The settings that decide what a run computes: a run goes on, and is compared, with these the same."""
    kept = {name: value for name, value in settings.items() if name not in FREE}
    if settings.get("net") == "lif" and settings.get("temporal_backend") == "norse":
        kept["temporal_backend"] = "norse"  # with a gradient of its own (FIDELITY 5)
    return kept


@dataclass(frozen=True)
class Config:
    """One run. ValueError, naming the field and what was wanted, for a value that no run can have."""

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
    net: str = option(
        "li", "neuron: leaky integrator, leaky integrate-and-fire, or ReLU", ("lif", "li", "ann")
    )
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
    coordinate: str = option("dsntli", "heat map to position", ("dsnt", "dsntli", "pixel"))
    rectification: str = option("softmax", "rectifier of the heat maps", ("softmax", "relu", "id", "sigmoid"))
    receptive_fields: str = option(
        "published", "family of receptive fields", ("published", "norse-1.1.0", "exact")
    )
    train_receptive_fields: int = flag(
        0, "train deviations, angles and amplitudes of exact fields instead of every weight"
    )
    init_scheme_spatial: str = option(
        "rf", "initial convolutions: receptive fields or uniform noise", ("rf", "uniform")
    )
    init_scheme_temporal: str = option(
        "rf", "initial time constants: logarithmic or uniform rates", ("rf", "uniform")
    )
    temporal_backend: str = option(
        "auto",
        "scan over time: auto or fused (fast), loop (readable), norse (step by step)",
        ("auto", "fused", "loop", "norse"),
    )
    convolution: str = option(
        "auto",
        "convolution: over frequencies, directly, or auto: whichever is faster",
        ("auto", "direct", "spectral"),
    )
    checkpoint_activations: int = flag(
        1, "large fields: compute the first layer again in the backward pass, the others channel by channel"
    )
    compile: int = flag(0, "compile batch normalisation with torch.compile; needs a C++ compiler on a CPU")
    # loss and optimisation
    regularization: str = option("js", "regulariser of the heat maps", ("none", "js", "kl", "var"))
    regularization_scale: float = option(1e-4, "weight of that regulariser")
    regularization_activity_mean: float = option(0.05, "spikes per neuron and step that lif is drawn to")
    regularization_activity_scale: float = option(0.05, "weight of that pull")
    optimizer: str = option("adam", "optimiser", ("adagrad", "adam", "rmsprop", "sgd"))
    optimizer_split: int = flag(0, "give time constants their own learning rate, 1e-10 of lr")
    lr: float = option(5e-3, "learning rate")
    lr_step: str = option(
        "step", "schedule: decay per epoch, cosine with warm restarts, none", ("step", "ca", "none")
    )
    lr_decay: float = option(0.95, "factor of the learning rate per epoch, for lr_step step")
    weight_decay: float = option(1e-6, "coupled weight decay")
    warmup: int = option(20, "accepted and unused, as published: the warm-up lasts --timesteps (FIDELITY 12)")
    seed: int = option(0, "seed of weights, dropout, data order and workers")

    def __post_init__(self):
        for name, choices in ((f.name, f.metadata["choices"]) for f in dataclasses.fields(self)):
            if choices and getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} {getattr(self, name)!r}: want one of {', '.join(map(str, choices))}"
                )
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:  # NaN is refused too
                raise ValueError(f"{name} {getattr(self, name)}: want at least {least}")
        start = self.receptive_fields, self.init_scheme_spatial
        if self.train_receptive_fields and start != ("exact", "rf"):
            raise ValueError("train_receptive_fields 1: want receptive_fields exact, init_scheme_spatial rf")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: want 0 or more and below 1")

    @property
    def in_channels(self):
        return 2 if self.sum_frames else 2 * self.stack_frames


def run_name(config, data_root):
    """The published name of a run and its folder of logs; not all settings are in it (FIDELITY 19)."""
    summed = "S" if config.sum_frames else ""
    return (
        f"{config.net}_{config.init_scheme_spatial}-{config.init_scheme_temporal}_{config.stack_frames}{summed}"
        f"_s{config.weight_sharing:b}_d{config.dropout:.2f}_n{config.batch_normalization:b}_({Path(data_root).name})"
    )


def config_lines(path):
    """What a `config_*.txt` holds, line by line: (number in the file, command-line words, problem).

    Blank lines and # comments are passed over.  The words are data: no shell reads them.  problem: in words
    where a line's quotes do not close, else None.  ValueError for a file that is no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text ({error}); want flags, a run a line") from None
    for number, line in enumerate(lines, start=1):
        try:
            words, problem = shlex.split(line, comments=True), None
        except ValueError as error:
            words, problem = [], f"{error}; want flags of learn_shapes.py"
        if "\0" in line:
            words, problem = [], "a NUL character; want flags of learn_shapes.py"
        if words or problem:
            yield number, words, problem


def read_config_lines(path):
    """The runs of a `config_*.txt`: a list of words each.  ValueError naming file and line for a bad one."""
    runs = []
    for number, words, problem in config_lines(path):
        if problem:
            raise ValueError(f"{path}, line {number}: {problem}")
        runs.append(words)
    return runs


def version():
    """This project's version, as pyproject.toml beside this file states it; unknown without that."""
    path = Path(__file__).with_name("pyproject.toml")
    return re.search(r'^version = "(.+)"$', path.read_text(), re.MULTILINE)[1] if path.exists() else "unknown"


class Help(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Short names of values, the default behind each flag, indented lines of a description as they are."""

    def _fill_text(self, text, width, indent):
        parts = text.strip().split("\n\n")
        return "\n\n".join(part if part[0] == " " else textwrap.fill(part, width) for part in parts)

    def _get_default_metavar_for_optional(self, action):
        return action.dest.rsplit("_", 1)[-1].upper()

    def _get_help_string(self, action):
        text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|``", r"\1", action.help or "")  # Lightning's marks
        default, unsaid = action.default, (None, argparse.SUPPRESS, "==SUPPRESS==")
        if not action.option_strings or "default:" in text.lower() or default is False or default in unsaid:
            return text
        default = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {default})"


class CommandLine(jsonargparse.ArgumentParser):
    """What all commands have in common: --help in one style, --version, --print-completion, and errors in one
    line (what, and what was wanted) with exit code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"formatter_class": Help, "version": version()} | kwargs)
        shtab.add_argument_to(self, help="print what completes this command's flags in a shell")
        self._option_string_actions["--print-completion"].default = argparse.SUPPRESS  # no flag of a run

    def error(self, message, ex=None):
        text = " ".join(str(message).split())
        text = re.sub(r'Parser key "(\S+)":', r"--\1:", text).replace("argument --", "--")
        text = text.replace("invalid zero_or_one value:", "want 0 or 1, not")
        if wanted := re.findall(r"Expected an? <class '(\w+)'>", text):
            value = re.search(r"(?:Got|Given) value: (.*)$", text)
            flag = text.split(":")[0]
            text = f"{flag}: want {' or '.join(dict.fromkeys(wanted))}, not {value[1] if value else 'this'}"
        if unknown := re.match(r"[Uu]nrecognized arguments: (\S+)", text):
            near = difflib.get_close_matches(unknown[1].split("=")[0], self._option_string_actions, 1)
            text = f"unknown flag {unknown[1]}; " + (f"did you mean {near[0]}?" if near else "see --help")
        print(f"{self.prog}: {text}", file=sys.stderr)
        raise SystemExit(2)


def add_settings(parser):
    """A flag for every field of `Config`."""
    for setting in dataclasses.fields(Config):
        meta = setting.metadata
        kwargs = {"type": setting.type, "default": setting.default, "help": meta["help"]}
        if setting.type == tuple[int, int]:
            kwargs.update(type=int, nargs=2, metavar=("H", "W"))
        if meta["from_data"]:
            kwargs.update(default=None, help=f"{meta['help']} (default: as in the recordings)")
        if meta["choices"] == (0, 1):
            kwargs.update(type=zero_or_one, metavar="{0,1}")
        elif meta["choices"]:
            kwargs.update(choices=meta["choices"])
        parser.add_argument(f"--{setting.name}", **kwargs)
