"""Record `pykvq` in a real terminal as SVG pictures that play: docs/generate.svg and docs/chat.svg.

    python tools/record_terminal.py [NAME...]

Needs tmux, an installed pykvq and smollm2 (`pykvq pull smollm2`). What is shown is what the terminal showed, at the
speed it did; only waits of more than a second are cut short. The picture needs no script: each line of the screen is a
text element with the times at which it is there, and viewers that play nothing show the last screen.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from terminal import Terminal  # noqa: E402

COLUMNS, ROWS = 88, 22
LONGEST_WAIT, END_PAUSE = 1.0, 5.0  # seconds

# What is typed, and after it the text that is awaited
SCENES = {
    "generate": [
        ('pykvq generate smollm2 -p "Why is the sky blue?" --temp 0 -n 70 --kv tier2', "seed: "),
        ('pykvq generate smollm2 --raw -p "The capital of France is" --temp 0 -n 25 --kv kivi4', "seed: "),
    ],
    "chat": [
        ("pykvq chat smollm2 --temp 0 --kv tier2", ">>>"),
        ("Name the three primary colours in one short sentence.", ">>>"),
        ("/read LICENSE", ">>>"),
        ("In one short sentence: what is this text?", ">>>"),
        ("/kv", ">>>"),
        ("/save talk", ">>>"),
        ("/exit", "$ "),
    ],
}


class Frame(NamedTuple):
    """The screen at a time."""

    seconds: float
    lines: list[str]  # with the terminal's colour sequences


# ---- the recording ----


def record(scene: list[tuple[str, str]]) -> list[Frame]:
    """Play a scene; the frames in which something changed, from time 0 on."""
    from pykvq.registry import cache_folder

    frames: list[Frame] = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "LICENSE", folder)
        terminal = Terminal(Path(folder), columns=COLUMNS, rows=ROWS, cache=cache_folder().parent)
        try:
            terminal.expect("$ ")
            for typed, awaited in scene:
                for key in typed:
                    terminal.write(key)
                    _capture(terminal, frames)
                n_before = terminal.text().count(awaited)
                terminal.press("Enter")
                while terminal.text().count(awaited) <= n_before:
                    _capture(terminal, frames)
                _settle(terminal, frames)
        finally:
            terminal.close()
    return _shortened(frames)


def _capture(terminal: Terminal, frames: list[Frame]) -> bool:
    """Add a frame if the screen has changed."""
    lines = terminal.screen().splitlines()
    if frames and frames[-1].lines == lines:
        time.sleep(0.06)
        return False
    frames.append(Frame(time.monotonic(), lines))
    time.sleep(0.04)  # leave the processor to what is shown
    return True


def _settle(terminal: Terminal, frames: list[Frame]) -> None:
    """Wait until the screen has stood still for a while: the end of an answer."""
    still = time.monotonic()
    while time.monotonic() - still < 1.5:
        if _capture(terminal, frames):
            still = time.monotonic()


def _shortened(frames: list[Frame]) -> list[Frame]:
    seconds, last = 0.0, frames[0].seconds
    shortened: list[Frame] = []
    for frame in frames:
        seconds += min(frame.seconds - last, LONGEST_WAIT)
        last = frame.seconds
        shortened.append(Frame(seconds, frame.lines))
    return shortened


# ---- the picture ----

CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 14
COLOURS = ["#484f58", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#e6edf3"]
STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #e6edf3;
       white-space: pre; }
.bold { font-weight: bold; } .dim { fill: #8b949e; }
"""


class Run(NamedTuple):
    """Text of one style."""

    column: int
    text: str
    style: str  # attributes of SVG


def picture(frames: list[Frame]) -> str:
    """The SVG file."""
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, ROWS * CELL_HEIGHT + 2 * MARGIN
    end = frames[-1].seconds + END_PAUSE
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" {size}>',
        f"<style>{STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#0d1117"/>',
    ]
    for row in range(ROWS):
        for begin, stop, line in _intervals(frames, row, end):
            parts.append(_text(row, line, begin / end, stop / end, end))
    return "\n".join([*parts, "</svg>", ""])


def _intervals(frames: list[Frame], row: int, end: float) -> Iterator[tuple[float, float, tuple[Run, ...]]]:
    """When a row of the screen shows what."""
    begin, shown = 0.0, ()
    for frame in frames:
        lines = _parsed(frame.lines)
        line = lines[row] if row < len(lines) else ()
        if line != shown:
            if shown:
                yield begin, frame.seconds, shown
            begin, shown = frame.seconds, line
    if shown:
        yield begin, end, shown


def _parsed(lines: list[str]) -> list[tuple[Run, ...]]:
    """Runs of each line; a style goes on into the next line."""
    codes: set[int] = set()
    parsed: list[tuple[Run, ...]] = []
    for line in lines:
        runs: list[Run] = []
        column = 0
        for piece in re.split(r"(\x1b\[[\d;]*m)", line.rstrip()):
            if piece.startswith("\x1b["):
                codes = _applied(codes, [int(code or 0) for code in piece[2:-1].split(";")])
            elif piece:
                if piece.strip():
                    runs.append(Run(column, piece, _style(codes)))
                column += len(piece)
        parsed.append(tuple(runs))
    return parsed


def _applied(codes: set[int], new: list[int]) -> set[int]:
    """The codes in force after a sequence: 1 bold, 2 dim, 30 to 37 and 90 to 97 colours."""
    for code in new:
        if code == 0:
            codes = set()
        elif code in (1, 2):
            codes = codes | {code}
        elif code == 22:
            codes = codes - {1, 2}
        elif 30 <= code <= 39 or 90 <= code <= 97:
            codes = {c for c in codes if c < 30} | ({code} if code != 39 else set())
    return codes


def _style(codes: set[int]) -> str:
    colour = next((code for code in codes if code >= 30), None)
    classes = ["bold"] * (1 in codes) + ["dim"] * (2 in codes or colour == 90)
    style = f' class="{" ".join(classes)}"' if classes else ""
    return f'{style} style="fill: {COLOURS[colour % 10]}"' if colour not in (None, 37, 90) else style


def _text(row: int, line: tuple[Run, ...], begin: float, end: float, duration: float) -> str:
    """A line of the screen, from a part of the whole time to another."""
    times, values = [0.0], ["inline" if begin == 0 else "none"]
    times += [t for t in (begin, end) if 0 < t < 1]
    values += ["inline"] * (begin > 0) + ["none"] * (end < 1)
    y = MARGIN + (row + 0.75) * CELL_HEIGHT
    spans = "".join(
        f'<tspan x="{MARGIN + run.column * CELL_WIDTH:.1f}" textLength="{len(run.text) * CELL_WIDTH:.1f}"{run.style}>'
        f"{escape(run.text, quote=False)}</tspan>"
        for run in line
    )
    play = (
        f'<animate attributeName="display" values="{";".join(values)}" '
        f'keyTimes="{";".join(f"{t:.5g}" for t in times)}" dur="{duration:.2f}s" '
        'calcMode="discrete" repeatCount="indefinite"/>'
    )
    hidden = "" if end == 1 else ' display="none"'
    return f'<text y="{y:.1f}"{hidden}>{spans}{play if len(times) > 1 else ""}</text>'


def main() -> None:
    """Record the scenes that are named, or all."""
    for name in sys.argv[1:] or SCENES:
        path = ROOT / "docs" / f"{name}.svg"
        path.write_text(picture(record(SCENES[name])), "utf-8")
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
