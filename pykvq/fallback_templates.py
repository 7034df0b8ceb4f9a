"""Chat templates for files that carry none, each chosen by the control tokens that only its family of models has."""

from __future__ import annotations

from typing import NamedTuple


class FallbackTemplate(NamedTuple):
    """The template of a family of models."""

    tokens: tuple[str, ...]  # what the vocabulary must have
    source: str  # jinja2


_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Neither of these two has a system turn: its text goes in front of the first question
_SYSTEM_IN_FIRST = """\
{%- set system = '' %}
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
"""

_GEMMA = (
    _SYSTEM_IN_FIRST
    + """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- (system if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""
)


def _mistral(space: str) -> str:
    return (
        _SYSTEM_IN_FIRST
        + """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- 'SPACE' + message.content | trim + eos_token }}
    {%- else %}
        {{- '[INST]SPACE' + (system if loop.first else '') + message.content + '[/INST]' }}
    {%- endif %}
{%- endfor %}""".replace("SPACE", space)
    )


_PHI = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}"""

# The first whose tokens are all there is taken
FALLBACKS = {
    "llama3": FallbackTemplate(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _LLAMA3),
    "gemma": FallbackTemplate(("<start_of_turn>", "<end_of_turn>"), _GEMMA),
    "mistral": FallbackTemplate(("[INST]", "[/INST]", "\u2581the"), _mistral(" ")),  # SentencePiece
    "mistral-tekken": FallbackTemplate(("[INST]", "[/INST]"), _mistral("")),
    "phi": FallbackTemplate(("<|user|>", "<|assistant|>", "<|end|>"), _PHI),
    "chatml": FallbackTemplate(("<|im_start|>", "<|im_end|>"), _CHATML),
}
