"""What is verified of a new file before it appears at its path."""

from __future__ import annotations

from pathlib import Path

from ..errors import FormatError
from ..gguf import GGUFFile
from ..model import Model
from ..tokenizer import Tokenizer
from .vocabulary import Vocabulary

# scripts, digits, spaces, contractions, code, emoji, combining marks: where tokenizers differ
TEXT = (
    "Hello world! It's 10:45, and she'll've paid $1,234.56 (or 3.14159e-10) for 42 apples; WE'RE here, I'M sure."
    "\n"
    "  two  spaces,\ttabs\t\tand    four;   three at the end   \n"
    "\n"
    "\n"
    "\n"
    "\u00dcberma\u00df na\u00efve caf\u00e9 \u0152uvre \u00bfqu\u00e9? \u00a1ol\u00e9! \u0141\u00f3d\u017a I"
    "\u015f\u0131k \u0110\u00e0 N\u1eb5ng\n"
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 "
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u0938\u0902"
    "\u0938\u093e\u0930\n"
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e \u3053\u3093"
    "\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca \uc548\ub155\ud558\uc138\uc694 \u0e2a\u0e27\u0e31\u0e2a\u0e14"
    "\u0e35 \u1780\u17b6\u1793\u17cb\n"
    "\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (joined) \u2705 \U0001f999\U0001f999 3 33 333 3333 3333"
    "3 \u00bd \u2167 \u0663\n"
    "def f(x: int) -> str:\n"
    "    if x <= 0x1F:\n"
    '\t\treturn f"{x!r:>10}" # \'quoted\' "too"\n'
    "\n"
    "\r\n"
    "for (int i=0;i<n;++i) { a[i] ^= ~b; }\n"
    "------======= ''''''``````\"\"\"\"......!!!!!!?????? https://example.org/a_b-c?d=e&f=%20#g <b>bold</b> e"
    "\u0301 \u212b \ufb01\n"
)


def check_file(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]], vocabulary: Vocabulary) -> int:
    """The runtime opens the file, finds these (name, type, shape) in it, and cuts the text into the original's tokens.

    Returns:
        the number of tokens that were compared.

    Raises:
        FormatError: something differs.
    """
    with GGUFFile.open(path) as file:
        found = [(tensor.name, tensor.type, tensor.shape) for tensor in file.tensors]
    for wanted, got in zip(tensors, found, strict=False):
        if wanted != got:
            raise FormatError(f"{path}: read back {got}, expected {wanted}")
    if len(tensors) != len(found):
        raise FormatError(f"{path}: read back {len(found)} tensors, expected {len(tensors)}")
    with Model.open(path) as model:
        return _check_tokens(model.tokenizer, vocabulary)


def _check_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> int:
    front, behind = vocabulary.frame
    wanted = [*front, *vocabulary.encode(TEXT), *behind]
    got = tokenizer.encode(TEXT, parse_special=True)
    if wanted != got:
        at = next((i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), len(wanted))
        before = tokenizer.decode(got[max(0, at - 5) : at])
        raise FormatError(
            f"tokenizer: differs from the original at token {at}, behind {before!r}: "
            f"{got[at : at + 5]}, expected {wanted[at : at + 5]}"
        )
    return len(wanted)
