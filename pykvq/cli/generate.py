"""`pykvq generate`: stream the answer to a prompt, or its continuation."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from . import common
from .common import DebugOption, JsonOption, ModelArgument, mib

if TYPE_CHECKING:
    from ..generate import Generation
    from ..model import Model

Template = Option(
    "--chat/--raw",
    help="Answer the prompt by the model's chat template, or continue it as it is; default: --chat if there is one.",
)
Context = Option(
    min=1,
    help="Most tokens of prompt and answer; default: as many as they need, at least 4096, at most as trained.",
)


def generate(
    model: ModelArgument,
    prompt: Annotated[str | None, Option("--prompt", "-p", help="The prompt.")] = None,
    file: Annotated[Path | None, Option("--file", "-f", help="A file with the prompt.")] = None,
    chat: Annotated[bool | None, Template] = None,
    system: Annotated[str | None, Option(help="System message of the chat.")] = None,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, help="Stop after so many tokens.")] = 512,
    stop: Annotated[list[str] | None, Option(help="Stop before this text; may be repeated.")] = None,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Go on after the model's end token.")] = False,
    temp: Annotated[float, Option(help="Temperature; 0: always the likeliest token.")] = 0.2,
    top_k: Annotated[int, Option(help="Keep the k likeliest tokens; 0: off.")] = 40,
    top_p: Annotated[float, Option(help="Keep the likeliest tokens of this total probability; 1: off.")] = 0.95,
    min_p: Annotated[
        float, Option(help="Drop tokens below this part of the likeliest one's probability; 0: off.")
    ] = 0.05,
    seed: Annotated[int | None, Option(help="Of the random numbers; default: drawn, and printed at the end.")] = None,
    ctx: Annotated[int | None, Context] = None,
    threads: Annotated[int | None, Option(min=1, help="Default: the cores this process may use.")] = None,
    device: Annotated[str, Option(help="Where to compute.")] = "cpu",
    kv: common.KVOption = None,
    kv_k: common.KVKOption = None,
    kv_v: common.KVVOption = None,
    kv_layers: common.KVLayersOption = None,
    kv_sink: common.KVSinkOption = None,
    kv_tail: common.KVTailOption = None,
    json: JsonOption = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Show the memory plan before the answer.")] = False,
    debug: DebugOption = False,
) -> None:
    """Stream the answer to a prompt: from --prompt, --file, or standard input.

    The text goes to standard output; the last line, with speed and memory, to standard error.
    """
    text = _read_prompt(prompt, file)
    if system is not None and chat is False:
        raise typer.BadParameter("--system needs the chat template, --raw switches it off")

    import pykvq

    with pykvq.Model.open(common.fetch(model)) as opened:
        tokens = _prompt_tokens(opened, text, chat, system)
        with pykvq.generate(
            opened,
            tokens,
            max_tokens=max_tokens,
            sampler=pykvq.Sampler(temp, top_k, top_p, min_p, seed),
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
        ) as generation:
            if verbose:
                _print_plan(generation)
            with common.on_interrupt(generation.cancel):
                _stream(generation, quiet=json)
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


def _prompt_tokens(model: Model, text: str, chat: bool | None, system: str | None) -> list[int]:
    template = model.chat_template
    if chat or system is not None or (chat is None and template is not None and template.fallback is None):
        messages = [{"role": "system", "content": system}] if system is not None else []
        return model.chat_tokens([*messages, {"role": "user", "content": text}])
    return model.tokenizer.encode(text, parse_special=True)


def _stream(generation: Generation, quiet: bool) -> None:
    for piece in generation:
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
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
    print(
        f"prompt: {result.n_prompt_tokens} tokens, {result.prompt_tokens_per_second:.1f}/s; "
        f"generated: {len(result.tokens)} tokens, {result.decode_tokens_per_second:.1f}/s ({result.finish_reason}); "
        f"context: {result.n_ctx_used} of {plan.n_ctx}; "
        f"KV: {mib(result.n_kv_bytes)} of {mib(plan.n_kv_bytes)}, {plan.kv_bytes_per_token:,.0f} bytes per token, "
        f"{plan.kv_bits_per_element:.2f} bits per element; "
        f"seed: {generation.sampler.seed}",
        file=sys.stderr,
    )


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
