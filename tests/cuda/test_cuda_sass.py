"""The machine code of attention and products, without a GPU: tensor cores, asynchronous copies, few instructions.

Needs nvcc, cuobjdump and nvdisasm, which are also wheels; see the step "cuda" of .ci/run.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sass import Kernel, kernels

NATIVE = Path(__file__).parents[2] / "native"
ANY = "NONE"  # the kernel for pairs of paths without one of their own

# Instructions of the walk over encoded tiles per element of K and V, by their paths (native/cuda/format.h): each branch
# taken, an instruction of a warp is one for its 32 lanes, heads of 128 elements, 8 columns.
BUDGETS = {
    ("F16", "F16"): 4.3,
    ("CHANNEL_2", "AFFINE_2"): 2.5,
    ("CHANNEL_2_G64", "AFFINE_2_G64"): 2.5,
    ("CHANNEL_4", "AFFINE_4"): 2.6,
    ("NORMED_2", "NORMED_2"): 2.7,
    ("NORMED_3", "NORMED_3"): 3.3,
    ("NORMED_4", "NORMED_4"): 2.8,
    ("TOKEN_4", "TOKEN_4"): 2.7,
    ("TOKEN_8", "TOKEN_8"): 3.9,
    ("TURBO_2", "TURBO_2"): 2.8,
    ("TURBO_3", "TURBO_3"): 3.4,
    ("TURBO_4", "TURBO_4"): 4.0,
    ("NVFP4", "NVFP4"): 4.7,
    ("FP8", "FP8"): 4.5,
    ("TIER_2", "NORMED_2"): 3.5,
    ("TIER_3", "NORMED_3"): 3.8,
    ("SPLIT_2", "SPLIT_2"): 5.8,
    ("SPLIT_3", "SPLIT_3"): 6.4,
}


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def _paths() -> list[str]:
    """The names of enum tile_path, in order."""
    enum = re.search(r"enum tile_path \{(.*?)\}", (NATIVE / "cuda/format.h").read_text(), re.DOTALL)
    assert enum
    return re.findall(r"PATH_(\w+)(?=,|\s|$)", re.sub(r"/\*.*?\*/", "", enum[1], flags=re.DOTALL))


def _disassemble(folder: Path, source: str, head_dim: int, arch: str) -> list[Kernel]:
    nvcc, cuobjdump, _ = _tool("nvcc"), _tool("cuobjdump"), _tool("nvdisasm")
    out = folder / f"{source}.{arch}.cubin"
    options = ["-O3", "-std=c++17", f"-arch={arch}", f"-DKVQ_HEAD_DIM={head_dim}", f"-I{NATIVE / 'src'}"]
    options += [f"-I{NATIVE / 'include'}"]
    subprocess.run([nvcc, "-cubin", *options, NATIVE / f"cuda/{source}.cu", "-o", out], check=True)
    done = subprocess.run([cuobjdump, "--dump-sass", out], check=True, capture_output=True, text=True)
    return kernels(done.stdout)


@pytest.fixture(scope="module", params=[64, 128])
def attention(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Kernel]]:
    """Heads of so many elements, and the kernels for them, compiled for sm_90."""
    compiled = _disassemble(tmp_path_factory.mktemp("sass"), "attend", request.param, "sm_90")
    return request.param, [kernel for kernel in compiled if "attend_kernel" in kernel.name]


def _columns_and_paths(kernel: Kernel) -> tuple[int, str, str]:
    n_tiles, k, v = kernel.template_arguments()
    return 8 * n_tiles, _paths()[k], _paths()[v]


def test_attention_is_on_tensor_cores(attention: tuple[int, list[Kernel]]) -> None:
    head_dim, compiled = attention
    assert len(compiled) == len(BUDGETS) + 2
    for kernel in compiled:
        n_columns, *_ = _columns_and_paths(kernel)
        # at least a chunk of 16 f16 tokens and one of encoded ones
        assert kernel.count(r"HMMA\.16816\.F32") >= 4 * head_dim // 16 * n_columns // 8
        assert kernel.count(r"UBLKCP|LDGSTS\.E(\.BYPASS)?\.128") > 0


def test_attention_spills_nothing(attention: tuple[int, list[Kernel]]) -> None:
    for kernel in attention[1]:
        if ANY not in _columns_and_paths(kernel):
            assert kernel.count("LDL|STL") == 0, _columns_and_paths(kernel)


def test_attention_stays_within_its_instructions(attention: tuple[int, list[Kernel]]) -> None:
    head_dim, compiled = attention
    counted = {}
    for kernel in compiled:
        n_columns, k, v = _columns_and_paths(kernel)
        if ANY not in (k, v):
            counted[k, v] = kernel.instructions_per_element(head_dim, n_columns)
    assert counted.keys() == BUDGETS.keys()
    if head_dim == 128:
        assert not {pair: n for pair, n in counted.items() if n > BUDGETS[pair]}, counted


@pytest.mark.parametrize(
    ("arch", "head_dim", "product"),
    [("sm_80", 128, "HMMA.16816.F32"), *(("sm_90a", hd, "HGMMA.64x") for hd in (64, 80, 96, 112, 128, 256))],
)
def test_prefill_is_on_tensor_cores_and_spills_nothing(tmp_path: Path, arch: str, head_dim: int, product: str) -> None:
    (kernel,) = _disassemble(tmp_path, "prefill", head_dim, arch)
    assert kernel.count(re.escape(product)) >= 2 * (head_dim // 16 + 4)  # the first tile and the others
    assert kernel.count("LDL|STL") == 0


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_softmax_of_prefill_runs_beside_products(tmp_path: Path, head_dim: int) -> None:
    """In the loop over tiles the exponentials lie between the wait for scores and the wait for the values' products."""
    (kernel,) = _disassemble(tmp_path, "prefill", head_dim, "sm_90a")
    walk = min((loop for loop in kernel.loops("HGMMA")), key=lambda loop: loop.last - loop.first)
    body = kernel.instructions[walk.first : walk.last + 1]
    waits = [i for i, text in enumerate(body) if text.startswith("WARPGROUP.DEPBAR")]
    assert len(waits) == 2
    exponentials = [i for i, text in enumerate(body) if text.startswith("MUFU.EX2")]
    assert len(exponentials) >= 32
    assert all(waits[0] < i < waits[1] for i in exponentials)


