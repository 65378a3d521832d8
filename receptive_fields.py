"""The banks of receptive fields; they live in nrf/theory/receptive_fields.py.

Gaussian of covariance variance * R(angle) diag(ratio^2, ratio^-2) R(angle)^T, derived (dx, dy) times
"""

from nrf.theory.receptive_fields import spatial_kernels, spatial_parameters, temporal_rates_hz

__all__ = ["spatial_kernels", "spatial_parameters", "temporal_rates_hz"]
