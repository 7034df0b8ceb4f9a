"""`python -m pykvq`: the same as `pykvq`."""

from .cli import main

main()
