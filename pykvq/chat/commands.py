"""The slash commands: what is typed after the slash, and what it does to a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ArgumentError, FileError, FormatError
from . import report
from .settings import Settings

if TYPE_CHECKING:
    from .repl import Repl


class Command(NamedTuple):
    """A slash command. `run` gets the rest of the line and returns lines to show."""

    run: Callable[[Repl, str], Iterator[str]]
    usage: str
    summary: str


def run(repl: Repl, line: str) -> Iterator[str]:
    """Run a line that begins with a slash.

    Raises:
        ArgumentError: there is no such command.
    """
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean /{near[0]}? " if near else ""
        raise ArgumentError(f"/{name}: no such command; {meant}/help lists them")
    return COMMANDS[name].run(repl, argument.strip())


def _help(repl: Repl, argument: str) -> Iterator[str]:
    for command in COMMANDS.values():
        yield f"{command.usage:22} {command.summary}"
    yield 'A message of several lines stands between lines of """; in a terminal Alt-Enter begins a new line.'


def _system(repl: Repl, argument: str) -> Iterator[str]:
    if argument:
        repl.conversation.system = None if argument == "none" else argument
    yield f"system: {repl.conversation.system or 'none'}"


def _set(repl: Repl, argument: str) -> Iterator[str]:
    name, _, value = argument.partition(" ")
    if not value:
        raise ArgumentError("/set: expected a name and a value, as in /set temp 0.7")
    repl.settings.set(name, value.strip())
    yield f"{name}: {repl.settings.values()[name]}"


def _show(repl: Repl, argument: str) -> Iterator[str]:
    conversation = repl.conversation
    match argument or "settings":
        case "settings":
            for name, value in repl.settings.values().items():
                yield f"{name}: {value}"
        case "system":
            yield f"system: {conversation.system or 'none'}"
        case "model":
            info = conversation.model.info
            yield f"{conversation.model.path}: {info.arch}, {info.n_params:,} parameters, {info.n_layer} layers"
        case "template":
            template = conversation.model.chat_template
            yield template.source if template else "none"
        case "messages":
            for i, message in enumerate(conversation.messages):
                is_dropped = i < conversation.n_dropped_messages
                yield f"{message['role']}{' (dropped)' if is_dropped else ''}: {message['content']}"
        case other:
            raise ArgumentError(f"/show: {other!r}, expected {', '.join(SHOWN)}")


def _regen(repl: Repl, argument: str) -> Iterator[str]:
    repl.show(repl.conversation.ask_again())
    return iter(())


def _undo(repl: Repl, argument: str) -> Iterator[str]:
    yield f"taken back: {repl.conversation.take_back()}"


def _edit(repl: Repl, argument: str) -> Iterator[str]:
    question = repl.conversation.question()
    changed = argument or repl.edit(question)
    if changed:
        repl.show(repl.conversation.ask_again(changed))
    else:
        yield "unchanged"


def _tool(repl: Repl, argument: str) -> Iterator[str]:
    if not argument:
        raise ArgumentError("/tool: expected the result of the call")
    repl.show(repl.conversation.ask(argument, role="tool"))
    return iter(())


def _save(repl: Repl, argument: str) -> Iterator[str]:
    path = _file_name("/save", argument)
    repl.conversation.save(path)
    yield f"saved {_count(repl)} to {path}, the cache to {path}.kv"


def _load(repl: Repl, argument: str) -> Iterator[str]:
    path = _file_name("/load", argument)
    refusal = repl.conversation.load(path)
    yield f"loaded {_count(repl)}"
    if refusal is None:
        yield f"the cache of {len(repl.conversation.sequence)} tokens is back"
    else:
        yield f"the cache is not, the next answer computes it: {refusal}"


def _read(repl: Repl, argument: str) -> Iterator[str]:
    path = _file_name("/read", argument)
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text, byte {error.start} is 0x{error.object[error.start]:02x}") from None
    repl.attached += f"{text}\n"
    yield f"{path}: {len(text):,} characters go in front of your next message"


def _kv(repl: Repl, argument: str) -> Iterator[str]:
    if argument:
        repl.switch_kv(argument)
        yield f"the cache is {argument} from here on, and has read the conversation anew"
    yield from report.kv_table(repl.conversation.sequence.kv_layers(), repl.columns)


def _think(repl: Repl, argument: str) -> Iterator[str]:
    if argument not in ("", *THINKING):
        raise ArgumentError(f"/think: {argument!r}, expected {', '.join(THINKING)}")
    conversation = repl.conversation
    if argument == "hide":
        repl.shows_thinking = False
    elif argument:
        conversation.thinking = repl.shows_thinking = argument == "on"
    thinking = {None: "as the template decides", True: "on", False: "off"}[conversation.thinking]
    yield f"thinking: {thinking}, {'shown' if repl.shows_thinking else 'hidden'}"
    template = conversation.model.chat_template
    if conversation.thinking is not None and template and "enable_thinking" not in template.source:
        yield "the model's chat template has no such switch; the model thinks as it was trained to"


def _stats(repl: Repl, argument: str) -> Iterator[str]:
    return report.statistics(repl.conversation)


def _clear(repl: Repl, argument: str) -> Iterator[str]:
    repl.conversation.clear()
    repl.attached = ""
    yield "cleared; the system message stays"


def _exit(repl: Repl, argument: str) -> Iterator[str]:
    repl.is_done = True
    return iter(())


def _count(repl: Repl) -> str:
    n = len(repl.conversation.messages)
    return f"{n} message{'' if n == 1 else 's'}"


def _file_name(command: str, argument: str) -> str:
    if not argument:
        raise ArgumentError(f"{command}: expected a file name")
    return str(Path(argument).expanduser())


SHOWN = ("settings", "system", "model", "template", "messages")
THINKING = ("on", "off", "hide")
COMMANDS = {
    "help": Command(_help, "/help", "this list"),
    "system": Command(_system, "/system TEXT", "set the system message, none to remove it, nothing to show it"),
    "set": Command(_set, "/set NAME VALUE", "change a setting: /set temp 0.7; /show settings lists them"),
    "show": Command(_show, "/show WHAT", f"{', '.join(SHOWN)}"),
    "regen": Command(_regen, "/regen", "answer the last message again"),
    "undo": Command(_undo, "/undo", "take the last message and its answer back"),
    "edit": Command(_edit, "/edit [TEXT]", "change the last message and answer it"),
    "tool": Command(_tool, "/tool RESULT", "give the model the result of a tool that it called"),
    "save": Command(_save, "/save FILE", "keep the conversation and its KV cache in FILE and FILE.kv"),
    "load": Command(_load, "/load FILE", "continue a conversation kept by /save"),
    "read": Command(_read, "/read FILE", "put a text file in front of the next message"),
    "kv": Command(_kv, "/kv [TYPE]", "what the cache of each layer uses, against f16; change its KV type"),
    "think": Command(_think, "/think on|off|hide", "let the model think or not; on also shows it, hide hides it"),
    "stats": Command(_stats, "/stats", "speed and memory of the last answer"),
    "clear": Command(_clear, "/clear", "forget all messages"),
    "exit": Command(_exit, "/exit", "leave, as Ctrl-D does"),
}
SETTINGS = Settings.names()