@pytest.mark.parametrize("source", ["gemv", "linear"])
def test_products_of_few_rows_stream_weights_and_spill_nothing(tmp_path: Path, source: str) -> None:
    """A kernel for each kind of weights and one for launches with several; those of linear.cu for 8, 16 and 32 rows."""
    compiled = _disassemble(tmp_path, source, 128, "sm_90")
    products = [kernel for kernel in compiled if kernel.count(r"HMMA\.16816\.F32") > 0]
    assert len(products) == (8 if source == "gemv" else 3 * 8)
    for kernel in products:
        assert kernel.count(r"LDGSTS\.E(\.BYPASS)?\.128") > 0
        assert kernel.count("LDL|STL") == 0


def test_instructions_per_weight_of_one_token(tmp_path: Path) -> None:
    """Of the innermost loop of each kind: 16 rows, 256 columns; the memory allows 4.4 with 4 bits."""
    sizes = []
    for kernel in _disassemble(tmp_path, "gemv", 128, "sm_90"):
        loops = kernel.loops()
        sizes += [a.last - a.first + 1 for a in loops if not any(b in a for b in loops)]
    assert len(sizes) == 2 * 7  # kernels of a kind, and the one for all
    assert min(sizes) / (16 * 256 / 32) < 1.7  # half floats
    assert sorted(sizes)[2] / (16 * 256 / 32) < 2.3
    assert max(sizes) / (16 * 256 / 32) < 3.6  # 6 bits
