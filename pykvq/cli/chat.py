"""`pykvq chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from . import common
from .common import DebugOption, ModelArgument

if TYPE_CHECKING:
    from ..chat.conversation import Conversation
    from ..chat.repl import Console


def chat(
    model: ModelArgument,
    system: Annotated[str | None, Option(help="System message.")] = None,
    load: Annotated[Path | None, Option(help="Continue a conversation kept by /save.")] = None,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, help="Most tokens of one answer.")] = 1024,
    overflow: Annotated[str, Option(help="When the context is full: drop the oldest turns, or stop.")] = "drop",
    temp: Annotated[float, Option(help="Temperature; 0: always the likeliest token.")] = 0.2,
    top_k: Annotated[int, Option(help="Keep the k likeliest tokens; 0: off.")] = 40,
    top_p: Annotated[float, Option(help="Keep the likeliest tokens of this total probability; 1: off.")] = 0.95,
    min_p: Annotated[
        float, Option(help="Drop tokens below this part of the likeliest one's probability; 0: off.")
    ] = 0.05,
    seed: Annotated[int | None, Option(help="Of the random numbers; default: drawn.")] = None,
    ctx: Annotated[int | None, Option(min=1, help="Most tokens of the conversation; default: 4096.")] = None,
    threads: Annotated[int | None, Option(min=1, help="Default: the cores this process may use.")] = None,
    device: Annotated[str, Option(help="Where to compute.")] = "cpu",
    kv: Annotated[str | None, Option(help="How the KV cache is stored; default: f16.")] = None,
    debug: DebugOption = False,
) -> None:
    """Talk with a model. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.

    Without a terminal every line of standard input is a message; answers go to standard output, notes to standard
    error.
    """
    if overflow not in ("drop", "stop"):
        raise typer.BadParameter(f"--overflow {overflow}: expected drop or stop")

    import pykvq

    from ..chat.conversation import Conversation
    from ..chat.repl import Repl
    from ..chat.settings import Settings

    with (
        pykvq.Model.open(common.fetch(model)) as opened,
        pykvq.Engine(opened, ctx=ctx, threads=threads, device=device, kv=kv) as engine,
        engine.sequence() as sequence,
    ):
        conversation = Conversation(
            sequence,
            system=system and common.read_argument(system, "--system"),
            max_tokens=max_tokens,
            overflow=overflow,
        )
        settings = Settings(conversation, temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        console = _console(conversation)
        if load is not None and (refusal := conversation.load(load)):
            console.note(f"the cache is computed again: {refusal}")
        Repl(conversation, settings, console, common.on_interrupt).run()


def _console(conversation: Conversation) -> Console:
    from ..chat.console import PlainConsole, TerminalConsole
    from ..chat.report import status_line
    from ..registry import cache_folder

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainConsole()
    console = TerminalConsole(cache_folder() / "chat_history", lambda: status_line(conversation))
    console.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    return console
