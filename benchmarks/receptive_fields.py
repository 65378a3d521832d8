"""Building the paper's bank, 144 kernels of 9, 7 and 5 pixels: the exact family against the published one.

python3 -m benchmarks.receptive_fields

Both are sums over the same rows; they are not the same kernels, which is the point: what is asserted is that
the exact ones answer constants by 0 or 1 and the published ones are Norse's.  One thread.
"""

import torch
from norse.torch.functional.receptive_field import spatial_receptive_fields_with_derivatives

from benchmarks.paired import machine_line, paired
from nrf.theory.receptive_fields import DOMAIN, KERNEL_SIZES, spatial_kernels, spatial_parameters


def bank(family):
    rows = spatial_parameters(family=family)
    return [spatial_kernels(rows, size, family) for size in KERNEL_SIZES]


def norse_bank():
    rows = spatial_parameters(family="norse-1.1.0")
    return [spatial_receptive_fields_with_derivatives(rows, size, DOMAIN) for size in KERNEL_SIZES]


def main():
    torch.set_num_threads(1)
    print(machine_line(kernels=144, sizes=KERNEL_SIZES))
    for kernels in bank("exact"):
        sums = kernels.double().sum((1, 2))
        assert torch.minimum((sums - 1).abs(), sums.abs()).max() < 1e-6
    for ours, theirs in zip(bank("norse-1.1.0"), norse_bank(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    paired(
        "the exact bank, against building the published one",
        lambda: bank("exact"),
        lambda: bank("published"),
        15,
    )
    paired(
        "Norse 1.1.0's bank (192 kernels), against Norse",
        lambda: bank("norse-1.1.0"),
        norse_bank,
        5,
    )


if __name__ == "__main__":
    main()
