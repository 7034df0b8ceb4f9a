"""A checkpoint's tokenizer as GGUF metadata, and the original tokenizer to compare with."""

# What checkpoints say in JSON has no types.
# pyright: basic
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError, FormatError, UnsupportedError
from ..tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from ..tokenizer.vocabulary import TokenType
from .checkpoint import Checkpoint, Json, read_json

_GPT2_WORDS = PRE_TOKENIZERS["gpt-2"].splits[0]
_ADDED_SCORE = -1000.0
_SPACE = "\u2581"  # SentencePiece's
_ROLES = ("bos", "eos", "unk", "pad", "sep", "mask")


@dataclass
class Vocabulary:
    """What `tokenizer.ggml.*` says."""

    model: str  # "gpt2": byte-level BPE, "llama": SentencePiece BPE
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    add_space_prefix: bool | None = None
    encode: Callable[[str], list[int]] = lambda text: []  # the original, without special tokens around
    frame: tuple[list[int], list[int]] = ([], [])  # what the original puts in front of a text, and behind


def read_vocabulary(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The tokenizer of a checkpoint, filled up to the n_vocab rows of its embedding.

    Raises:
        FileError: there is none.
        FormatError: it is damaged, or has more tokens than the embedding has rows.
        UnsupportedError: its kind, or the way it cuts text into words, is not known.
    """
    folder = checkpoint.folder
    fast, model = folder / "tokenizer.json", folder / "tokenizer.model"
    content = read_json(fast) if fast.exists() else {}
    if content and _is_byte_level(content):
        vocabulary = _byte_level(content, fast)
    elif model.exists():
        vocabulary = _sentencepiece(model, checkpoint)
    elif content:
        vocabulary = _sentencepiece_like(content, fast)
    else:
        raise FileError(f"{folder}: has neither tokenizer.json nor tokenizer.model")
    if len(vocabulary.tokens) > n_vocab:
        raise FormatError(f"{folder}: {len(vocabulary.tokens)} tokens, but the embedding has {n_vocab} rows")
    for i in range(len(vocabulary.tokens), n_vocab):
        _append(vocabulary, f"[PAD{i}]", TokenType.UNUSED)
    return vocabulary


def _append(vocabulary: Vocabulary, token: str, kind: TokenType) -> None:
    vocabulary.tokens.append(token)
    vocabulary.types.append(kind)
    if vocabulary.model == "llama":
        vocabulary.scores.append(_ADDED_SCORE)


def _put(vocabulary: Vocabulary, token_id: int, token: str, kind: TokenType) -> None:
    """An added token, which may lie beyond the end or replace one."""
    while len(vocabulary.tokens) <= token_id:
        _append(vocabulary, f"[PAD{len(vocabulary.tokens)}]", TokenType.UNUSED)
    vocabulary.tokens[token_id] = token
    vocabulary.types[token_id] = kind
    if vocabulary.model == "llama":
        vocabulary.scores[token_id] = _ADDED_SCORE


# ---- tokenizer.json ----


def _parts(node: Json | None, members: str) -> list[Json]:
    """A component, or the members of a Sequence of them."""
    if not node:
        return []
    return list(node[members]) if node.get("type") == "Sequence" else [node]


def _is_byte_level(content: Json) -> bool:
    kinds = [part.get("type") for part in _parts(content.get("pre_tokenizer"), "pretokenizers")]
    return "ByteLevel" in kinds


def _base_tokens(content: Json, path: Path) -> list[str]:
    """The tokens by id, without the added ones."""
    model = content.get("model") or {}
    if model.get("type") not in ("BPE", None) or not isinstance(model.get("vocab"), dict):
        raise UnsupportedError(f"{path}: model {model.get('type')!r} is not supported, only BPE is")
    vocab: dict[str, int] = model["vocab"]
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        tokens[token_id] = token
    return [token or f"[PAD{i}]" for i, token in enumerate(tokens)]


def _merges(content: Json) -> list[str]:
    """ "left right"; spaces inside a token are not possible in either kind of vocabulary."""
    pairs = content["model"].get("merges") or []
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def _with_added_tokens(vocabulary: Vocabulary, content: Json) -> Vocabulary:
    for added in content.get("added_tokens") or []:
        kind = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
        _put(vocabulary, int(added["id"]), str(added["content"]), kind)
    return vocabulary


def _with_original(vocabulary: Vocabulary, path: Path) -> Vocabulary:
    """Lets the tokenizers library speak for the original."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise FormatError(f"{path}: {error}") from error
    vocabulary.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    plain, framed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    n_front = next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
    vocabulary.frame = framed[:n_front], framed[n_front + len(plain) :]
    return vocabulary


def _byte_level(content: Json, path: Path) -> Vocabulary:
    tokens = _base_tokens(content, path)
    vocabulary = Vocabulary(
        model="gpt2",
        pre=_find_pre_tokenizer(content, path),
        tokens=tokens,
        types=[TokenType.NORMAL] * len(tokens),
        merges=_merges(content),
    )
    return _with_original(_with_added_tokens(vocabulary, content), path)


def _sentencepiece_like(content: Json, path: Path) -> Vocabulary:
    """A SentencePiece vocabulary in the form of the tokenizers library: merges in the order of scores."""
    tokens = _base_tokens(content, path)
    if not content["model"].get("byte_fallback"):
        raise UnsupportedError(f"{path}: BPE that is neither byte-level nor SentencePiece's is not supported")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(content)):
        ranks.setdefault(merge.replace(" ", ""), rank)
    unknown = content["model"].get("unk_token")
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=[_type_of_piece(token, unknown) for token in tokens],
        scores=[-float(ranks.get(token, len(ranks))) for token in tokens],
        add_space_prefix=_adds_space(content),
    )
    return _with_original(_with_added_tokens(vocabulary, content), path)


