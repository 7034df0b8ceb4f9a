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
Batch = Annotated[int, Option(min=1, help="Most tokens in one step.")]
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
JsonSchema = Annotated[
    Path | None,
    Option("--json-schema", help="Answer with JSON that this schema allows: a file.  [needs pykvq\\[grammar]]"),
]
Regex = Annotated[str | None, Option(help="Answer with what this regular expression matches.")]
Grammar = Annotated[Path | None, Option(help="Answer in the language of this Lark grammar: a file.")]
Lookup = Annotated[
    bool, Option("--lookup", help="Guess tokens by what followed the same tokens before; the text is the same, sooner.")
]
Draft = Annotated[
    str | None,
    Option(
        help="Guess tokens with this smaller model of the same vocabulary; the text is the same, sooner.",
        autocompletion=complete.models,
    ),
]
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
Seed = Annotated[int | None, Option(help="Of the random numbers; default: drawn, and shown.")]
