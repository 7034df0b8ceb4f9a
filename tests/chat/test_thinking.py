"""Thinking taken apart from the answer, wherever the stream is cut."""

import pytest

from pykvq.chat.thinking import ThinkingSplitter


def split(text, cuts, **options):
    splitter = ThinkingSplitter(**options)
    pieces = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += splitter.push(text[begin:end])
    pieces += splitter.finish()
    return tuple("".join(t for t, is_thinking in pieces if is_thinking is kind) for kind in (True, False))


TEXT = "<think>\nfirst < second\n</think>\n\nThe answer: 1 </thin"


@pytest.mark.parametrize("cut", range(len(TEXT) + 1))
def test_tags_may_be_cut_anywhere(cut):
    assert split(TEXT, [cut]) == ("first < second\n", "The answer: 1 </thin")


def test_every_character_alone():
    assert split(TEXT, range(1, len(TEXT))) == ("first < second\n", "The answer: 1 </thin")


def test_the_prompt_may_have_opened_it():
    assert split("so</think>yes", [3], is_thinking=True) == ("so", "yes")


def test_what_certainly_is_no_tag_is_not_held_back():
    assert [piece.text for piece in ThinkingSplitter().push("1 <")] == ["1 "]
    assert [piece.text for piece in ThinkingSplitter().push("1 <b")] == ["1 <b"]
