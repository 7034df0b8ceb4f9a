"""The machine code of attention and products, without a GPU: tensor cores, asynchronous copies, no spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
HEAD_DIM = 128


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def _disassemble(folder: Path, *defines: str, source: str = "attend", arch: str = "sm_90") -> str:
    """A kernel of attention with heads of 128 elements."""
    nvcc, cuobjdump, _ = _tool("nvcc"), _tool("cuobjdump"), _tool("nvdisasm")
    out = folder / f"{source}.{arch}.cubin"
    command = [nvcc, "-O3", "-std=c++17", f"-arch={arch}", "-cubin", f"-DKVQ_HEAD_DIM={HEAD_DIM}", *defines]
    include = [f"-I{NATIVE / 'src'}", f"-I{NATIVE / 'include'}"]
    subprocess.run([*command, *include, NATIVE / f"cuda/{source}.cu", "-o", out], check=True)
    return subprocess.run([cuobjdump, "--dump-sass", out], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def sass(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _disassemble(tmp_path_factory.mktemp("sass"))


def _kernels(sass: str) -> list[list[tuple[int, str]]]:
    """The addresses and instructions of each function."""
    functions = sass.split("Function :")[1:]
    found = [re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?(.*?);", text) for text in functions]
    return [[(int(address, 16), text) for address, text in function] for function in found]


def _loops(function: list[tuple[int, str]]) -> list[list[str]]:
    """The bodies of its loops: from the target of a backward branch to the branch."""
    found = []
    for address, text in function:
        branch = re.search(r"^BRA.*?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            found.append([body for at, body in function if int(branch[1], 16) <= at <= address])
    return found


def _n_products(body: list[str]) -> int:
    return sum(text.startswith("HMMA") for text in body)


def test_attention_is_on_tensor_cores(sass: str) -> None:
    kernels = _kernels(sass)
    assert len(kernels) == 2
    for function in kernels:
        assert sum(text.startswith("HMMA.16816.F32") for _, text in function) > 300
        assert sum(re.match(r"LDGSTS\.E(\.BYPASS)?\.128", text) is not None for _, text in function) > 0


def test_attention_spills_nothing(sass: str) -> None:
    for function in _kernels(sass):
        assert not [text for _, text in function if text.startswith(("LDL", "STL"))]


@pytest.mark.parametrize(
    ("k", "v", "budget"),
    [
        ("CHANNEL_2", "AFFINE_2", 2.7),
        ("CHANNEL_4", "AFFINE_4", 2.7),
        ("NORMED_2", "NORMED_2", 2.7),
        ("TURBO_2", "TURBO_2", 3.0),
        ("TURBO_4", "TURBO_4", 3.9),
    ],
)
def test_instructions_per_element(tmp_path: Path, k: str, v: str, budget: float) -> None:
    """Of the loop over tiles with 8 columns, every branch taken; its loop over channel blocks takes two at a time."""
    sass = _disassemble(tmp_path, f"-DKVQ_ONLY_K=PATH_{k}", f"-DKVQ_ONLY_V=PATH_{v}")
    loops = _loops(min(_kernels(sass), key=len))
    most = max(_n_products(body) for body in loops)
    over_tiles = min((body for body in loops if _n_products(body) == most), key=len)
    over_channels = min((body for body in loops if _n_products(body) > 0), key=len)
    n_turns = HEAD_DIM // 16 // 2
    n_instructions = len(over_tiles) + (n_turns - 1) * len(over_channels)
    assert n_instructions / (2 * 64 * HEAD_DIM / 32) < budget


@pytest.mark.parametrize(("arch", "product"), [("sm_80", "HMMA.16816.F32"), ("sm_90a", "HGMMA.64x")])
def test_prefill_is_on_tensor_cores_and_spills_nothing(tmp_path: Path, arch: str, product: str) -> None:
    (function,) = _kernels(_disassemble(tmp_path, source="prefill", arch=arch))
    assert sum(text.startswith(product) for _, text in function) >= 24
    assert not [text for _, text in function if text.startswith(("LDL", "STL"))]


def test_softmax_of_prefill_runs_beside_products(tmp_path: Path) -> None:
    """In the loop over tiles the exponentials lie between the wait for scores and the wait for the values' products."""
    (function,) = _kernels(_disassemble(tmp_path, source="prefill", arch="sm_90a"))
    loop = min((body for body in _loops(function) if any(text.startswith("HGMMA.64x128") for text in body)), key=len)
    waits = [i for i, text in enumerate(loop) if text.startswith("WARPGROUP.DEPBAR")]
    assert len(waits) == 2
    exponentials = [i for i, text in enumerate(loop) if text.startswith("MUFU.EX2")]
    assert sum(waits[0] < i < waits[1] for i in exponentials) > 2 * sum(i > waits[1] for i in exponentials)


@pytest.mark.parametrize("source", ["gemv", "linear"])
def test_products_of_few_rows_stream_weights_and_spill_nothing(tmp_path: Path, source: str) -> None:
    functions = _kernels(_disassemble(tmp_path, source=source))
    products = [function for function in functions if any(text.startswith("HMMA.16816.F32") for _, text in function)]
    assert len(products) == (7 if source == "gemv" else 21)  # kinds of weights; for 8, 16 and 32 rows
    for function in products:
        assert sum(re.match(r"LDGSTS\.E(\.BYPASS)?\.128", text) is not None for _, text in function) > 0
        assert not [text for _, text in function if text.startswith(("LDL", "STL"))]


def test_instructions_per_weight_of_one_token(tmp_path: Path) -> None:
    """Of the smallest loop with products of each kind: 16 rows, 256 columns; the memory allows 4.4 with 4 bits."""
    functions = _kernels(_disassemble(tmp_path, source="gemv"))
    sizes = [min(len(body) for body in _loops(function) if _n_products(body) > 0) for function in functions]
    assert min(sizes) / (16 * 256 / 32) < 1.7  # half floats
    assert sorted(sizes)[1] / (16 * 256 / 32) < 2.3
    assert max(sizes) / (16 * 256 / 32) < 3.6  # 6 bits
