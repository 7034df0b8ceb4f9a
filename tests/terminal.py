"""A real terminal: tmux runs a command in it, keys are sent, the screen is read."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PATIENCE_SECONDS = 60
_numbers = iter(range(1000))


class Terminal:
    """`pykvq` with these arguments in a tmux of its own; without arguments a shell that knows the command.

    Nothing here waits for a time: `expect` waits for what the terminal shows.
    """

    def __init__(
        self, folder: Path, *arguments: object, columns: int = 100, rows: int = 30, cache: Path | None = None
    ) -> None:
        self._tmux = ["tmux", "-S", str(folder / f"tmux{next(_numbers)}"), "-f", "/dev/null"]
        kept = {name: os.environ[name] for name in ("PYTHONPATH", "PYKVQ_CONFIG") if name in os.environ}
        variables = {**kept, "PYKVQ_CACHE": str(cache or folder), "HISTFILE": ""}
        pykvq = shlex.join([sys.executable, "-m", "pykvq"])
        if arguments:
            line = f"{pykvq} {shlex.join(map(str, arguments))}; echo ended with $?; exec sleep 600"
        else:
            (folder / "shell").write_text(f"pykvq() {{ {pykvq} \"$@\"; }}\nPS1='$ '\n")
            line = f"exec bash --noprofile --rcfile {shlex.quote(str(folder / 'shell'))} -i"
        line = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), "bash", "-c", line])
        size = ["-x", str(columns), "-y", str(rows)]
        subprocess.run([*self._tmux, "new-session", "-d", *size, line], check=True, cwd=folder)

    def type(self, text: str) -> None:
        """Type a line and Enter."""
        self.write(text)
        self.press("Enter")

    def write(self, text: str) -> None:
        """Type a text."""
        subprocess.run([*self._tmux, "send-keys", "-l", "--", text], check=True)

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def text(self) -> str:
        """All that was shown, what has scrolled away too; lines that were too long are whole."""
        command = [*self._tmux, "capture-pane", "-p", "-J", "-S", "-"]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    def screen(self) -> str:
        """What is on the screen now, with its colours."""
        command = [*self._tmux, "capture-pane", "-p", "-e"]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    def expect(self, text: str, times: int = 1) -> str:
        """Wait until a text has been shown so often; all that was shown."""
        return self.wait(lambda shown: shown.count(text) >= times, repr(text))

    def wait(self, is_there: Callable[[str], bool], what: str) -> str:
        """Wait until what is shown is as wanted."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not is_there(shown := self.text()):
            assert time.monotonic() < end, f"{what} is awaited:\n{shown}"
            time.sleep(0.05)
        assert "Traceback" not in shown, shown
        return shown

    def close(self) -> None:
        """End what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False)
