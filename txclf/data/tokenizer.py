"""Text to token ids, by the `tokenizers` library: trained on the train split or read from a file.

Special tokens are never found inside a user's text: `[PAD]` typed by a user is five ordinary characters.
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

from txclf.config.sections import Tokenizer, Truncation
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data.sampler import Int32s, Ints
from txclf.data.word_cache import Words

PAD, UNKNOWN, SEPARATOR, MASK = "[PAD]", "[UNK]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = [PAD, UNKNOWN, SEPARATOR, MASK]
HEAD = Truncation()
BEGIN, END = "[BOS]", "[EOS]"
"""Around the text that a `seq2seq` model produces."""


def train_tokenizer(config: Tokenizer, texts: Iterable[str], for_targets: bool = False) -> FastTokenizer:
    """A tokenizer of the kind and size that the run file asks for, or the one of `tokenizer.file`.

    `for_targets`: its tokens are produced too, so it has `[BOS]` and `[EOS]`, and can put text together again.

    Raises `DataError` when the texts hold nothing to learn from, or more characters than the vocabulary may have, or
    when the file is not a tokenizer.
    """
    if config.file is not None:
        return _from_file(config.file)
    tokenizer = _untrained(config)
    if for_targets:
        tokenizer.decoder = DECODERS.get(config.kind)  # `word`: joined by spaces
    special = [*SPECIAL_TOKENS, BEGIN, END] if for_targets else SPECIAL_TOKENS
    try:
        tokenizer.train_from_iterator(texts, trainer=_trainer(config, special))
    except Exception as error:  # unigram, where the texts have more characters than `vocab_size`
        if "not large enough" not in str(error):
            raise
        raise DataError(
            f"`tokenizer.vocab_size`: {config.vocab_size} is too small for the characters of the training texts: "
            "raise it, or set `tokenizer.kind` to `bpe`"
        ) from None
    if tokenizer.get_vocab_size() <= len(special):
        raise DataError(
            "the training texts hold no token that occurs `tokenizer.min_frequency` "
            f"({config.min_frequency}) times: give more text or set it to 1"
        )
    return parse_tokenizer(tokenizer.to_str())


DECODERS = {"bpe": decoders.ByteLevel(), "wordpiece": decoders.WordPiece(), "unigram": decoders.Metaspace()}


def parse_tokenizer(content: str) -> FastTokenizer:
    """A tokenizer from the text of a `tokenizer.json`, without padding, truncation or template of its own."""
    tokenizer = FastTokenizer.from_str(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _from_file(path: str) -> FastTokenizer:
    if not storage.exists(path):
        raise DataError(f"`tokenizer.file`: `{path}` is not there")
    try:
        return parse_tokenizer(storage.read_bytes(path).decode())
    except Exception as error:  # tokenizers raises bare Exception for anything that is not its format
        raise DataError(f"`tokenizer.file`: `{path}` is not a tokenizer.json of `tokenizers`: {error}") from None


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
        # Its vocabulary holds the special tokens as pieces of text: one in a text is cut, never found whole.
        special = Regex(rf"\[(?=(?:{'|'.join(token.strip('[]') for token in SPECIAL_TOKENS)})\])")
        cut = pre_tokenizers.Split(special, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), cut])
    else:
        tokenizer = FastTokenizer(WordLevel(unk_token=UNKNOWN))
        # Runs of letters and digits; any other visible character stands alone.
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
    """One more than the highest token id, which in a tokenizer from a file may have gaps below it."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def tokenizer_hash(tokenizer: FastTokenizer) -> str:
    """SHA-256 of the tokenizer, as it stands in the manifest and in the bundle."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def encode(
    words: Words, texts: Sequence[tuple[str, ...]], max_length: int, truncation: Truncation = HEAD
) -> tuple[pa.ListArray, Ints]:
    """Return the token ids of rows of text columns (list<int32>) and each row's length before truncation (int64).

    Several columns become one sequence with `[SEP]` between them. Rows are truncated to `max_length` tokens, or to as
    many as fit the windows of `truncation`. Every row has at least one token: `[UNK]` if its text has none. Raises
    `DataError` if a tokenizer from a file lacks a token that is needed.
    """
    room = truncation.capacity(max_length)
    columns = len(texts[0]) if texts else 1
    ids, lengths = words.encode([text for row in texts for text in row])
    if columns > 1:
        ids, lengths, full_lengths = _joined(ids, lengths, columns, separator_id(words.tokenizer), room, truncation)
    else:
        full_lengths = lengths
    ids, lengths = _shortened(ids, lengths, room, truncation.mode)
    empty = np.flatnonzero(full_lengths == 0)
    if len(empty):
        token = _token_id(words.tokenizer, (UNKNOWN, "<unk>", PAD, "<pad>"), "stands for a text without tokens")
        ids, lengths = np.insert(ids, np.cumsum(lengths)[empty], token), np.maximum(lengths, 1)
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), ids), full_lengths


def separator_id(tokenizer: FastTokenizer) -> int:
    """The token between text columns. Raises `DataError` when a tokenizer from a file lacks it."""
    return _token_id(tokenizer, (SEPARATOR, "</s>"), "joins several text columns")


def column_room(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens each column keeps so that all keep at most `room`: the longest is cut first, and no column that
    has tokens is left without, as long as there is one for each."""
    rooms = list(lengths)
    for rank, column in enumerate(sorted(range(len(rooms)), key=lambda column: rooms[column])):
        # The shortest takes what it needs of an equal share; what it leaves is shared by the longer ones.
        rooms[column] = min(rooms[column], room // (len(rooms) - rank))
        room -= rooms[column]
    return rooms


def _joined(
    ids: Int32s, lengths: Ints, columns: int, separator: int, room: int, truncation: Truncation
) -> tuple[Int32s, Ints, Ints]:
    """The columns of each row as one, cut so that they fit with a separator between each two; the lengths that rows
    have, and would have uncut."""
    of_rows = lengths.reshape(-1, columns)
    full_lengths = of_rows.sum(axis=1) + columns - 1
    free = room - (columns - 1)
    if truncation.columns != "end" and free >= columns and (over := full_lengths > room).any():
        rooms = of_rows.copy()
        rooms[over] = [column_room(row, free) for row in of_rows[over].tolist()]
        ids, lengths = _shortened(ids, lengths, rooms.ravel(), truncation.mode)
    behind = (
        np.cumsum(lengths).reshape(-1, columns)[:, :-1].ravel()
    )  # all columns but a row's last have one behind them
    return np.insert(ids, behind, separator), lengths.reshape(-1, columns).sum(axis=1) + columns - 1, full_lengths


def _shortened(ids: Int32s, lengths: Ints, room: int | Ints, mode: str) -> tuple[Int32s, Ints]:
    """Sequences, one after another, cut to `room` tokens each, as `data.truncation` says."""
    if not (lengths > room).any():
        return ids, lengths
    rooms = np.minimum(np.broadcast_to(room, lengths.shape), lengths)
    head = {"tail": np.zeros_like(rooms), "head_tail": (np.broadcast_to(room, lengths.shape) + 3) // 4}.get(mode, rooms)
    head = np.where(lengths > rooms, head, rooms)
    place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = (place < np.repeat(head, lengths)) | (place >= np.repeat(lengths - (rooms - head), lengths))
    return ids[kept], rooms


def encode_targets(words: Words, texts: Sequence[str], max_length: int) -> tuple[pa.ListArray, Ints]:
    """Token ids of texts to produce, between `[BOS]` and `[EOS]`; each text's length before the cut to `max_length`.

    A text that is cut has no `[EOS]`: its end is not there to be learned.
    """
    begin, end = target_ends(words.tokenizer)
    inner, full_lengths = encode(words, [(text,) for text in texts], max_length)
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
    """The ids of `[BOS]` and `[EOS]`. Raises `DataError` when a tokenizer from a file lacks them."""
    begin = _token_id(tokenizer, (BEGIN, "<s>"), "begins a text that is produced")
    return begin, _token_id(tokenizer, (END, "</s>"), "ends a text that is produced")


def decode(tokenizer: FastTokenizer, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token ids, special tokens left out."""
    return [text.strip() for text in tokenizer.decode_batch([list(ids) for ids in outputs], skip_special_tokens=True)]


def _token_id(tokenizer: FastTokenizer, names: tuple[str, ...], purpose: str) -> int:
    for name in names:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise DataError(f"`tokenizer.file`: the tokenizer has no `{names[0]}` token, which {purpose}")
