"""The options that several verbs have: one name, one meaning, one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from . import complete

debug = False  # show tracebacks


def _set_debug(value: bool) -> None:
    global debug
    debug = value


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a name of `pykvq models`, or hf:owner/repo/file.gguf.",
        autocompletion=complete.models,
        show_default=False,
    ),
]
Json = Annotated[bool, Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, Option("--debug", help="Show a traceback after an error.", callback=_set_debug)]
Force = Annotated[bool, Option("--force", help="Replace the file if it is there.")]
Threads = Annotated[
    int | None, Option("--threads", "-t", min=1, help="Default: the cores this process may use.", show_default=False)
]
Device = Annotated[str, Option(help="cpu, cuda, or auto: cuda where it runs.", autocompletion=complete.devices)]
Output = Annotated[Path, Option("--output", "-o", help="The file to write.", show_default=False)]
Batch = Annotated[
    int | None,
    Option(min=1, help="Most tokens in one step; default: 512, on a GPU 2048.", show_default=False),
]
Save = Annotated[
    Path | None,
    Option("--save", help="A file of JSON lines that keeps rows; what it has is not measured again."),
]

# The KV cache
KV = Annotated[
    str | None,
    Option("--kv", help="KV type of the cache, or K/V; default: f16.", autocompletion=complete.kv_types),
]
KVTypes = Annotated[
    str | None,
    Option(
        "--kv",
        help="Comma-separated KV types, or K/V pairs.  [default: all types]",
        show_default=False,
        autocompletion=complete.kv_type_lists,
    ),
]
KVK = Annotated[
    str | None, Option("--kv-k", help="KV type of the keys, if it differs.", autocompletion=complete.kv_types)
]
KVV = Annotated[
    str | None, Option("--kv-v", help="KV type of the values, if it differs.", autocompletion=complete.kv_types)
]
KVLayers = Annotated[str | None, Option("--kv-layers", help="Exceptions by layer: '0-1,-1:TYPE,4:TYPE'.")]
KVSink = Annotated[int | None, Option("--kv-sink", min=0, help="First tokens that stay in f16.")]
KVTail = Annotated[int | None, Option("--kv-tail", min=0, help="Newest tokens that stay in f16.")]

# Answers
System = Annotated[str | None, Option(help="System message.")]
Template = Annotated[
    str | None,
    Option(
        help="Chat template: a jinja file, or a built-in one by name; default: the model's own.",
        autocompletion=complete.templates,
    ),
]
Tools = Annotated[
    Path | None, Option(help="Functions that the model may call: a file with a JSON list of their schemas.")
]
Thinking = Annotated[
    bool | None,
    Option("--think/--no-think", help="Let the model think or not; default: as its template decides."),
]
Temp = Annotated[float, Option(help="Temperature; 0: always the likeliest token.")]
TopK = Annotated[int, Option(help="Keep the k likeliest tokens; 0: off.")]
TopP = Annotated[float, Option(help="Keep the likeliest tokens of this total probability; 1: off.")]
MinP = Annotated[float, Option(help="Drop tokens below this part of the likeliest one's probability; 0: off.")]
Set = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another setting of the sampler, as /set in chat knows it, such as typical_p=0.9, mirostat=2 or "
        "dry_multiplier=0.8; may be repeated.",
        autocompletion=complete.settings,
    ),
]
Seed = Annotated[int | None, Option(help="Of the random numbers; default: drawn, and shown.")]

# How answers are made
JSONSchema = Annotated[
    str | None,
    Option(
        "--json-schema", metavar="FILE|SCHEMA", help="Answer in JSON that this schema allows.  [needs pykvq\\[grammar]]"
    ),
]
Regex = Annotated[str | None, Option(help="Answer what this regular expression matches.")]
Grammar = Annotated[str | None, Option(metavar="FILE", help="Answer in the language of this Lark grammar.")]
Lookup = Annotated[
    bool, Option("--lookup", help="Guess tokens by what followed before; the same text, faster where it repeats.")
]
Draft = Annotated[
    str | None,
    Option(
        metavar="MODEL",
        help="Guess tokens with this smaller model of the same vocabulary; the same text.",
        autocompletion=complete.models,
    ),
]
DraftTokens = Annotated[
    int | None,
    Option(min=1, max=15, help="Most tokens to guess at a time; default: 15 for --lookup, 6 for --draft."),
]
