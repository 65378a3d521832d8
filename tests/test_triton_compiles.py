"""The Triton kernels compile for a GPU, without one; the interpreter lets pass what the compiler does not."""

import itertools

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton does not come with torch on this platform")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import pooling_triton  # noqa: E402
import temporal_triton  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
GIVEN = ("REST", "SKIP", "POOLED", "LAST", "EACH", "TO_REST")


def compiled(module, kernel, narrow=False, **constants):
    kernel = getattr(module, kernel)
    constants |= {"BLOCK": module.BLOCK}
    types = {"v_th": "fp32", "alpha": "fp32"} if module is pooling_triton else {}
    types |= {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    types |= {"x_ptr": "*bf16"} if narrow else {}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=HOPPER, options={"num_warps": module.N_WARPS}).asm["cubin"]


@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("kernel", ["_integrate", "_integrate_backward", "_fire", "_fire_backward"])
def test_scans(kernel, per_cell):
    assert compiled(temporal_triton, kernel, PER_CELL=per_cell)


@pytest.mark.parametrize("net", [0, 1, 2])
@pytest.mark.parametrize("kernel", ["_pool", "_pool_backward"])
def test_neurons_and_pooling(kernel, net):
    for given, narrow in itertools.product([False, True], [False, True]):
        options = dict.fromkeys(GIVEN, given)
        assert compiled(pooling_triton, kernel, narrow, STATE=tl.float32, NET=net, **options)
