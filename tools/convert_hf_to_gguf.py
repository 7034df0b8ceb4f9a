#!/usr/bin/env python3
"""Convert a Hugging Face checkpoint to GGUF: the same as `pykvq convert`."""

import sys

from pykvq.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
