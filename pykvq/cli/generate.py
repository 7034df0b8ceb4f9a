"""`pykvq generate`: stream the answer to a prompt, or its continuation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from . import common, options
from .common import mib

if TYPE_CHECKING:
    from ..generate import Generation
    from ..model import Model

EXAMPLES = """
pykvq generate smollm2 -p "Why is the sky blue?"
pykvq generate smollm2 --raw -p "Once upon a time" -n 100 --temp 0.8
pykvq generate smollm2 --file notes.txt --system "Summarize in one sentence." --kv tier2
pykvq generate smollm2 -p "A city, as JSON." --json-schema city.schema.json
pykvq generate smollm2 -p "Name a color." --regex "(red|green|blue)"
git diff | pykvq generate model.gguf --kv kivi4 --ctx 32768 --json
"""


def generate(
    model: options.Model,
    prompt: Annotated[str | None, Option("--prompt", "-p", help="The prompt.")] = None,
    file: Annotated[Path | None, Option("--file", "-f", help="A file with the prompt.")] = None,
    chat: Annotated[
        bool | None,
        Option(
            "--chat/--raw",
            help="Answer the prompt by the model's chat template, or continue it as it is; "
            "default: --chat if the file has a template.",
        ),
    ] = None,
    system: options.System = None,
    template: options.Template = None,
    tools: options.Tools = None,
    think: options.Thinking = None,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, help="Stop after so many tokens.")] = 512,
    stop: Annotated[list[str] | None, Option(help="Stop before this text; may be repeated.")] = None,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Go on after the model's end token.")] = False,
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
        int | None,
        Option(
            min=1,
            help="Most tokens of prompt and answer; default: as many as they need, at least 4096, at most as trained.",
        ),
    ] = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    kv: options.KV = None,
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    json: options.Json = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Show the memory plan before the answer.")] = False,
    debug: options.Debug = False,
) -> None:
    """Stream the answer to a prompt: from --prompt, --file, or standard input.

    The text goes to standard output; the last line, with speed and memory, to standard error.
    """
    text = _read_prompt(prompt, file)
    is_asked = {"--system": system, "--template": template, "--tools": tools, "--think": think}
    for name, value in is_asked.items():
        if value is not None and chat is False:
            raise typer.BadParameter(f"{name} needs the chat template, --raw switches it off")
    chat = True if any(value is not None for value in is_asked.values()) else chat

    import pykvq

    from ..sampling import make_sampler, read_setting

    settings = {name: read_setting(name, value) for name, value in common.read_settings(set_).items()}
    settings = {"temp": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed} | settings
    with (
        pykvq.Model.open(common.fetch(model)) as opened,
        common.answer_options(
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
            lookup=lookup,
            draft=draft,
            draft_tokens=draft_tokens,
        ) as answers,
    ):
        note = common.use_template(opened, template)
        if _is_chat(opened, chat):
            variables = {} if think is None else {"enable_thinking": think}
            tokens = _chat_tokens(opened, text, system, tools=common.read_tools(tools), **variables)
            if note:
                print(common.dimmed(note), file=sys.stderr)
        else:
            tokens = opened.tokenizer.encode(text, parse_special=True)
        with pykvq.generate(
            opened,
            tokens,
            max_tokens=max_tokens,
            sampler=make_sampler(opened.tokenizer, settings),
            stop=stop or (),
            ignore_eog=ignore_eos,
            ctx=ctx or min(opened.info.n_ctx_train, max(4096, len(tokens) + max_tokens)),
            threads=threads,
            device=device,
            kv=kv,
            kv_k=kv_k,
            kv_v=kv_v,
            kv_layers=kv_layers,
            kv_sink=kv_sink,
            kv_tail=kv_tail,
            **answers,
        ) as generation:
            common.warn_if_unfit(generation.sequence)
            if verbose:
                _print_plan(generation)
            with common.on_interrupt(generation.cancel), common.reading(generation) as is_read:
                _stream(generation, is_read, quiet=json)
    if json:
        _print_json(generation, opened.path)
    else:
        _print_statistics(generation)
    if generation.result.finish_reason == "cancelled":
        raise typer.Exit(130)


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt; of a file or standard input without the newline at its end."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("--prompt and --file exclude each other")
    if prompt is not None:
        text = common.read_argument(prompt, "--prompt")
    else:
        text = (common.read_file(file) if file else common.read_standard_input("--prompt")).removesuffix("\n")
    if not text:
        from ..errors import ArgumentError

        raise ArgumentError("prompt: it is empty")
    return text


def _is_chat(model: Model, chat: bool | None) -> bool:
    """Whether to use the template: as asked for, or if the file has one of its own."""
    template = model.chat_template
    return (template is not None and template.fallback is None) if chat is None else chat


def _chat_tokens(model: Model, text: str, system: str | None, **variables: Any) -> list[int]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.chat_tokens([*messages, {"role": "user", "content": text}], **variables)


def _stream(generation: Generation, is_read: Callable[[], None], quiet: bool) -> None:
    for piece in generation:
        is_read()
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    is_read()
    if not quiet and not generation.result.text.endswith("\n"):
        print(flush=True)


def _print_plan(generation: Generation) -> None:
    plan = generation.plan
    print(
        f"{plan.n_threads} threads; weights {mib(plan.n_weight_bytes)}, KV cache {mib(plan.n_kv_bytes)}, "
        f"scratch {mib(plan.n_scratch_bytes)}",
        file=sys.stderr,
    )


def _print_statistics(generation: Generation) -> None:
    result, plan = generation.result, generation.plan
    guessed = f"guessed right: {result.n_accepted} of {result.n_drafted}; " if result.n_drafted else ""
    line = (
        f"prompt: {result.n_prompt_tokens} tokens, {result.prompt_tokens_per_second:.1f}/s; "
        f"generated: {len(result.tokens)} tokens, {result.decode_tokens_per_second:.1f}/s ({result.finish_reason}); "
        f"{guessed}context: {result.n_ctx_used} of {plan.n_ctx}; "
        f"KV: {mib(result.n_kv_bytes)} of {mib(plan.n_kv_bytes)}, {plan.kv_bytes_per_token:,.0f} bytes per token, "
        f"{plan.kv_bits_per_element:.2f} bits per element; "
        f"seed: {generation.sampler.seed}"
    )
    print(common.dimmed(line), file=sys.stderr)


def _print_json(generation: Generation, path: str) -> None:
    from json import dumps

    result = generation.result
    speeds: dict[str, Any] = {
        "prompt_tokens_per_second": result.prompt_tokens_per_second,
        "decode_tokens_per_second": result.decode_tokens_per_second,
    }
    record = (
        {"model": path} | asdict(result) | speeds | {"seed": generation.sampler.seed, "plan": asdict(generation.plan)}
    )
    print(dumps(record, ensure_ascii=False))
