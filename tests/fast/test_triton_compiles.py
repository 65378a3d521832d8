"""The Triton kernels compile for a GPU, without one; the interpreter lets pass what the compiler does not.

What is compiled tells more: that multiplications and additions stay apart, as in the loops, and that kernels
move several numbers at a time.
"""

import itertools

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton does not come with torch on this platform")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nrf.fast import pooling_triton, scan_triton  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
SCANS = {"_integrate": 2, "_integrate_backward": 4, "_fire": 2, "_fire_backward": 10}  # loads of cells
POOLS = {"_pool": (0, 1, 2), "_pool_backward": (0, 1, 2)}  # of which nets
GIVEN = ("REST", "SKIP", "POOLED", "LAST", "EACH", "TO_REST")
ONES = ("T", "K", "groups", "B", "C")  # Triton compiles sizes of 1 on their own


def compiled(module, kernel, types=None, divisible=(), **constants):
    """Its PTX.  types: of arguments, others are int32 or pointers to float32; divisible: those that 16
    divides, which Triton finds out as well."""
    kernel = getattr(module, kernel)
    constants |= {name: getattr(module, name, None) for name in ("BLOCK", "SEGMENT")}
    constants, types = (
        {name: value for name, value in given.items() if name in kernel.arg_names}
        for given in (constants, types or {})
    )
    found = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    found |= {"v_th": "fp32", "alpha": "fp32", "above_ptr": "*i32"} if module is pooling_triton else {}
    found |= types | dict.fromkeys(constants, "constexpr")
    signature = {name: found.get(name, "i32") for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in divisible or (divisible and name.endswith("_ptr"))
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=HOPPER, options=module.OPTIONS).asm
    assert result["cubin"]
    return result["ptx"]


@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("kernel", SCANS)
def test_scans(kernel, per_cell):
    pointers = [name for name in getattr(scan_triton, kernel).arg_names if name.endswith("_ptr")]
    double = dict.fromkeys(pointers, "*fp64")
    for types in ({}, {"n": "i64"}, {"x_ptr": "*bf16"}):
        assert "fma" not in compiled(scan_triton, kernel, types, PER_CELL=per_cell)
    for types, ones in ((double, ()), ({}, ONES)):
        assert compiled(scan_triton, kernel, types, **dict.fromkeys(ones, 1), PER_CELL=per_cell)


@pytest.mark.parametrize("kernel", SCANS)
def test_scans_move_16_bytes_at_a_time(kernel):
    ptx = compiled(scan_triton, kernel, divisible=("n",), PER_CELL=False)
    assert ptx.count("ld.global.v4") == SCANS[kernel]
    assert "st.global.v4" in ptx and ptx.count("st.global") == ptx.count("st.global.v4")


@pytest.mark.parametrize("kernel, net", [(kernel, net) for kernel, nets in POOLS.items() for net in nets])
def test_neurons_and_pooling(kernel, net):
    for given, narrow in itertools.product([False, True], [False, True]):
        options = dict.fromkeys(GIVEN, given) | {"STATE": tl.float32, "NET": net}
        narrower = ("x_ptr", "dx_ptr", "pooled_ptr", "dpooled_ptr")
        types = dict.fromkeys(narrower, "*bf16") if narrow else {}
        assert "fma" not in compiled(pooling_triton, kernel, types, **options)
    assert compiled(pooling_triton, kernel, **options, **dict.fromkeys(ONES, 1))


@pytest.mark.parametrize("kernel", POOLS)
def test_neurons_and_pooling_move_8_bytes_at_a_time(kernel):
    options = dict.fromkeys(GIVEN, False) | {"POOLED": True, "STATE": tl.float32}
    options["NET"] = 2 if kernel == "_pool_backward" else 1
    ptx = compiled(pooling_triton, kernel, divisible=("C",), **options)
    assert "ld.global.v2" in ptx and "st.global.v2" in ptx
