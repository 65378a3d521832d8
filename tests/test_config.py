"""Settings: what is refused and how it is said, the published names, the command line's one line of error."""

import dataclasses
import re
from pathlib import Path

import pytest

from nrf.commands.config_files import read_config_lines
from nrf.commands.parser import CommandLine, add_settings, zero_or_one
from nrf.config import TABLES, Config, result_affecting, run_name

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {setting.name: setting for setting in dataclasses.fields(Config)}
CHOICES = {name: tuple(rows) for name, rows in TABLES.items()}


@pytest.fixture
def parser():
    parser = CommandLine(prog="learn")
    add_settings(parser)
    return parser


def parse(parser, *words):
    """The settings of a command line as a Config; those the data give are left out."""
    given = vars(parser.parse_args(list(words)))
    return Config(**{name: value for name, value in given.items() if value is not None})


def refusal(parser, capsys, *words):
    """The line on stderr with which the parser ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(list(words))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("learn: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("net", "backends", "same"),
    [("lif", ("auto", "loop"), True), ("lif", ("fused", "norse"), False), ("li", ("fused", "loop"), True)],
)
def test_a_run_resumes_with_another_backend_if_its_gradients_are_the_same(net, backends, same):
    one, other = (
        result_affecting(dataclasses.asdict(Config(net=net, temporal_backend=backend, num_workers=n)))
        for n, backend in enumerate(backends)
    )
    assert (one == other) is same and one != result_affecting(dataclasses.asdict(Config(net=net, lr=0.5)))


def test_defaults_are_the_paper():
    config = Config()
    assert (config.net, config.coordinate, config.regularization, config.rectification) == (
        "li",
        "dsntli",
        "js",
        "softmax",
    )
    counts = config.n_spatial_scales, config.n_temporal_scales, config.n_angles, config.n_ratios
    assert counts == (4, 4, 4, 3)
    assert (config.init_scheme_spatial, config.init_scheme_temporal) == ("rf", "rf")
    assert (config.timesteps, config.network_delay, config.batch_size) == (40, 1, 8)
    assert (config.lr, config.lr_decay, config.weight_decay, config.dropout) == (5e-3, 0.95, 1e-6, 0.05)
    assert config.regularization_scale == 1e-4
    assert (config.weight_sharing, config.batch_normalization, config.skip_connections) == (1, 0, 0)
    assert config.resolution == (300, 300)


def test_settings_cannot_change_behind_the_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0


EXACT = {"receptive_fields": "exact"}
NEEDS = {"train_receptive_fields": EXACT}  # what some settings go with


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_out_of_its_choices_is_refused_with_all_of_them(name):
    for choice in CHOICES[name]:
        assert getattr(Config(**{name: choice} | NEEDS.get(name, {})), name) == choice
    wanted = ", ".join(map(str, CHOICES[name]))
    with pytest.raises(ValueError, match=re.escape(f"{name} 'other': expected one of {wanted}")):
        Config(**{name: "other"})


@pytest.mark.parametrize(
    "name, value, least",
    [
        ("timesteps", 0, 1),
        ("stack_frames", 0, 1),
        ("batch_size", 0, 1),
        ("n_classes", 0, 1),
        ("n_spatial_scales", 0, 1),
        ("n_temporal_scales", 0, 1),
        ("n_angles", 0, 1),
        ("n_ratios", 0, 1),
        ("n_angles_grow", -1, 0),
        ("network_delay", -1, 0),
        ("num_workers", -1, 0),
        ("lr", -0.1, 0),
        ("lr", float("nan"), 0),
        ("weight_decay", -1e-9, 0),
    ],
)
def test_a_value_below_its_least_is_refused(name, value, least):
    with pytest.raises(ValueError, match=re.escape(f"{name} {value}: expected at least {least}")):
        Config(**{name: value})
    assert getattr(Config(**{name: least}), name) == least


@pytest.mark.parametrize(
    "settings", [{}, {"receptive_fields": "norse-1.1.0"}, {**EXACT, "init_scheme_spatial": "uniform"}]
)
def test_only_exact_fields_train_as_fields(settings):
    with pytest.raises(
        ValueError, match="train_receptive_fields 1: expected receptive_fields exact, init_sch"
    ):
        Config(train_receptive_fields=1, **settings)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_probability_below_one(dropout):
    with pytest.raises(ValueError, match="dropout .*: expected 0 or more and below 1"):
        Config(dropout=dropout)
    assert Config(dropout=0.0).dropout == 0


def test_input_channels_are_two_polarities_a_frame_unless_summed():
    assert Config().in_channels == 2
    assert Config(stack_frames=8).in_channels == 16
    assert Config(stack_frames=8, sum_frames=1).in_channels == 2


def test_run_name_is_the_published_one():
    assert run_name(Config(), "data/spatial") == "li_rf-rf_1_s1_d0.05_n0_(spatial)"
    config = Config(
        net="lif",
        init_scheme_spatial="uniform",
        init_scheme_temporal="uniform",
        stack_frames=8,
        sum_frames=1,
        weight_sharing=0,
        dropout=0.0,
        batch_normalization=1,
    )
    assert run_name(config, Path("temporal") / "") == "lif_uniform-uniform_8S_s0_d0.00_n1_(temporal)"


def test_config_lines_are_words_without_comments(tmp_path):
    file = tmp_path / "runs.txt"
    file.write_text("--net=li --lr 0.1\n\n# a comment\n  --dataset_filter='v0.2 .*'  # two words in one\n")
    assert read_config_lines(file) == [["--net=li", "--lr", "0.1"], ["--dataset_filter=v0.2 .*"]]
    file.write_text("--net=li\n--dataset_filter='open\n")
    with pytest.raises(ValueError, match=r"runs\.txt, line 2: .*; expected flags of learn_shapes\.py"):
        read_config_lines(file)


@pytest.mark.parametrize("name, nets", [("config_ann.txt", {"ann"}), ("config_snn.txt", {"li", "lif"})])
def test_the_papers_runs_are_sixteen_different_ones(parser, name, nets):
    known = {f"--{field}" for field in FIELDS}
    configs = []
    for words in read_config_lines(ROOT / name):
        own = [word for word in words if word.split("=")[0] in known]  # the rest are the Trainer's
        configs.append(parse(parser, *own))
    assert len(set(configs)) == len(configs) == 16
    assert {config.net for config in configs} == nets
    assert {config.init_scheme_spatial for config in configs} == {"rf", "uniform"}
    for option in ("weight_sharing", "batch_normalization"):
        assert sum(getattr(config, option) for config in configs) == 8


# --- the command line ---


def test_no_flags_are_the_defaults(parser):
    assert parse(parser) == Config()


def test_every_setting_is_a_flag_with_its_type(parser):
    for name, setting in FIELDS.items():
        assert setting.metadata["help"]
        value = (64, 48) if name == "resolution" else (CHOICES.get(name) or [setting.default])[0]
        value = "v0.2" if value is None else value
        words = [str(v) for v in value] if name == "resolution" else [str(value)]
        read = getattr(parser.parse_args([f"--{name}", *words]), name)
        assert (tuple(read) if name == "resolution" else read) == value
        assert type(read) is (list if name == "resolution" else type(value))


@pytest.mark.parametrize("text, value", [("0", 0), ("1", 1), ("False", 0), ("true", 1)])
def test_flags_of_zero_and_one(parser, text, value):
    assert zero_or_one(text) == value
    assert parse(parser, f"--weight_sharing={text}").weight_sharing == value


@pytest.mark.parametrize("text", ["2", "yes", "", "0.0", "-1"])
def test_flags_that_are_neither(parser, capsys, text):
    with pytest.raises(ValueError):
        zero_or_one(text)
    line = refusal(parser, capsys, f"--sum_frames={text}")
    assert "--sum_frames" in line and "expected 0 or 1" in line


def test_unknown_flags_are_told_what_is_near(parser, capsys):
    assert "unknown flag --n_angels=4; did you mean --n_angles?" in refusal(parser, capsys, "--n_angels=4")


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--net=gru"], ["--net", "gru", "lif", "li", "ann"]),
        (["--lr=fast"], ["--lr", "expected float", "fast"]),
        (["--timesteps=2.5"], ["--timesteps", "expected int", "2.5"]),
        (["--resolution", "64"], ["--resolution"]),
    ],
)
def test_bad_values_are_told_what_was_expected(parser, capsys, words, wanted):
    line = refusal(parser, capsys, *words)
    assert all(part in line for part in wanted), line
