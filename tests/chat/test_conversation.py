"""Conversations: reuse of the cache, full contexts, saving, taking back."""

import pytest

import pykvq
from pykvq.chat import Conversation


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


@pytest.fixture
def make(model):
    engines = []

    def begin(ctx=512, kv=None, **options):
        engines.append(pykvq.Engine(model, ctx=ctx, kv=kv))
        defaults = {"sampler": pykvq.Sampler(temp=0), "max_tokens": 12}
        return Conversation(engines[-1].sequence(), **defaults | options)

    yield begin
    for engine in engines:
        engine.close()


def answer(conversation, question):
    return "".join(piece.text for piece in conversation.ask(question))


def test_needs_a_template(tiny_llama_without_template):
    with (
        pykvq.Model.open(tiny_llama_without_template) as model,
        pykvq.Engine(model) as engine,
        engine.sequence() as sequence,
        pytest.raises(pykvq.UnsupportedError, match="no chat template"),
    ):
        Conversation(sequence)


def test_turns_alternate_and_the_question_before_is_in_the_cache(make):
    talk = make(system="Be short.")
    answer(talk, "one")
    answer(talk, "two")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[2]["content"] == "two"
    question = talk.model.chat_tokens([{"role": "system", "content": "Be short."}, talk.messages[0]])
    assert talk.generation.result.n_reused_tokens >= len(question)


def test_taken_back_and_asked_again_is_the_same(make):
    talk = make()
    first = answer(talk, "one")
    assert talk.take_back() == "one"
    assert talk.messages == []
    assert answer(talk, "one") == first
    talk.clear()
    with pytest.raises(pykvq.ArgumentError, match="no question yet"):
        talk.take_back()


def test_saved_and_loaded_continues_the_same(make, tmp_path):
    talk = make(kv="q8_0", system="Be short.")
    answer(talk, "one")
    talk.save(tmp_path / "talk")
    other = make(kv="q8_0")
    assert other.load(tmp_path / "talk") is None
    assert (other.system, other.messages) == (talk.system, talk.messages)
    assert other.sequence.tokens == talk.sequence.tokens
    assert answer(other, "two") == answer(talk, "two")
    assert other.generation.result.n_reused_tokens == talk.generation.result.n_reused_tokens > 0


def test_a_cache_of_other_settings_is_refused_and_the_turns_are_kept(make, tmp_path):
    talk = make(kv="q8_0")
    answer(talk, "one")
    talk.save(tmp_path / "talk")
    other = make(kv="f16")
    assert isinstance(other.load(tmp_path / "talk"), pykvq.PykvqError)
    assert other.messages == talk.messages
    answer(other, "two")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "pykvq chat 2", "system": null, "messages": []}',
        '{"format": "pykvq chat 1", "system": 1, "messages": []}',
        '{"format": "pykvq chat 1", "system": null, "messages": [{"role": "user"}]}',
        '{"format": "pykvq chat 1", "system": null, "messages": [{"role": "user", "content": 1}]}',
        '{"format": "pykvq chat 1", "system": null, "messages": [{"role": "judge", "content": "x"}]}',
        '{"format": "pykvq chat 1", "system": null, "messages": [], "n_dropped": -1}',
    ],
)
def test_other_files_are_refused(make, tmp_path, text):
    (tmp_path / "bad").write_text(text)
    talk = make()
    with pytest.raises(pykvq.FormatError, match="bad: not a"):
        talk.load(tmp_path / "bad")
    with pytest.raises(pykvq.FileError, match="missing"):
        talk.load(tmp_path / "missing")


def test_a_full_context_drops_the_oldest_turns(make):
    talk = make(ctx=128, overflow="drop")
    for i in range(6):
        answer(talk, f"question {i}")
    assert 0 < talk.n_dropped < 5
    assert [m["content"] for m in talk.messages[::2]] == [f"question {i}" for i in range(6)]
    kept = talk.model.tokenizer.decode(talk.sequence.tokens)
    assert [f"question {i}" in kept for i in range(6)] == [i >= talk.n_dropped for i in range(6)]
    assert len(talk.sequence) <= 128
    with pykvq.Engine(talk.model, ctx=512) as larger:  # has room for all of them
        talk.sequence = larger.sequence()
        answer(talk, "the last one")
        assert talk.n_dropped == 0
        assert "question 0" in talk.model.tokenizer.decode(talk.sequence.tokens)


def test_dropped_turns_are_saved_and_loaded(make, tmp_path):
    talk = make(ctx=128)
    for i in range(6):
        answer(talk, f"question {i}")
    talk.save(tmp_path / "talk")
    other = make(ctx=128)
    assert other.load(tmp_path / "talk") is None
    assert (other.messages, other.n_dropped) == (talk.messages, talk.n_dropped)
    assert len(other.messages) == 12
    kept = other.messages[other.n_dropped_messages :]
    assert kept[0] == {"role": "user", "content": f"question {other.n_dropped}"}
    assert [*other.reread()][-1][0] == len(other.model.chat_tokens(kept, add_generation_prompt=False))
    for _ in range(6):
        other.take_back()
        assert other.n_dropped_messages < max(len(other.messages), 1)
    assert answer(other, "one") == answer(make(ctx=128), "one")


def test_a_full_context_stops_and_changes_nothing(make):
    talk = make(ctx=128, overflow="stop")
    with pytest.raises(pykvq.FullError, match="do not fit its 128 tokens"):
        for i in range(6):
            before = len(talk.messages)
            answer(talk, f"question {i}")
    assert len(talk.messages) == before > 0
    with pytest.raises(pykvq.FullError):
        answer(make(ctx=128, overflow="drop"), "x" * 300)  # one question alone


def test_an_answer_left_early_is_kept(make):
    talk = make()
    pieces = talk.ask("one")
    first = next(pieces).text
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first.rstrip()}


def test_cancelled_before_the_first_token(make):
    talk = make()
    talk._prompt = lambda *a, prompt=talk._prompt: (talk.cancel(), prompt(*a))[
        1
    ]  # Ctrl-C while the prompt is being made
    assert answer(talk, "one") == ""
    assert talk.generation.result.finish_reason == "cancelled"
    del talk._prompt
    assert answer(talk, "two") != ""


def test_layers_add_up_to_the_sequence(make):
    talk = make(kv="kivi2", ctx=512)
    answer(talk, "x" * 350)
    layers = talk.sequence.kv_layers()
    assert len(layers) == talk.model.info.n_layer
    assert {(layer.type_k, layer.type_v) for layer in layers} == {("kivi2", "kivi2")}
    assert sum(layer.n_bytes for layer in layers) == talk.sequence.n_kv_bytes
    assert all(0 < layer.n_encoded < layer.n_held and layer.n_bytes < layer.n_f16_bytes for layer in layers)
