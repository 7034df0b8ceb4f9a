# The compiled module: cffi's two objects. Only _ffi.py imports it.
from typing import Any

ffi: Any
lib: Any
