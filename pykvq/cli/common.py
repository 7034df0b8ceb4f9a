"""What the verbs share: options, reading text, fetching models with a progress bar, Ctrl-C."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import FileError, FormatError

debug = False  # show tracebacks


def _set_debug(value: bool) -> None:
    global debug
    debug = value


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, a name of `pykvq models`, or hf:owner/repo/file.gguf.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback after an error.", callback=_set_debug)]


def decode(data: bytes, source: str) -> str:
    """Bytes from outside as text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{source}: not UTF-8 text, byte {error.start} is 0x{data[error.start]:02x}") from None


def read_argument(text: str, name: str) -> str:
    """A text argument of the command line; Python stands in surrogates for bytes that are not UTF-8."""
    return decode(text.encode("utf-8", "surrogateescape"), name)


def read_file(path: Path) -> str:
    """A text file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    return decode(data, str(path))


def read_standard_input(purpose: str) -> str:
    """All of standard input, which must not be a terminal."""
    if sys.stdin.isatty():
        raise typer.BadParameter(f"{purpose} is missing: give it as an option, or on standard input")
    return decode(sys.stdin.buffer.read(), "standard input")


def fetch(model: str, *, verify: bool = False) -> str:
    """The path of a model, downloaded first if need be, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from .. import registry

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task(f"fetching {model}")

    def show(n_done: int, n_total: int) -> None:
        bar.start()  # not before there is something to show
        bar.update(task, completed=n_done, total=n_total)

    try:
        return registry.pull(model, show) if verify else registry.locate(model, show)
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Generator[None, None, None]:
    """Call action in a thread when Ctrl-C arrives, at once, even while the main thread computes inside the library.

    A second Ctrl-C interrupts the program as usual.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def handler(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        if reader.recv(1):  # empty once the writer is closed
            action()

    thread = threading.Thread(target=watch, daemon=True)
    old_handler = signal.signal(signal.SIGINT, handler)
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_descriptor)
        signal.signal(signal.SIGINT, old_handler)
        writer.close()
        thread.join()
        reader.close()


def mib(n_bytes: float) -> str:
    """A size for people."""
    return f"{n_bytes / 2**20:,.1f} MiB"
