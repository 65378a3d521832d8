"""The paper's network; it lives in nrf/network/model.py.

events -> K x 3 x [pool -> convolution -> neuron] -> max-pool -> mean over K -> read-out -> heat maps
"""

from nrf.network.model import (
    SpatialRF,
    SpatioTemporalChannel,
    SpatioTemporalModel,
    SpatioTemporalRF,
    TemporalRF,
)

__all__ = ["SpatialRF", "SpatioTemporalChannel", "SpatioTemporalModel", "SpatioTemporalRF", "TemporalRF"]
