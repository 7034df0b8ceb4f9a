"""Consoles: a terminal with prompt_toolkit, or plain lines where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from ..errors import FormatError
from ..kv import kv_types
from .busy import Busy
from .commands import COMMANDS, SETTINGS, SHOWN, THINKING

_DIM, _NORMAL = ("", "") if os.environ.get("NO_COLOR") else ("\x1b[2m", "\x1b[0m")
_STYLE = Style.from_dict({"prompt": "bold ansigreen", "bottom-toolbar": "noreverse ansibrightblack"})


class _NotBusy:
    """Nothing to show, nothing to stop."""

    def stop(self) -> None:
        """Nothing."""


class PlainConsole:
    """Lines of standard input; answers to standard output, notes to standard error."""

    columns = 80

    def read(self, default: str = "", *, is_continued: bool = False) -> str:
        """The next line."""
        if sys.stdin.isatty():
            print("... " if is_continued else ">>> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FormatError(f"standard input: not UTF-8 text, byte 0x{line[error.start]:02x}") from None

    def write(self, text: str, *, is_thinking: bool = False) -> None:
        """Write at once: the text streams."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line beside the answers."""
        print(text, file=sys.stderr, flush=True)

    def busy(self, describe: Callable[[], str | None]) -> AbstractContextManager[_NotBusy]:
        """Nobody is watching."""
        return nullcontext(_NotBusy())


class TerminalConsole:
    """A terminal: history, completion, several lines with Alt-Enter, a status line.

    Args:
        history: where lines are kept; a file that cannot be written is done without.
        status: the text of the status line.
    """

    def __init__(self, history: Path, status: Callable[[], str]) -> None:
        keys = KeyBindings()
        keys.add("escape", "enter")(_new_line)
        self._session: PromptSession[str] = PromptSession(
            history=_open_history(history),
            completer=CommandCompleter(),
            complete_while_typing=False,
            key_bindings=keys,
            bottom_toolbar=lambda: FormattedText([("", status())]),
            prompt_continuation="... ",
            style=_STYLE,
        )

    @property
    def columns(self) -> int:
        """As wide as the terminal is now."""
        return os.get_terminal_size(sys.stdout.fileno()).columns

    def read(self, default: str = "", *, is_continued: bool = False) -> str:
        """A message, which the user may edit."""
        prompt = "... " if is_continued else ">>> "
        return self._session.prompt([("class:prompt", prompt)], default=default)

    def write(self, text: str, *, is_thinking: bool = False) -> None:
        """Write at once: the text streams. Thinking is dimmed."""
        sys.stdout.write(f"{_DIM}{text}{_NORMAL}" if is_thinking else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A dimmed line."""
        print(f"{_DIM}{text}{_NORMAL}", flush=True)

    def busy(self, describe: Callable[[], str | None]) -> AbstractContextManager[Busy]:
        """A line that goes when the answer begins."""
        return Busy(sys.stdout, describe)


class CommandCompleter(Completer):
    """Completes commands, and what follows them."""

    def __init__(self) -> None:
        kinds = [kv.name for kv in kv_types()]
        self._words = {"set": SETTINGS, "show": SHOWN, "think": THINKING, "kv": kinds}
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions at the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/"):
            return
        command, space, argument = line[1:].partition(" ")
        if not space:
            words = [f"/{name}" for name in COMMANDS]
            yield from (Completion(word, -len(line)) for word in words if word.startswith(line))
        elif command in self._words:
            words = [word for word in self._words[command] if word.startswith(argument)]
            yield from (Completion(word, -len(argument)) for word in words)
        elif command in ("save", "load", "read"):
            yield from self._paths.get_completions(Document(argument), complete_event)


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def _open_history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
