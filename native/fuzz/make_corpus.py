"""Write small GGUF files for the fuzzer to start from: every value type, every tensor type.

usage: make_corpus.py FOLDER
"""

import sys
from pathlib import Path

import gguf
import numpy as np


def write_values(path: Path) -> None:
    """Every value type, alone and in arrays, and no tensors: a vocabulary file."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind in gguf.GGUFValueType:
        if kind == gguf.GGUFValueType.ARRAY:
            continue
        one = {gguf.GGUFValueType.STRING: "héllo", gguf.GGUFValueType.BOOL: True}.get(kind, 1)
        writer.add_key_value(f"one.{kind.name}", one, kind)
        writer.add_key_value(f"array.{kind.name}", [one, one], gguf.GGUFValueType.ARRAY, sub_type=kind)
    finish(writer)


def write_tensor(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """One block of one type, and one tensor of f32 after it."""
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a.weight", np.arange(n_bytes, dtype=np.uint8).reshape(1, n_bytes), raw_dtype=kind)
    writer.add_tensor("b", np.ones(3, dtype=np.float32))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_values(folder / "values.gguf")
    for kind in gguf.GGMLQuantizationType:
        write_tensor(folder / f"{kind.name}.gguf", kind)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
