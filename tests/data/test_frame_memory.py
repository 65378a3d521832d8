"""Memory of frames that are gone is used again, and of no others."""

import pickle
import weakref

import torch

from nrf.data import frame_memory

N = 1000
CPU = torch.device("cpu")


def zeros(n=N):
    frames = frame_memory.zeros(n, CPU)
    assert frames.shape == (n,) and frames.dtype == torch.uint8 and not frames.any()
    return frames.fill_(7)


def test_memory_of_frames_that_are_gone_is_used_again():
    frames = zeros()
    place = frames.data_ptr()
    del frames
    assert all(zeros().data_ptr() == place for _ in range(3))
    zeros(N + 1)
    assert set(frame_memory._kept) == {N + 1}  # no more than one is kept


def test_memory_is_left_alone_while_anything_shares_it():
    graph = torch.ones(4, requires_grad=True)
    keepers = [
        lambda frames: frames[3:],
        lambda frames: frames.view(10, 10, 10).transpose(0, 1)[2],
        lambda frames: frames.numpy(),
        lambda frames: frames.untyped_storage(),
        lambda frames: frames.detach(),
        lambda frames: torch.utils.dlpack.to_dlpack(frames),
        lambda frames: graph * frames[:4],  # for its gradient
    ]
    for keep in keepers:
        kept = keep(zeros())
        seen = weakref.ref(frame_memory._kept[N][1]())
        again = zeros()
        assert seen() is not None and frame_memory._kept[N][1]() is not seen()
        again.fill_(9)
        if isinstance(kept, torch.Tensor) and not kept.requires_grad:
            assert (kept == 7).all()
        del kept, again
        assert seen() is None
    assert pickle.loads(pickle.dumps(zeros())).sum() == 7 * N


def test_a_thread_in_between_gets_other_memory():
    zeros()
    between = []

    def gone():
        if not between:
            between.append(None)
            between[0] = zeros()  # as another thread would at this moment

    frame_memory._kept[N] = frame_memory._kept[N][0], gone
    assert not frame_memory.zeros(N, CPU).any() and (between[0] == 7).all()
