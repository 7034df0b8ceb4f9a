"""Write kv_tiles.json beside this file: bytes of every KV codec, from the oracle in pykvq.ref.

usage: python tests/golden/make_kv_tiles.py   (from the checkout, with pykvq installed)

Run it only when a codec's byte format changes, together with the codec's version. The whole bytes of one small tile
(head_dim 32) say what changed; checksums cover every kind of data at every head_dim.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

from pykvq import ref

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "kv"))
from tiles import HEAD_DIMS, KV_TYPES, SIDES, kinds_of_data  # noqa: E402


def main() -> None:
    golden: dict[str, object] = {}
    for kv_type in KV_TYPES:
        for side in SIDES:
            entry: dict[str, object] = {"hex 32": ref.encode(kv_type, side, kinds_of_data(32)["gaussian"]).hex()}
            for head_dim in HEAD_DIMS:
                with np.errstate(all="ignore"):
                    tiles = [ref.encode(kv_type, side, x) for x in kinds_of_data(head_dim).values()]
                entry[f"crc32 {head_dim}"] = zlib.crc32(b"".join(tiles))
            golden[f"{kv_type} {side}"] = entry
    (HERE / "kv_tiles.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
