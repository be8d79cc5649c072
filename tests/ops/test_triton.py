"""The Triton backend: kernels under the interpreter, what the compiler makes of them, and on a GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcls import ops
from dcls.errors import ConfigError
from dcls.ops import dispatch, reference, triton_backend, triton_bands
from dcls.ops.case import Case
from dcls.ops.operator import depthwise, depthwise_gradients

HERE = Path(__file__).parent
CASE = Case("cuda", torch.bfloat16, 2, 8, (9, 7), (5, 5), (1, 1), (2, 2))


def test_the_kernels_under_the_interpreter():
    """In a process of its own: triton reads the variable when it is first imported, which torch may have done here."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted_triton.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(kernel, pointers, ones, constants):
    """The kernel as Triton compiles it for compute capability 9.0, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = constants | dict.fromkeys(ones, 1)
    signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr") | pointers
    whole = {"C", "WIDE", *(name for name in kernel.arg_names if name[1:] in ("_b", "_h", "_w")), *pointers}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in whole}
    source = ASTSource(kernel, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def test_the_compiler_keeps_tiles_in_registers(monkeypatch, tmp_path):
    """channels_last in bfloat16: 16-byte loads, and no trip through shared memory but to sum pixels at the very end."""
    kernels = pytest.importorskip("dcls.ops.triton_kernels")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    steps, tile = {"STEP_H": 1, "STEP_W": 1}, {"BLOCK_X": 16, "BLOCK_C": 64}
    forward = compiled(
        kernels.convolution,
        dict.fromkeys(("output", "x", "taps", "bias"), "*bf16"),
        ("x_c", "o_c"),
        {**steps, **tile, "SPREAD_H": 1, "SPREAD_W": 1, "TURNED": False},
    )
    backward = compiled(
        kernels.kernel_gradient,
        {"partial": "*fp32", "grad": "*bf16", "x": "*bf16"},
        ("x_c", "g_c"),
        {**steps, **tile, "BLOCK_S": triton_backend.BLOCK_S},
    )
    assert "convert_layout" not in forward.asm["ttgir"]
    loop = backward.asm["ttgir"].partition("scf.for")[2].partition("tt.reduce")[0]
    assert "convert_layout" not in loop
    for each in (forward, backward):
        assert each.asm["ptx"].count("ld.global.v4.b32") >= 2
        assert ".local" not in each.asm["ptx"]


def test_the_compiler_uses_the_tensor_cores(monkeypatch, tmp_path):
    """Hopper's products of whole warp groups, and copies of 16 bytes to shared memory while they run."""
    kernels = pytest.importorskip("dcls.ops.triton_band_kernels")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = dict.fromkeys(("output", "x", "bands", "bias"), "*bf16")
    forward = compiled(kernels.products, pointers, (), {"K": 32, "BLOCK_M": triton_bands.FORWARD_BLOCK, "BLOCK_K": 32})
    pointers = {"of_bands": "*fp32", "grad": "*bf16", "x": "*bf16"}
    sizes = {"K": 32, "BLOCK_M": triton_bands.GRADIENT_BLOCK, "BLOCK_K": 32}
    backward = compiled(kernels.band_gradients, pointers, (), sizes)
    assert "wgmma.mma_async" in forward.asm["ptx"]
    assert "mma.sync" in backward.asm["ptx"]
    for each in (forward, backward):
        assert "cp.async.cg.shared.global" in each.asm["ptx"]
        assert each.asm["ptx"].count("ld.global.b16") <= 1  # the bias
        assert ".local" not in each.asm["ptx"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": "cpu"}, "device cpu: only CUDA"),
        ({"dtype": torch.float64}, "float64: only torch.float32, torch.bfloat16, torch.float16"),
        ({"size": (5, 52), "padding": (2, 26)}, "kernel 5x52: only up to 51"),
        ({"channels": 2**26}, "2\\^31 numbers"),
        ({"batch": 2**28}, "2\\^31 numbers"),
    ],
)
def test_what_it_cannot_run_has_a_reason(change, match, monkeypatch):
    monkeypatch.setattr(triton_backend, "unavailable", lambda: None)
    assert triton_backend.supports(CASE) is None
    with pytest.raises(ConfigError, match=match):
        dispatch.choose(CASE._replace(**change), "triton")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": "cpu"}, "device cpu: only CUDA"),
        ({"dtype": torch.float32}, "float32: only bfloat16 and float16"),
        ({"stride": (1, 2)}, "stride 1x2: only 1"),
        ({"padding": (2, 5)}, "padding of the kernel's size"),
    ],
)
def test_what_bands_cannot_run_has_a_reason(change, match, monkeypatch):
    monkeypatch.setattr(triton_backend, "unavailable", lambda: None)
    assert triton_bands.supports(CASE) is None
    with pytest.raises(ConfigError, match=match):
        dispatch.choose(CASE._replace(**change), "triton_bands")


