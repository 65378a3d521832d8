"""Recordings and batches; they live in nrf/data/dataset.py.

N.dat = torch.save([events, labels]):  events sparse (T, 2, H, W),  labels (T, N, 2) in pixels
"""

from nrf.data.dataset import EventBatch, ShapeDataset, loader
from nrf.data.recordings import read_recording, write_recording

__all__ = ["EventBatch", "ShapeDataset", "loader", "read_recording", "write_recording"]
