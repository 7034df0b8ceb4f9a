"""`pykvq chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from . import common, options

if TYPE_CHECKING:
    from ..chat.conversation import Conversation
    from ..chat.repl import Console
    from ..engine import EngineOptions, Sequence

EXAMPLES = """
pykvq chat smollm2
pykvq chat smollm2 --kv tier2 --ctx 8192 --system "You are terse."
pykvq chat smollm2 --load talk  # go on with what /save talk has kept
pykvq chat model.gguf --tools tools.json --no-think
"""
_OVERFLOW = ("drop", "stop")


def chat(
    model: options.Model,
    system: options.System = None,
    template: options.Template = None,
    tools: options.Tools = None,
    think: options.Thinking = None,
    load: Annotated[Path | None, Option(help="Continue a conversation kept by /save.")] = None,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, help="Most tokens of one answer.")] = 1024,
    overflow: Annotated[
        str,
        Option(
            help="When the context is full: drop the oldest turns, or stop.",
            autocompletion=lambda: _OVERFLOW,
        ),
    ] = "drop",
    temp: options.Temp = 0.2,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    set_: options.Set = None,
    seed: options.Seed = None,
    json_schema: options.JSONSchema = None,
    regex: options.Regex = None,
    grammar: options.Grammar = None,
    lookup: options.Lookup = False,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = None,
    ctx: Annotated[
        int | None, Option(min=1, help="Most tokens of the conversation; default: as trained, at most 4096.")
    ] = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    kv: options.KV = None,
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    debug: options.Debug = False,
) -> None:
    """Talk with a model. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.

    Without a terminal every line of standard input is a message; answers go to standard output, notes to standard
    error.
    """
    common.choose(overflow, _OVERFLOW, "--overflow")
    functions = common.read_tools(tools)

    import pykvq

    from ..chat.conversation import Conversation
    from ..chat.repl import Repl
    from ..chat.settings import Settings
    from ..generate import DRAFT_LOGITS

    settings: EngineOptions = {
        "ctx": ctx,
        "threads": threads,
        "device": device,
        "kv": kv,
        "kv_k": kv_k,
        "kv_v": kv_v,
        "kv_layers": kv_layers,
        "kv_sink": kv_sink,
        "kv_tail": kv_tail,
        "logits": DRAFT_LOGITS,  # for /set lookup
    }
    to_set = common.read_settings(set_)
    to_set |= {
        name: text for name, text in (("json_schema", json_schema), ("regex", regex), ("grammar", grammar)) if text
    }
    with (
        pykvq.Model.open(common.fetch(model)) as opened,  # which closes its engines
        common.answer_options(lookup=lookup, draft=draft, draft_tokens=draft_tokens) as answers,
    ):
        template_note = common.use_template(opened, template)

        def open_sequence(kv: str) -> Sequence:
            others: EngineOptions = {"kv": kv, "kv_k": None, "kv_v": None, "kv_layers": None}
            return pykvq.Engine(opened, **{**settings, **others}).sequence()

        conversation = Conversation(
            pykvq.Engine(opened, **settings).sequence(),
            system=system and common.read_argument(system, "--system"),
            max_tokens=max_tokens,
            overflow="stop" if overflow == "stop" else "drop",
            thinking=think,
            tools=functions,
        )
        conversation.options.update(answers)
        if isinstance(small := answers.get("draft"), pykvq.Model):  # whose cache follows the conversation too
            conversation.options["draft"] = pykvq.Engine(small, ctx=conversation.sequence.engine.plan.n_ctx).sequence()
        common.warn_if_unfit(conversation.sequence)
        sampling = Settings(conversation, temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        for name, value in to_set.items():
            sampling.set(name, value)
        console = _console(conversation)
        if template_note:
            console.note(template_note)
        if load is not None and (refusal := conversation.load(load)):
            console.note(f"the cache is computed again: {refusal}")
        Repl(conversation, sampling, console, common.on_interrupt, open_sequence).run()


def _console(conversation: Conversation) -> Console:
    from ..chat.console import PlainConsole, TerminalConsole
    from ..chat.report import status_line
    from ..registry import cache_folder

    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        return PlainConsole()
    console = TerminalConsole(cache_folder() / "chat_history", lambda: status_line(conversation))
    console.note(_headline(conversation))
    console.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    return console


def _headline(conversation: Conversation) -> str:
    info, plan = conversation.model.info, conversation.sequence.engine.plan
    kinds = list(dict.fromkeys(f"{layer.type_k}/{layer.type_v}" for layer in conversation.sequence.kv_layers()))
    cache = " and ".join(k.split("/")[0] if len(set(k.split("/"))) == 1 else k for k in kinds)
    name = info.name or Path(conversation.model.path).stem
    return f"{name}: {_count(info.n_params)} parameters, context {plan.n_ctx:,}, KV cache {cache}"


def _count(n: int) -> str:
    unit, name = next(((u, name) for u, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if n >= u), (1, ""))
    return f"{n / unit:.3g} {name}"
