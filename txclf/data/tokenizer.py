"""Text to token ids, with a tokenizer of the `tokenizers` library trained on the train split or read from a file.

Special tokens are never recognized inside a text: a user's `[PAD]` is five ordinary characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer, WordPieceTrainer

from txclf import upstream
from txclf.config.sections import SpecialTokens, Tokenizer, Truncation
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data.sampler import Int32s, Ints
from txclf.data.word_cache import WordCache

PAD, UNKNOWN, SEPARATOR, MASK = "[PAD]", "[UNK]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = [PAD, UNKNOWN, SEPARATOR, MASK]
HEAD = Truncation()
BEGIN, END = "[BOS]", "[EOS]"
"""First and last token of a target of `task: seq2seq`."""


def train_tokenizer(config: Tokenizer, texts: Iterable[str], for_targets: bool = False) -> FastTokenizer:
    """Train a tokenizer on texts, or return the one of `tokenizer.file`.

    `for_targets` adds `[BOS]`, `[EOS]` and a decoder, for tokens that a model generates.

    Raises `DataError` if no token of the texts is frequent enough, if they have more characters than the vocabulary
    has tokens, or if the file is not a tokenizer.
    """
    if config.file is not None:
        return _from_file(config.file)
    tokenizer = _untrained(config)
    if for_targets:
        tokenizer.decoder = DECODERS.get(config.kind)  # without a decoder, `word` joins tokens by spaces
    special = [*SPECIAL_TOKENS, BEGIN, END] if for_targets else SPECIAL_TOKENS
    try:
        tokenizer.train_from_iterator(texts, trainer=_trainer(config, special))
    except Exception as error:  # unigram, where the texts have more characters than `vocab_size`
        if "not large enough" not in str(error):
            raise
        raise DataError(
            f"`tokenizer.vocab_size`: {config.vocab_size} is too small for the characters of the training texts. "
            "Raise it, or set `tokenizer.kind: bpe`."
        ) from None
    if tokenizer.get_vocab_size() <= len(special):
        raise DataError(
            f"`tokenizer.min_frequency`: no token occurs {config.min_frequency} times in the training texts. "
            "Set it to 1, or add training texts."
        )
    return parse_tokenizer(tokenizer.to_str())


DECODERS = {"bpe": decoders.ByteLevel(), "wordpiece": decoders.WordPiece(), "unigram": decoders.Metaspace()}


def parse_tokenizer(content: str | bytes) -> FastTokenizer:
    """Return a tokenizer from the content of a `tokenizer.json`, with its padding and truncation removed.

    Raises `DataError` if the content is not a tokenizer or has no tokens.
    """
    try:
        tokenizer = FastTokenizer.from_str(content if isinstance(content, str) else content.decode())
        if not tokenizer.get_vocab_size():
            raise ValueError("it has no tokens")
    except BaseException as error:  # tokenizers raises bare Exception for anything that is not its format
        if not isinstance(error, Exception) and not upstream.is_rust_panic(error):
            raise
        raise DataError(f"`tokenizer.json`: cannot be read by the `tokenizers` library: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _from_file(path: str) -> FastTokenizer:
    if not storage.exists(path):
        raise DataError(f"`tokenizer.file`: `{path}` does not exist. Set the path of a `tokenizer.json`.")
    try:
        return parse_tokenizer(storage.read_bytes(path))
    except DataError as error:
        problem = str(error).removeprefix("`tokenizer.json`: ")
        raise DataError(f"`tokenizer.file`: `{path}` {problem}. Set the path of a `tokenizer.json`.") from None


def _untrained(config: Tokenizer) -> FastTokenizer:
    tokenizer: FastTokenizer
    if config.kind == "bpe":
        tokenizer = FastTokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif config.kind == "wordpiece":
        tokenizer = FastTokenizer(WordPiece(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif config.kind == "unigram":
        tokenizer = FastTokenizer(Unigram())
        # The vocabulary holds the special tokens as ordinary pieces. Splitting at `[` keeps them from matching.
        special = Regex(rf"\[(?=(?:{'|'.join(token.strip('[]') for token in SPECIAL_TOKENS)})\])")
        split = pre_tokenizers.Split(special, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), split])
    else:
        tokenizer = FastTokenizer(WordLevel(unk_token=UNKNOWN))
        # Runs of letters and digits; any other visible character is a token of its own.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    steps: list[normalizers.Normalizer] = []
    if config.normalize != "none":
        steps.append(normalizers.NFC() if config.normalize == "nfc" else normalizers.NFKC())
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _trainer(
    config: Tokenizer, special_tokens: Sequence[str]
) -> BpeTrainer | WordPieceTrainer | UnigramTrainer | WordLevelTrainer:
    special = [AddedToken(token, special=True) for token in special_tokens]
    size, minimum = config.vocab_size, config.min_frequency
    if config.kind == "bpe":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return BpeTrainer(
            vocab_size=size,
            min_frequency=minimum,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
    if config.kind == "wordpiece":
        return WordPieceTrainer(vocab_size=size, min_frequency=minimum, special_tokens=special, show_progress=False)
    if config.kind == "unigram":
        return UnigramTrainer(vocab_size=size, special_tokens=special, unk_token=UNKNOWN, show_progress=False)
    return WordLevelTrainer(vocab_size=size, min_frequency=minimum, special_tokens=special, show_progress=False)


def vocab_size(tokenizer: FastTokenizer) -> int:
    """Return the highest token id + 1. A tokenizer from a file may leave lower ids unused."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def text_tokens(tokenizer: FastTokenizer) -> set[int]:
    """Return the token ids that a text can have: all but those of special tokens."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return {*tokenizer.get_vocab(with_added_tokens=True).values()} - special


def tokenizer_hash(tokenizer: FastTokenizer) -> str:
    """Return the SHA-256 of the tokenizer that the manifest and the bundle record."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def encode(
    cache: WordCache,
    texts: Sequence[tuple[str, ...]],
    max_length: int,
    truncation: Truncation = HEAD,
    special: SpecialTokens | None = None,
) -> tuple[pa.ListArray, Ints]:
    """Return the token ids of rows of text columns (list<int32>) and each row's length before truncation (int64).

    Several columns become one sequence with `[SEP]` between them. Rows are truncated to `max_length` tokens, or to as
    many as fit the windows of `truncation`. Every row has at least one token: `[UNK]` if its text has none. Raises
    `DataError` if a tokenizer from a file lacks a token that is needed.

    `special` are the special tokens of a pretrained model: the separator between columns is theirs, `max_length` counts
    what is added later, and a text without tokens stays empty if a token is added later, else it is one of padding.
    """
    capacity = truncation.capacity(max_length - (special.added if special else 0))
    columns = len(texts[0]) if texts else 1
    ids, lengths = cache.encode([text for row in texts for text in row])
    if columns > 1:
        separator = special.separator if special else (separator_id(cache.tokenizer),)
        ids, lengths, full_lengths = _join_columns(
            ids, lengths, columns=columns, separator=separator, capacity=capacity, truncation=truncation
        )
    else:
        full_lengths = lengths
    ids, lengths = _truncate(ids, lengths, capacity, truncation.mode)
    empty = np.flatnonzero(full_lengths == 0)
    if len(empty) and not (special and special.added):
        names = UNKNOWN, "<unk>", PAD, "<pad>"
        token = special.pad if special else _token_id(cache.tokenizer, names, "represents a text without tokens")
        ids, lengths = np.insert(ids, np.cumsum(lengths)[empty], token), np.maximum(lengths, 1)
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), ids), full_lengths


