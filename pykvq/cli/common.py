"""What the verbs share: reading text, fetching models, progress, Ctrl-C, tables."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

from ..errors import ArgumentError, FileError, FormatError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..engine import Sequence
    from ..generate import GenerateOptions, Generation
    from ..model import Model
    from ..results import Columns, ResultFile, Row


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


def use_template(model: Model, name: str | None) -> str | None:
    """Let a model use another chat template: a jinja file, or a built-in one.

    Returns:
        a note, if nothing was asked for and a built-in one has taken the place of the file's.
    """
    from ..chat_template import ChatTemplate, special_tokens

    if name is None:
        chosen = model.chat_template and model.chat_template.fallback
        return chosen and f"the file has no chat template; going by its vocabulary, {chosen} is used"
    if name.endswith((".jinja", ".j2")) or "/" in name or Path(name).is_file():
        model.chat_template = ChatTemplate(read_file(Path(name)), special_tokens(model.tokenizer))
    else:
        model.chat_template = ChatTemplate.named(name, model.tokenizer)
    return None


def read_settings(settings: list[str] | None) -> dict[str, str]:
    """NAME=VALUE each."""
    pairs = [setting.partition("=") for setting in settings or ()]
    if wrong := next(
        (setting for setting, (_, _, value) in zip(settings or (), pairs, strict=True) if not value), None
    ):
        raise typer.BadParameter(f"--set {wrong}: expected NAME=VALUE, as in --set typical_p=0.9")
    return {name.strip(): value.strip() for name, _, value in pairs}


@contextmanager
def answer_options(
    *,
    lookup: bool,
    draft: str | None,
    draft_tokens: int | None,
    **constraints: str | None,
) -> Generator[GenerateOptions, None, None]:
    """The options of `generate` that flags ask for, and the draft model while it is needed."""
    from ..grammar import read_constraint
    from ..model import Model

    given = {name: read_constraint(name, read_argument(text, name)) for name, text in constraints.items() if text}
    options: GenerateOptions = {"lookup": lookup, "draft_tokens": draft_tokens}
    options.update(cast("GenerateOptions", given))
    if draft is None:
        yield options
        return
    with Model.open(fetch(draft)) as small:
        options["draft"] = small
        yield options


def read_tools(path: Path | None) -> list[dict[str, Any]] | None:
    """A list of functions as JSON schemas; those that stand bare are wrapped as templates expect them."""
    if path is None:
        return None
    from json import loads

    try:
        tools: Any = loads(read_file(path))
    except ValueError as error:
        raise FormatError(f"{path}: not JSON ({error})") from None
    if not isinstance(tools, list):
        raise FormatError(f"{path}: not a JSON list of functions")
    functions: list[dict[str, Any]] = []
    for i, tool in enumerate(cast("list[Any]", tools)):
        function = cast("dict[str, Any]", tool).get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(function, dict) or "name" not in function:
            raise FormatError(f'{path}: tool {i} is no function; expected {{"name": ..., "parameters": {{...}}}}')
        functions.append(cast("dict[str, Any]", function))
    return [{"type": "function", "function": function} for function in functions]


def read_standard_input(purpose: str) -> str:
    """All of standard input, which must not be a terminal."""
    if sys.stdin.isatty():
        raise typer.BadParameter(f"{purpose} is missing: give it as an option, or on standard input")
    return decode(sys.stdin.buffer.read(), "standard input")


def fetch(model: str, *, verify: bool = False) -> str:
    """The path of a model, downloaded first if need be, with a progress bar."""
    from .. import registry

    with Bar(f"fetching {model}", is_bytes=True) as bar:
        return registry.pull(model, bar.show) if verify else registry.locate(model, bar.show)


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


@contextmanager
def reading(generation: Generation) -> Generator[Callable[[], None], None, None]:
    """Say on a terminal how much of a long prompt is still to be read, until the function that is given is called."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from ..chat.busy import Busy

    def describe() -> str | None:
        n_pending = generation.n_pending
        return f"reading the prompt, {n_pending:,} tokens to go" if n_pending > 1 else None

    with Busy(sys.stderr, describe) as busy:
        yield busy.stop


def choose(value: str, choices: Iterable[str], option: str) -> str:
    """A value that must be one of a few; a wrong one names the nearest."""
    known = list(choices)
    if value in known:
        return value
    near = get_close_matches(value, known, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise typer.BadParameter(f"{option} {value}: {meant}expected one of {', '.join(known)}")


def dimmed(line: str) -> str:
    """A line beside the answer, for standard error."""
    is_plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return line if is_plain else f"\x1b[2m{line}\x1b[0m"


def warn_if_unfit(sequence: Sequence) -> None:
    """Say so, once, if keys are stored in a way that is known to hurt models like this one."""
    from ..kv import unfit

    n_params = sequence.engine.model.info.n_params
    for type_k in dict.fromkeys(layer.type_k for layer in sequence.kv_layers()):
        if words := unfit(n_params, type_k):
            print(f"pykvq: warning: {words}", file=sys.stderr)


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


def memory(text: str, device: str) -> tuple[int, str]:
    """Bytes, from "8GiB", "512M" or a number, and their name; "auto": what the device has free."""
    if text == "auto":
        from ..device import memory as memory_of

        n_free = memory_of(device).n_free
        return n_free, mib(n_free)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:(i)?B)?|B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ArgumentError(f"memory '{text}': expected a size like 8GiB, 800MB, a number of bytes, or auto")
    number, prefix, binary = match.groups()
    base = 1024 if binary or not text.strip().upper().endswith("B") else 1000
    return int(float(number) * base ** (" KMGT".index(prefix.upper()) if prefix else 0)), text


class Bar:
    """A progress bar on standard error, if that is a terminal, from the first thing to show on. A context manager."""

    def __init__(self, title: str = "", *, is_bytes: bool = False) -> None:
        self.title = title
        self._is_bytes = is_bytes
        self._progress: Progress | None = None  # made when needed: rich takes a moment to import

    def show(self, n_done: int, n_total: int) -> None:
        """So much is done."""
        if self._progress is None:
            self._progress = _progress(self._is_bytes)
            self._progress.add_task(self.title)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=n_done, total=n_total, description=self.title)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def _progress(is_bytes: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    count = DownloadColumn() if is_bytes else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


@contextmanager
def keep_finished(file: ResultFile) -> Generator[None, None, None]:
    """Ctrl-C ends a sweep with exit code 130; what is in the file stays."""
    n_before = len(file.rows)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {len(file.rows) - n_before} new rows {file.kept}", file=sys.stderr)
        raise typer.Exit(130) from None


FORMATS = ("md", "csv", "json", "jsonl")


def print_rows(rows: Iterable[Row], columns: Columns, format: str) -> int:
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
            if format == "jsonl":
                print(dumps(row), flush=True)
    finally:
        if format == "json":
            print(dumps(good, indent=1))
        elif format == "csv":
            print(comma_separated(good), end="")
        elif format == "md" and good:
            print(markdown(cells(columns, good)))
    return n_errors
