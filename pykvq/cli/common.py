"""What the verbs share: options, reading text, fetching models with a progress bar, Ctrl-C."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import ArgumentError, FileError, FormatError

if TYPE_CHECKING:
    from ..results import Columns, ResultFile, Row

debug = False  # show tracebacks


def _set_debug(value: bool) -> None:
    global debug
    debug = value


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, a name of `pykvq models`, or hf:owner/repo/file.gguf.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback after an error.", callback=_set_debug)]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Default: the cores this process may use.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to compute.")]
KVOption = Annotated[str | None, typer.Option("--kv", help="KV type of the cache, or K/V; default: f16.")]
KVTypesOption = Annotated[
    str | None,
    typer.Option("--kv", help="Comma-separated KV types, or K/V pairs.  [default: all types]", show_default=False),
]
KVKOption = Annotated[str | None, typer.Option("--kv-k", help="KV type of the keys, if it differs.")]
KVVOption = Annotated[str | None, typer.Option("--kv-v", help="KV type of the values, if it differs.")]
KVLayersOption = Annotated[str | None, typer.Option("--kv-layers", help="Exceptions by layer: '0-1,-1:TYPE,4:TYPE'.")]
KVSinkOption = Annotated[int | None, typer.Option("--kv-sink", min=0, help="First tokens that stay in f16.")]
KVTailOption = Annotated[int | None, typer.Option("--kv-tail", min=0, help="Newest tokens that stay in f16.")]
SaveOption = Annotated[
    Path | None, typer.Option("--save", help="A file of JSON lines that keeps rows; what it has is not measured again.")
]


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


def kv_names(names: str | None) -> list[str]:
    """The KV types of a list, or all."""
    from ..kv import kv_types

    return names.split(",") if names else [kv.name for kv in kv_types()]


Number = TypeVar("Number", int, float)


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """A list of numbers, none negative."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(value >= 0 for value in values):
        raise typer.BadParameter(f"{option} {text}: expected numbers with commas between them")
    return values


def memory(text: str) -> int:
    """Bytes, from "8GiB", "512M" or a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:(i)?B)?|B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ArgumentError(f"memory '{text}': expected a size like 8GiB, 800MB or a number of bytes")
    number, prefix, binary = match.groups()
    base = 1024 if binary or not text.strip().upper().endswith("B") else 1000
    return int(float(number) * base ** (" KMGT".index(prefix.upper()) if prefix else 0))


class Bar:
    """A progress bar on standard error, from the first time there is something to show. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: Any = None
        self.title = ""

    def show(self, n_done: int, n_total: int) -> None:
        """So much is done."""
        if self._task is None:
            self._task = self._progress.add_task(self.title)
            self._progress.start()
        self._progress.update(self._task, completed=n_done, total=n_total, description=self.title)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()


@contextmanager
def keep_finished(file: ResultFile) -> Generator[None, None, None]:
    """Ctrl-C ends a sweep with exit code 130; what is in the file stays."""
    n_before = len(file.rows)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {len(file.rows) - n_before} new rows {file.kept}", file=sys.stderr)
        raise typer.Exit(130) from None


OUTPUTS = ("md", "csv", "json", "jsonl")


def print_rows(rows: Iterable[Row], columns: Columns, output: str) -> int:
    """Print rows, a JSON line as each comes, or all at the end, even if that comes early; how many were errors."""
    from json import dumps

    from ..results import cells, comma_separated, markdown

    good: list[Row] = []
    n_errors = 0
    try:
        for row in rows:
            if "error" in row:
                n_errors += 1
                print(f"pykvq: {row['kv']}: {row['error']}", file=sys.stderr)
            else:
                good.append(row)
            if output == "jsonl":
                print(dumps(row), flush=True)
    finally:
        if output == "json":
            print(dumps(good, indent=1))
        elif output == "csv":
            print(comma_separated(good), end="")
        elif output == "md" and good:
            print(markdown(cells(columns, good)))
    return n_errors
