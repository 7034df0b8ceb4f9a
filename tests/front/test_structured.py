"""Structured output: whatever the sampler and the seed, the text is what the schema, expression or grammar allows."""

import json
import random
import re
import subprocess
import sys

import pytest

import pykvq
from pykvq.grammar import Matcher

FREE = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SAMPLERS = {
    "greedy": {"temp": 0.0},
    "default": {},
    "hot": {"temp": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "filters": FREE | {"top_k": 5, "typical_p": 0.7, "top_n_sigma": 1.0, "top_p": 0.8, "min_p": 0.1},
    "dynamic": FREE | {"temp_range": 0.5},
    "penalties": FREE | {"repeat_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.5, "dry_multiplier": 1},
    "xtc": FREE | {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    "mirostat 1": FREE | {"mirostat": 1},
    "mirostat 2": FREE | {"mirostat": 2},
    "bias": FREE | {"logit_bias": {65: 20.0, 34: -20.0}},
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


@pytest.fixture(scope="module")
def engine(model):
    with pykvq.Engine(model, logits=16, threads=1) as engine:
        yield engine


def run(engine, sampler, **options) -> pykvq.GenerationResult:
    with engine.sequence() as sequence:
        generation = pykvq.generate(sequence, "the", max_tokens=400, sampler=sampler, **options)
        assert "".join(generation) == generation.result.text
        return generation.result


def random_schema(rng: random.Random, depth: int = 0) -> dict:
    """Of bounded size, so that every text that meets it is short."""
    kinds = ["integer", "boolean", "null", "enum", "const", "string"] + ["object", "array", "anyOf"] * (depth < 2)
    match rng.choice(kinds):
        case "integer":
            low = rng.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}
        case "enum":
            return {"enum": rng.sample([1, -7, "a", "two words", None, True, 'quo"te', "\u00e9"], rng.randint(1, 4))}
        case "const":
            return {"const": rng.choice([0, "x", {"k": [1, "y"]}, [None, False]])}
        case "string":
            return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)}
        case "object":
            names = rng.sample(["a", "b", "long name", "d\u00e9"], rng.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": names[: rng.randint(0, len(names))],
                "additionalProperties": False,
            }
        case "array":
            return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": 1, "maxItems": 2}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case simple:
            return {"type": simple}


def same(a, b) -> bool:
    return type(a) is type(b) and a == b


def meets(value, schema: dict) -> bool:
    """Whether a value is what such a schema allows."""
    if "anyOf" in schema:
        return any(meets(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(same(value, allowed) for allowed in schema["enum"])
    if "const" in schema:
        return same(value, schema["const"])
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return type(value) is str and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "object":
            return (
                type(value) is dict
                and set(schema["required"]) <= set(value) <= set(schema["properties"])
                and all(meets(value[name], schema["properties"][name]) for name in value)
            )
        case "array":
            return type(value) is list and 1 <= len(value) <= 2 and all(meets(v, schema["items"]) for v in value)
        case kind:
            return type(value) is {"boolean": bool, "null": type(None)}[kind]


def test_the_check_can_fail():
    assert meets({"a": 3}, {"type": "object", "properties": {"a": {"const": 3}}, "required": ["a"]})
    assert not meets({"a": True}, {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    assert not meets([], {"type": "array", "items": {"type": "null"}})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_random_schemas(engine, sampler):
    rng = random.Random(sampler)
    for seed in range(12):
        schema = random_schema(rng)
        result = run(engine, pykvq.Sampler(**SAMPLERS[sampler], seed=seed), json_schema=schema)
        assert result.finish_reason in ("grammar", "eog"), (schema, result)
        assert meets(json.loads(result.text), schema), (schema, result.text)


def test_any_json(engine):
    ends = set()
    for seed in range(20):
        result = run(engine, pykvq.Sampler(**FREE, seed=seed), json_schema='{"type": ["number", "boolean"]}')
        ends.add(result.finish_reason)
        if result.finish_reason != "length":
            json.loads(result.text)
        assert 0 < result.mask_seconds < result.prompt_seconds + result.decode_seconds
    assert "eog" in ends  # after a digit another may follow, or the end


def test_white_space_ends(model):
    matcher = Matcher(model.tokenizer, json_schema={})
    for token in model.tokenizer.encode('{\n    "a": [\n        1'):
        matcher.push(token)
    for white, allowed in ((" ", True), (" ", False)):
        token = model.tokenizer.encode(white)[0]
        assert bool(matcher.mask()[token // 32] >> token % 32 & 1) == allowed
        if allowed:
            matcher.push(token)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "pattern", ["[a-f]{3}-[0-9]{2}", "(yes|no|perhaps)", "th(e|is) .{1,9}!", "\u00e9{2}[\u4e00-\u9fff]"]
)
def test_regular_expressions(engine, sampler, pattern):
    result = run(engine, pykvq.Sampler(**SAMPLERS[sampler], seed=3), regex=pattern)
    assert re.fullmatch(pattern, result.text)
    assert result.finish_reason in ("grammar", "eog")


GRAMMAR = """
start: sum
sum: number ("+" number){1,3}
number: /[1-9][0-9]?/ | "(" sum ")"
"""


def test_lark_grammar(engine):
    for seed in range(10):
        result = run(engine, pykvq.Sampler(temp=1, seed=seed), grammar=GRAMMAR, ignore_eog=True)
        assert isinstance(eval(result.text, {"__builtins__": {}}), int)


def test_structured_and_speculative(engine):
    for seed in range(4):
        sampler = {"temp": 1.5, "seed": seed}
        plain = run(engine, pykvq.Sampler(**sampler), grammar=GRAMMAR)
        fast = run(engine, pykvq.Sampler(**sampler), grammar=GRAMMAR, lookup=1)
        assert plain.tokens == fast.tokens


def test_the_sampler_is_free_again(engine):
    sampler = pykvq.Sampler(**FREE, seed=1)
    run(engine, sampler, regex="a{3}")
    assert len(set(run(engine, sampler, ignore_eog=True).tokens)) > 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"json_schema": "{"}, "json_schema: it is not JSON"),
        ({"json_schema": "[1]"}, "json_schema: it is not an object"),
        ({"json_schema": {"type": "strng"}}, "json_schema: Invalid type: strng"),
        (
            {"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}},
            "json_schema: Unsatisfiable schema: minimum",
        ),
        ({"regex": "(a"}, "regex: .*invalid regex"),
        ({"grammar": "start: word"}, 'grammar: .*unknown name: "word"'),
        ({"regex": "a", "grammar": "start: /b/"}, "expected one of json_schema, regex, grammar, got 2"),
    ],
)
def test_what_is_wrong_is_said(model, options, sentence):
    with pytest.raises(pykvq.ArgumentError, match=sentence):
        pykvq.generate(model, "the", **options)


def test_what_is_not_supported_is_said(model):
    with pytest.raises(pykvq.UnsupportedError, match="json_schema: Unimplemented keys:.*uniqueItems"):
        pykvq.generate(model, "the", json_schema={"type": "array", "uniqueItems": True})


def test_without_llguidance(tiny_llama):
    code = (
        f"import sys; sys.modules['llguidance'] = None; import pykvq\n"
        f"with pykvq.Model.open({str(tiny_llama)!r}) as model:\n"
        "    try: pykvq.generate(model, 'the', regex='a')\n"
        "    except pykvq.UnsupportedError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'structured output needs llguidance: pip install "pykvq[grammar]"'


def test_vocabularies_are_given_back(tiny_llama):
    import gc

    from pykvq import grammar

    before = len(grammar._vocabularies)
    with pykvq.Model.open(tiny_llama) as model:
        Matcher(model.tokenizer, regex="a")
        assert len(grammar._vocabularies) == before + 1
    del model
    gc.collect()
    assert len(grammar._vocabularies) == before