def _type_of_piece(token: str, unknown: str | None) -> TokenType:
    if token == unknown:
        return TokenType.UNKNOWN
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _adds_space(content: Json) -> bool:
    """Whether a text begins with a space that is not its own."""
    normalizers = _parts(content.get("normalizer"), "normalizers")
    if any(part.get("type") == "Prepend" and part.get("prepend") == _SPACE for part in normalizers):
        return True
    splitters = _parts(content.get("pre_tokenizer"), "pretokenizers")
    metaspaces = [part for part in splitters if part.get("type") == "Metaspace"]
    return any(part.get("prepend_scheme", "always") != "never" for part in metaspaces)


# ---- how byte-level BPE cuts text into words ----


def _find_pre_tokenizer(content: Json, path: Path) -> str:
    """The name of the row that does what the definition says, exactly."""
    described = _described(content)
    names = [name for name, row in PRE_TOKENIZERS.items() if described is not None and _same(row, described)]
    if not names:
        raise UnsupportedError(
            f"{path}: unknown pre-tokenizer: {_summary(content)}; known are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return "smollm" if "smollm" in names else names[0]  # some share a definition


def _same(row: PreTokenizer, described: PreTokenizer) -> bool:
    return (row.splits, row.byte_splits, row.nfc, row.ignore_merges) == (
        described.splits,
        described.byte_splits,
        described.nfc,
        described.ignore_merges,
    )


def _described(content: Json) -> PreTokenizer | None:
    """The definition as a row, or None if it has parts that no row can have."""
    normalizers = [part.get("type") for part in _parts(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        return None
    splits: list[str] = []
    byte_splits: list[str] = []
    target = splits  # until the text has become bytes
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        pattern = _pattern_of(part)
        if part.get("type") == "ByteLevel":
            if part.get("add_prefix_space"):
                return None
            if part.get("use_regex", True):
                splits.append(_GPT2_WORDS)
            target = byte_splits
        elif pattern is None:
            return None
        else:
            target.append(pattern)
    ignore_merges = bool(content["model"].get("ignore_merges"))
    return PreTokenizer(tuple(splits), tuple(byte_splits), bool(normalizers), ignore_merges)


def _pattern_of(part: Json) -> str | None:
    match part:
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} if not part.get("invert"):
            return pattern
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return pattern  # the pattern matches everything, so nothing is removed
        case {"type": "Digits", "individual_digits": individual}:
            return r"\p{N}" if individual else r"\p{N}+"
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return r"[\p{P}$+<=>^`|~]+"
        case _:
            return None


def _summary(content: Json) -> str:
    kinds = [part.get("type") for part in _parts(content.get("normalizer"), "normalizers")]
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        pattern = (part.get("pattern") or {}).get("Regex")
        kinds.append(f"{part.get('type')}({pattern})" if pattern else part.get("type"))
    return ", ".join(map(str, kinds))


# ---- tokenizer.model: a protobuf message ----

_PIECE_TYPES = {1: TokenType.NORMAL, 2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 4: TokenType.USER_DEFINED}
_PIECE_TYPES |= {5: TokenType.UNUSED, 6: TokenType.BYTE}
_BPE = 2  # TrainerSpec.model_type


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int, or bytes (fixed and length-delimited)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            n, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + n > len(data):
                raise IndexError
            value, at = data[at : at + n], at + n
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _sentencepiece(path: Path, checkpoint: Checkpoint) -> Vocabulary:
    vocabulary = Vocabulary(model="llama", pre="default", tokens=[], types=[], add_space_prefix=True)
    algorithm = 1
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:  # SentencePiece: 1 piece, 2 score, 3 type
                piece = dict(_fields(value))
                vocabulary.tokens.append(piece[1].decode())
                vocabulary.scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                vocabulary.types.append(_PIECE_TYPES[piece.get(3, 1)])
            elif number == 2:
                algorithm = dict(_fields(value)).get(3, 1)
            elif number == 3:
                vocabulary.add_space_prefix = bool(dict(_fields(value)).get(3, 1))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise FormatError(f"{path}: not a SentencePiece model") from error
    if algorithm != _BPE:
        raise UnsupportedError(f"{path}: SentencePiece of model_type {algorithm} is not supported, only BPE (2) is")
    _add_sentencepiece_tokens(vocabulary, checkpoint)
    _speak_for_sentencepiece(vocabulary, path, checkpoint)
    return vocabulary


def _add_sentencepiece_tokens(vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    for token, token_id in checkpoint.optional("added_tokens.json").items():
        _put(vocabulary, int(token_id), token, TokenType.USER_DEFINED)
    decoder: Json = checkpoint.optional("tokenizer_config.json").get("added_tokens_decoder") or {}
    listed = [{**added, "id": token_id} for token_id, added in decoder.items()]
    listed += checkpoint.optional("tokenizer.json").get("added_tokens") or []
    for added in listed:
        token_id, token = int(added["id"]), str(added["content"])
        known = token_id < len(vocabulary.tokens) and vocabulary.tokens[token_id] == token
        if known and vocabulary.types[token_id] in (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE):
            continue
        kind = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
        _put(vocabulary, token_id, token if kind == TokenType.CONTROL else token.replace(_SPACE, " "), kind)


def _speak_for_sentencepiece(vocabulary: Vocabulary, path: Path, checkpoint: Checkpoint) -> None:
    try:
        import sentencepiece
    except ImportError as error:
        raise UnsupportedError(
            f"{path}: sentencepiece checks the result and is not installed; run: pip install 'pykvq[convert]'"
        ) from error
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore
    vocabulary.encode = lambda text: processor.encode(text)
    config = checkpoint.optional("tokenizer_config.json")
    front = [int(processor.bos_id())] if config.get("add_bos_token", True) and processor.bos_id() >= 0 else []
    behind = [int(processor.eos_id())] if config.get("add_eos_token", False) and processor.eos_id() >= 0 else []
    vocabulary.frame = front, behind


# ---- all of it into the file ----


def add_vocabulary(fields: Any, vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    """Write `tokenizer.*`."""
    fields.add_tokenizer_model(vocabulary.model)
    fields.add_tokenizer_pre(vocabulary.pre)
    fields.add_token_list(vocabulary.tokens)
    fields.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        fields.add_token_merges(vocabulary.merges)
    else:
        fields.add_token_scores(vocabulary.scores)
        fields.add_add_space_prefix(bool(vocabulary.add_space_prefix))
    roles = _special_ids(vocabulary, checkpoint)
    front, behind = vocabulary.frame
    if front:
        roles["bos"] = front[0]
    for role, token_id in roles.items():
        getattr(fields, f"add_{role}_token_id")(token_id)
    fields.add_add_bos_token(bool(front))
    fields.add_add_eos_token(bool(behind) and behind == [roles.get("eos")])
    template = _chat_template(checkpoint)
    if template:
        fields.add_chat_template(template)


def _special_ids(vocabulary: Vocabulary, checkpoint: Checkpoint) -> dict[str, int]:
    """Token ids by role: tokenizer_config.json names the tokens, config.json numbers them."""
    names = checkpoint.optional("tokenizer_config.json")
    numbers = {**checkpoint.config, **(checkpoint.config.get("text_config") or {})}
    numbers = {**numbers, **{k: v for k, v in checkpoint.optional("generation_config.json").items() if v is not None}}
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    found: dict[str, int] = {}
    for role in _ROLES:
        name = names.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name  # pyright: ignore
        number = numbers.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number  # pyright: ignore
        token_id = ids.get(name, number) if isinstance(name, str) else number
        if isinstance(token_id, int) and 0 <= token_id < len(vocabulary.tokens):
            found[role] = token_id
    return found


def _chat_template(checkpoint: Checkpoint) -> Any:
    """The text of the template, or a list of {"name", "template"}."""
    path = checkpoint.folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    of_file = checkpoint.optional("chat_template.json").get("chat_template")
    return of_file or checkpoint.optional("tokenizer_config.json").get("chat_template")
