"""All commands: one style of help, one version, errors in one line, flags that a shell completes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrf import __version__
from nrf.__main__ import COMMANDS, main
from nrf.commands import sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=sorted(COMMANDS.keys() - {"sweep"}))
def command(request, capsys):
    """run(*words): exit code, standard output and standard error of a command."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main([request.param, *words])
        return end.value.code, *capsys.readouterr()

    run.name = "learn_shapes.py" if request.param == "learn_shapes" else f"nrf {request.param}"
    return run


def test_version_is_that_of_the_project(command):
    assert command("--version") == (0, f"{command.name} {__version__}\n", "")


def test_the_sweep_has_the_same_version(capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"sweep.sh {__version__}\n")


def test_help_is_of_one_style(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, text, _ = command("--help")
    assert code == 0 and text.startswith(f"usage: {command.name} ")
    assert "\noptions:\n" in text and "--version" in text and "--print-completion" in text
    for noise in ("<function", "<class", "(type:", ":paramref:", "``", "==SUPPRESS=="):
        assert noise not in text
    about = text.split("\n\n")[1]
    assert about[0].isupper() and len(max(text.splitlines(), key=len)) <= 120


def test_an_unknown_flag_is_told_in_one_line(command):
    code, out, err = command("a", "b", "--no_such_flag", "1")
    assert (code, out) == (2, "")
    assert err.startswith(f"{command.name}: ") and err.count("\n") == 1 and len(err) < 200


def test_bash_completes_flags_and_choices(tmp_path):
    bash = shutil.which("bash") or pytest.skip("needs bash")
    script = f"""cd {tmp_path}
source {ROOT}/completion.bash
complete_ () {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nrf_complete; echo "${{COMPREPLY[*]}}"; }}
complete_ {sys.executable} -m nrf cov
complete_ {sys.executable} -m nrf generate_data 5 out --sca
complete_ {sys.executable} -m nrf generate_data 5 out --generator g
complete_ {sys.executable} {ROOT}/learn_shapes.py data logs --lr_d
complete_ {sys.executable} {ROOT}/no_command.py 5 out --sca
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert (
        done.stdout.splitlines() == ["covariance", "--scales", "gerd-0.5.1", "--lr_decay", ""]
        and done.stderr == ""
    )
