"""Write native/src/quant/iq_tables.c, the constants of GGML's iq and fp4 formats, from the gguf package.

usage: gen_iq_tables.py [--check]

--check writes nothing and fails if the file differs.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import quants

OUT = Path(__file__).resolve().parent.parent / "native/src/quant/iq_tables.c"
CODEBOOKS = {"kvq_iq4_values": quants.IQ4_NL, "kvq_fp4_values": quants.MXFP4}
GRIDS = {
    "kvq_iq2xxs_grid": quants.IQ2_XXS,
    "kvq_iq2xs_grid": quants.IQ2_XS,
    "kvq_iq2s_grid": quants.IQ2_S,
    "kvq_iq3xxs_grid": quants.IQ3_XXS,
    "kvq_iq3s_grid": quants.IQ3_S,
    "kvq_iq1s_grid": quants.IQ1_S,
}


def grid(of: type) -> np.ndarray:
    """The grid of a gguf.quants type as (n_rows, n_elements) integers."""
    of.init_grid()
    return of.grid.reshape(of.grid_shape).astype(int)


def braces(row: np.ndarray) -> str:
    """One row of a table in C."""
    return "{" + ", ".join(str(x) for x in row) + "}"


def source() -> str:
    """The whole C file."""
    lines = ["/* Written by tools/gen_iq_tables.py from the gguf package: do not edit. */", "/* clang-format off */"]
    lines += ['#include "quant/iq_tables.h"', ""]
    for name, of in CODEBOOKS.items():
        lines.append(f"const int8_t {name}[16] = {braces(of.kvalues)};")
    for name, of in GRIDS.items():
        table = grid(of)
        n_rows, n = table.shape
        element = "int8_t" if table.min() < 0 else "uint8_t"
        lines += ["", f"_Alignas(64) const {element} {name}[{n_rows}][{n}] = {{"]
        for start in range(0, n_rows, 4):
            lines.append("    " + ", ".join(braces(row) for row in table[start : start + 4]) + ",")
        lines.append("};")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write or check the file."""
    if arguments == ["--check"]:
        if OUT.read_text(encoding="utf-8") != source():
            sys.exit(f"{OUT.name}: differs from the gguf package, expected a fresh run of {Path(__file__).name}")
    elif not arguments:
        OUT.write_text(source(), encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
