"""Write the C source of the cffi extension module.

usage: ffi_source.py PYKVQ_H OUT_C

The declarations are the part of pykvq.h between the two "cffi:" marks, so nothing is declared twice.
"""

import re
import sys
from pathlib import Path

import cffi


def declarations(header: str) -> str:
    """The marked part of the header without PYKVQ_API, in the form cffi parses."""
    begin, end = "/* cffi: begin */", "/* cffi: end */"
    text = header[header.index(begin) + len(begin) : header.index(end)]
    return re.sub(r"\bPYKVQ_API\b", "", re.sub(r"(#define \w+ \d+).*", r"\1", text))


def main(header_path: str, out_path: str) -> None:
    """Write the module's source for the header."""
    header = Path(header_path).read_text(encoding="utf-8")
    builder = cffi.FFI()
    builder.cdef(declarations(header))
    builder.set_source("pykvq._native", '#include "pykvq.h"', py_limited_api=True)
    builder.emit_c_code(out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
