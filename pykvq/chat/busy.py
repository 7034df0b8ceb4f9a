"""A line that says what takes so long, and goes when it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TextIO

_DELAY_SECONDS = 1.0
_PERIOD_SECONDS = 0.2
_CLEAR_LINE = "\r\x1b[2K"


class Busy:
    """After a second of waiting shows a line, until `stop`. A context manager.

    Args:
        stream: a terminal.
        describe: the line, asked for from a thread of its own; None: nothing to say yet.
    """

    def __init__(self, stream: TextIO, describe: Callable[[], str | None]) -> None:
        self._stream = stream
        self._describe = describe
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def stop(self) -> None:
        """Clear the line. Stopping twice is fine."""
        if not self._is_done.is_set():
            self._is_done.set()
            self._thread.join()

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        if self._is_done.wait(_DELAY_SECONDS):
            return
        is_shown = False
        while not self._is_done.is_set():
            if line := self._describe():
                self._stream.write(f"{_CLEAR_LINE}\x1b[2m{line}\x1b[0m")
                self._stream.flush()
                is_shown = True
            self._is_done.wait(_PERIOD_SECONDS)
        if is_shown:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
