"""Blocks of work shared among threads."""

import threading

import pytest
import torch

import blocks


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 14, 15, 100])
def test_spans_cover_everything_once_in_pieces_that_fit(monkeypatch, two_threads, n):
    monkeypatch.setattr(blocks, "SIZE", 7)
    spans = blocks.spans(n)
    assert [i for start, end in spans for i in range(start, end)] == list(range(n))
    assert all(end - start <= 7 for start, end in spans)
    assert len(spans) >= min(n, 2)  # work for both


def test_both_threads_work_at_once(two_threads):
    meeting = threading.Barrier(2, timeout=60)
    names = []
    blocks.each(lambda i: (meeting.wait(), names.append(threading.current_thread().name)), [(0,), (1,)])
    assert len(set(names)) == 2


@pytest.mark.parametrize("inference", [False, True])
def test_every_block_is_worked_on_without_gradients_and_in_the_callers_mode(two_threads, inference):
    seen = []
    with torch.inference_mode(inference):
        blocks.each(
            lambda i: seen.append((i, torch.is_grad_enabled(), torch.is_inference_mode_enabled())),
            [(i,) for i in range(20)],
        )
    assert sorted(seen) == [(i, False, inference) for i in range(20)]


def test_a_failure_in_any_thread_is_the_callers(two_threads):
    meeting = threading.Barrier(2, timeout=60)

    def fail(i):
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("of the other thread")

    with pytest.raises(ValueError, match="of the other thread"):
        blocks.each(fail, [(0,), (1,)])