def test_where_triton_is_missing_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dcls.ops.triton_kernels", None)
    monkeypatch.delattr(ops, "triton_kernels", raising=False)
    assert "pip install triton" in triton_backend.unavailable.__wrapped__()


def test_a_tensor_on_the_cpu_is_refused_by_name():
    with pytest.raises(ConfigError, match="backend='triton' cannot convolve .* on cpu.*: device cpu: only CUDA"):
        ops.convolve(torch.zeros(1, 8, 6, 6), torch.zeros(8, 1, 3, 3), groups=8, backend="triton")


# ConvNeXt-T's stages: channels, pixels.
STAGES = [(96, 56), (192, 28), (384, 14), (768, 7)]
# Of the largest true value: sums in float32, then one rounding.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
FORMS = [("triton", dtype) for dtype in TOLERANCES] + [("triton_bands", dtype) for dtype in triton_bands.DTYPES]


def on_gpu(batch, channels, image, size, dtype, last=True):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *image), (channels, 1, *size), (channels,)
    x, kernel, bias = (torch.randn(shape, generator=generator).to(dtype).cuda() for shape in shapes)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return [each.requires_grad_() for each in (x, kernel, bias)]


def with_gradients(convolve, tensors):
    output = convolve(*tensors)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype).to(output)
    return [output, *torch.autograd.grad(output, tensors, grad)]


def check_on_gpu(tensors, stride, padding, backend):
    channels = tensors[0].shape[1]
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    ours = with_gradients(lambda *each: depthwise(*each, stride, padding, backend), tensors)
    expected = with_gradients(lambda *each: reference.convolve(*each, stride, padding, channels), doubles)
    for one, other in zip(ours, expected, strict=True):
        assert (one.double() - other).abs().max() <= TOLERANCES[tensors[0].dtype] * other.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "dtype"), FORMS)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("size", [7, 17])
@pytest.mark.parametrize(("channels", "pixels"), STAGES)
def test_the_stages_of_convnext(channels, pixels, size, batch, backend, dtype):
    tensors = on_gpu(batch, channels, (pixels, pixels), (size, size), dtype)
    check_on_gpu(tensors, [1, 1], [size // 2, size // 2], backend)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "dtype"), [("triton", torch.float32), ("triton_bands", torch.bfloat16)])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("image", "size", "stride", "padding"),
    [
        ((31, 33), (31, 31), [1, 1], [15, 15]),
        ((20, 60), (51, 50), [1, 1], [25, 25]),
        ((40, 45), (30, 19), [1, 1], [0, 18]),
        ((9, 7), (5, 4), [2, 1], [1, 6]),
        ((15, 14), (7, 7), [2, 2], [3, 3]),
        ((1, 1), (3, 3), [1, 1], [1, 1]),
        ((50,), (17,), [1], [8]),
        ((50,), (4,), [2], [0]),
    ],
    ids=str,
)
def test_other_shapes(image, size, stride, padding, last, backend, dtype):
    if backend == "triton_bands" and max(stride) > 1:
        pytest.skip("supports() says no")
    check_on_gpu(on_gpu(3, 20, image, size, dtype, last), stride, padding, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", dispatch.UNPROVEN)
def test_two_calls_give_the_same_bits(backend):
    tensors = on_gpu(8, 96, (56, 56), (17, 17), torch.bfloat16)
    first, second = (with_gradients(lambda *each: depthwise(*each, [1, 1], [8, 8], backend), tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("image", "size", "how"), [((9, 7), (5, 4), ([2, 1], [1, 2])), ((9,), (4,), ([1], [2]))])
def test_torch_finds_nothing_wrong(image, size, how, last):
    tensors = on_gpu(2, 8, image, size, torch.float32, last)
    torch.library.opcheck(depthwise, (*tensors, *how, "triton"))
    x, kernel, bias = (each.detach() for each in tensors)
    grad = torch.randn_like(depthwise(x, kernel, bias, *how, "triton"))
    torch.library.opcheck(depthwise_gradients, (grad, x, kernel, *how, [True, True, True], "triton"))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", dispatch.UNPROVEN)
def test_compiles_as_one_graph(backend):
    tensors = on_gpu(2, 32, (14, 14), (7, 7), torch.bfloat16)

    def convolve(x, kernel, bias):
        return ops.convolve(x, kernel, bias, (1,), (3,), 32, backend)

    torch.testing.assert_close(
        with_gradients(torch.compile(convolve, fullgraph=True), tensors), with_gradients(convolve, tensors)
    )
