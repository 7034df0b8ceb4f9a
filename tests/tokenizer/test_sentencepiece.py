"""SentencePiece BPE gives the ids of the sentencepiece library."""

import io
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pykvq.errors import ArgumentError
from pykvq.tokenizer import Tokenizer

from .texts import CORPUS, TRICKY

USER_DEFINED = ["<b>", "</b>", "\n\n"]
KINDS = {
    "llama": {"byte_fallback": True, "add_dummy_prefix": True, "user_defined_symbols": []},
    "gemma": {
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": [*USER_DEFINED, "\u2581\u2581"],
    },
    "no bytes": {"byte_fallback": False, "add_dummy_prefix": True, "user_defined_symbols": []},
}
# runs make ties between overlapping merges, where an order of pairs and an order of unions part ways
PIECES = st.sampled_from(["a", "aa", "=", "==", " ", "  ", "-", "ha", "0", "the", "\n", "\t", "e\u0301", "\u4e2d"])
TEXTS = (st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=30)).map("".join)


def train(kind):
    model = io.BytesIO()
    lines = [line for line in CORPUS.splitlines() for _ in range(2)] + ["a" * n + " " + "=" * n for n in range(1, 20)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=800,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=True,
        character_coverage=0.98,
        minloglevel=2,
        **KINDS[kind],
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata_of(sp, kind):
    def token_type(i):
        if sp.is_unknown(i):
            return 2
        if sp.is_control(i):
            return 3
        if sp.is_byte(i):
            return 6
        return 4 if sp.id_to_piece(i) in KINDS[kind]["user_defined_symbols"] else 1

    n_vocab = sp.get_piece_size()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [sp.id_to_piece(i) for i in range(n_vocab)],
        "tokenizer.ggml.scores": [sp.get_score(i) for i in range(n_vocab)],
        "tokenizer.ggml.token_type": [token_type(i) for i in range(n_vocab)],
        "tokenizer.ggml.bos_token_id": sp.bos_id(),
        "tokenizer.ggml.eos_token_id": sp.eos_id(),
        "tokenizer.ggml.unknown_token_id": sp.unk_id(),
        "tokenizer.ggml.add_space_prefix": KINDS[kind]["add_dummy_prefix"],
    }


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    sp = train(request.param)
    return request.param, sp, Tokenizer.from_metadata(metadata_of(sp, request.param))


def test_ids(pair):
    _, sp, tokenizer = pair
    for text in [*TRICKY, *CORPUS.splitlines(), CORPUS]:
        assert tokenizer.encode(text, add_bos=False) == sp.encode(text), repr(text)
        assert tokenizer.encode(text) == [sp.bos_id(), *sp.encode(text)], repr(text)


def test_random_text(pair):
    kind, sp, tokenizer = pair

    @settings(max_examples=400, deadline=None)
    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == sp.encode(text)
        if kind != "no bytes" and "\u2581" not in text:
            assert tokenizer.decode(ids) == text

    check()


def merge_by_definition(word, scores):
    """Join the neighbours whose union has the best score, leftmost first, one pair at a time."""
    pieces = list(word)
    while True:
        unions = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not unions:
            return pieces
        i = min(unions)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@settings(max_examples=400, deadline=None)
@given(
    scores=st.dictionaries(st.text("ab", min_size=2, max_size=7), st.integers(0, 6), min_size=4, max_size=40),
    word=st.text("ab", max_size=24),
)
@example(scores={"bba": 4, "bb": 5, "ab": 4, "bbaa": 0, "bbbb": 0, "ba": 8}, word="bbbabb")  # outdated pairs
def test_merging_any_vocabulary(scores, word):
    scores = {"a": 0, "b": 0} | scores
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(scores),
        "tokenizer.ggml.scores": [float(score) for score in scores.values()],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = Tokenizer.from_metadata(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode(word)] == merge_by_definition(word, scores)


def test_long_runs(pair):
    _, sp, tokenizer = pair
    for text in ["a" * 999, "=" * 1000, " " * 333, "ab " * 300, "\u4e2d" * 200]:
        assert tokenizer.encode(text, add_bos=False) == sp.encode(text)


@pytest.fixture(scope="module")
def llama():
    return train("llama")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=20))
def test_bytes_survive(llama, data):
    tokenizer = Tokenizer.from_metadata(metadata_of(llama, "llama"))
    data = data.replace(b"\xe2\x96\x81", b"")  # the sign that stands for a space
    assert tokenizer.decode_bytes(tokenizer.encode(data, add_bos=False)) == data


def test_without_bytes_and_unknown_token_the_text_is_refused(llama):
    metadata = metadata_of(train("no bytes"), "no bytes")
    del metadata["tokenizer.ggml.unknown_token_id"]
    metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.token_type"].index(2)] = "<other>"
    with pytest.raises(ArgumentError, match="has no token in this vocabulary, which has no unknown token either"):
        Tokenizer.from_metadata(metadata).encode("\U0001f980")


def test_control_tokens_are_never_merged_from_text(llama):
    metadata = metadata_of(llama, "llama")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    steps = {"</", "</s"} - set(tokens)  # lead to the control token "</s>", whose score is the best of all
    tokens += steps
    types += [1] * len(steps)
    metadata["tokenizer.ggml.scores"] += [-0.1] * len(steps)
    tokenizer = Tokenizer.from_metadata(metadata)
    eos = tokens.index("</s>")
    assert eos not in tokenizer.encode("a</s>b")
    assert tokenizer.encode("a</s>b", parse_special=True).count(eos) == 1


def test_words_that_tokens_reach_over(llama):
    metadata = metadata_of(llama, "llama")
    metadata["tokenizer.ggml.tokens"] += ["a\u2581", "a\u2581a"]
    metadata["tokenizer.ggml.token_type"] += [1, 1]
    metadata["tokenizer.ggml.scores"] += [10.0, 11.0]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.token_text(tokenizer.encode("a a", add_bos=False)[-1]) == "a\u2581a"
