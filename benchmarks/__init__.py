"""Measurements of the whole program and its parts:  python3 -m benchmarks.NAME."""

import nrf.__main__  # noqa: F401  before torch: threads wait here as they do in its commands