def separator_id(tokenizer: FastTokenizer) -> int:
    """Return the id of the token between text columns. Raises `DataError` if a tokenizer from a file lacks it."""
    return _token_id(tokenizer, (SEPARATOR, "</s>"), "joins several text columns")


def column_sizes(lengths: Sequence[int], capacity: int) -> list[int]:
    """Return how many tokens each column keeps, at most `capacity` together.

    The longest column is truncated first. Every column with tokens keeps at least one if `capacity` allows it.
    """
    sizes = list(lengths)
    for rank, column in enumerate(sorted(range(len(sizes)), key=lambda column: sizes[column])):
        # The shortest column takes what it needs of an equal share. The longer columns share the rest.
        sizes[column] = min(sizes[column], capacity // (len(sizes) - rank))
        capacity -= sizes[column]
    return sizes


def _join_columns(
    ids: Int32s, lengths: Ints, *, columns: int, separator: Sequence[int], capacity: int, truncation: Truncation
) -> tuple[Int32s, Ints, Ints]:
    """Join the columns of each row with separator tokens, truncated so that they fit together.

    Returns the ids, the length of each row, and its length before truncation.
    """
    by_row = lengths.reshape(-1, columns)
    added = len(separator) * (columns - 1)
    full_lengths = by_row.sum(axis=1) + added
    free = capacity - added
    if truncation.columns != "end" and free >= columns and (over := full_lengths > capacity).any():
        sizes = by_row.copy()
        sizes[over] = [column_sizes(row, free) for row in by_row[over].tolist()]
        ids, lengths = _truncate(ids, lengths, sizes.ravel(), truncation.mode)
    column_ends = np.cumsum(lengths).reshape(-1, columns)[:, :-1].ravel()  # without the last column of each row
    joined = np.insert(ids, np.repeat(column_ends, len(separator)), np.tile(separator, len(column_ends)))
    return joined, lengths.reshape(-1, columns).sum(axis=1) + added, full_lengths


def _truncate(ids: Int32s, lengths: Ints, capacity: int | Ints, mode: str) -> tuple[Int32s, Ints]:
    """Truncate sequences, one after another in `ids`, to `capacity` tokens each. `mode` is a `data.truncation`."""
    capacities = np.broadcast_to(capacity, lengths.shape)
    over = lengths > capacities
    if not over.any():
        return ids, lengths
    kept_lengths = np.minimum(capacities, lengths)
    if mode == "tail":
        head = np.zeros_like(kept_lengths)
    elif mode == "head_tail":
        head = (capacities + 3) // 4
    else:  # `windows` keeps the first tokens, as `head` does
        head = kept_lengths
    head = np.where(over, head, kept_lengths)
    tail_starts = lengths - (kept_lengths - head)
    positions = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = (positions < np.repeat(head, lengths)) | (positions >= np.repeat(tail_starts, lengths))
    return ids[kept], kept_lengths


def encode_targets(cache: WordCache, texts: Sequence[str], max_length: int) -> tuple[pa.ListArray, Ints]:
    """Return the token ids of targets (list<int32>), with `[BOS]` and `[EOS]`, and their lengths before truncation.

    The lengths count neither `[BOS]` nor `[EOS]`. A truncated target has no `[EOS]`, because its end is missing.
    Raises `DataError` if a tokenizer from a file lacks one of the two tokens.
    """
    begin, end = target_ends(cache.tokenizer)
    inner, full_lengths = encode(cache, [(text,) for text in texts], max_length)
    lengths = np.diff(inner.offsets.to_numpy())
    ends = (full_lengths <= max_length).astype(np.int64)
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths + 1 + ends, out=offsets[1:])
    values = np.full(offsets[-1], end, np.int32)
    values[offsets[:-1]] = begin
    inside = np.ones(len(values), bool)
    inside[offsets[:-1]] = False
    inside[(offsets[1:] - 1)[ends == 1]] = False
    values[inside] = inner.flatten().to_numpy()
    return pa.ListArray.from_arrays(offsets, values), full_lengths


def target_ends(tokenizer: FastTokenizer) -> tuple[int, int]:
    """Return the ids of `[BOS]` and `[EOS]`. Raises `DataError` if a tokenizer from a file lacks them."""
    begin = _token_id(tokenizer, (BEGIN, "<s>"), "starts a generated text")
    return begin, _token_id(tokenizer, (END, "</s>"), "ends a generated text")


def decode(tokenizer: FastTokenizer, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of token ids, without special tokens."""
    return [text.strip() for text in tokenizer.decode_batch([list(ids) for ids in outputs], skip_special_tokens=True)]


def _token_id(tokenizer: FastTokenizer, names: tuple[str, ...], purpose: str) -> int:
    for name in names:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise DataError(
        f"`tokenizer.file`: the tokenizer has no `{names[0]}` token, which {purpose}. Set a tokenizer that has it."
    )
