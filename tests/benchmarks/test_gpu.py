"""benchmarks.gpu: its parts at a tiny size on a CPU, and nothing lost when it is cut off."""

import sys
import time
from argparse import Namespace

import pytest
import torch

from benchmarks import gpu


def arguments(out, **more):
    return Namespace(**{"out": out, "size": "tiny", "device": "cpu", "resume": None, "data": None} | more)


def test_kernels_are_held_against_the_loops(capsys, monkeypatch):
    assert gpu.kernels("tiny", "cpu") == 0
    assert capsys.readouterr().out.count(": equal") == len(gpu.NETS) * len(gpu.PRECISIONS)
    before = gpu.step_of

    def spoiled(config, device, precision):
        loss, gradients = before(config, device, precision)
        if config.temporal_backend == "auto" and config.net == "li":
            gradients["net.classifier.0.weight"] = gradients["net.classifier.0.weight"] * 1.2
        return loss, gradients

    monkeypatch.setattr(gpu, "step_of", spoiled)
    assert gpu.kernels("tiny", "cpu") == len(gpu.PRECISIONS)
    assert "li, 32-true: DIFFERENT" in capsys.readouterr().out


def test_what_a_part_prints_is_kept_at_once_also_when_it_is_cut_off(tmp_path, capsys):
    record = gpu.Record(tmp_path / "out")
    code = "import time; print('a row', flush=True); time.sleep(30); print('never')"
    began = time.monotonic()
    assert not gpu.run(record, [sys.executable, "-c", code], 1)
    assert time.monotonic() - began < 10
    kept = (tmp_path / "out" / "gpu.md").read_text()
    assert "    a row\n" in kept and "cut off after 1 s" in kept and "never" not in kept
    assert gpu.run(record, [sys.executable, "-c", "print('whole')"], 20)
    assert not gpu.run(record, [sys.executable, "-c", "raise SystemExit(3)"], 20)
    kept = (tmp_path / "out" / "gpu.md").read_text()
    assert "    whole\n" in kept and "exit code 3, it printed nothing" in kept


def test_every_part_gets_its_share_and_training_the_rest(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "run", lambda record, words, seconds: calls.append((words, seconds)) or False)
    assert gpu.main(["--out", str(tmp_path), "--size", "tiny", "--device", "cpu", "--minutes", "9"]) == 0
    rendering, *parts, training = calls
    assert "generate_data" in rendering[0] and "learn_shapes" in training[0]
    assert any(word.startswith("--max_time=00:00:00:") for word in training[0])
    assert all(seconds <= max(gpu.SPEND.values()) for _, seconds in parts)
    text = (tmp_path / "gpu.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [*gpu.SPEND, "training"]


def test_the_newest_checkpoint_and_the_errors_are_kept(tmp_path):
    folder = tmp_path / "logs" / "run" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"x" * 1000)
    (tmp_path / "logs" / "run_data.csv").write_text("1,0.5,0\n2,0.4,0\n")
    gpu.keep(gpu.Record(tmp_path), tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == b"x" * 1000
    assert (tmp_path / "errors.csv").read_text().count("\n") == 2


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu.main(["--out", str(tmp_path / "out")])
    assert end.value.code == 2 and "torch sees no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
