"""Pre-trained word vectors, matched to the words of the tokenizer: a GloVe or word2vec text file, or an encoder.

    the ±5 9 400 0.1 …      one line per word: the word, then its numbers; a word may contain spaces
    400000 50               first line of word2vec: number of words, numbers per word

The file is read line by line. The vectors of the vocabulary are kept as one matrix next to the prepared data. All
workers, and a resumed run, start from this matrix; the bundle holds the trained one.

A token takes the vector of the same word, otherwise that of its lower-case form, otherwise that of a word whose
lower-case form equals it. The first two cases are for GloVe (lower case), the last is for cased files with a tokenizer
that converts to lower case. If a word occurs twice, the first vector counts.

Of a folder with a pretrained encoder, each token of the vocabulary has a vector (`txclf.data.encoder_vectors`).

Shapes: V tokens of the vocabulary, D numbers of a vector.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import save as save_safetensors
from tokenizers import Tokenizer as FastTokenizer

from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards
from txclf.data.tokenizer import parse_tokenizer, vocab_size

if TYPE_CHECKING:
    from torch import Tensor

EXACT, LOWERED, FOLDED = 3, 2, 1
"""Quality of a match: the same word; the lower-case form of the token; the lower-case form of the file's word."""
MAX_SHOWN = 10
"""Maximum number of damaged lines that are named."""
MAX_DAMAGED = 0.01
"""Share of damaged lines above which a file is refused."""

Floats = npt.NDArray[np.float32]


class Coverage(BaseModel):
    """Match of a file of vectors with a vocabulary, stored in `vectors.json` and `summary.json` of the run."""

    model_config = ConfigDict(frozen=True)

    file: str
    """Path of the file of vectors in the run file."""
    matrix: str
    """File of the matched matrix in the folder of the prepared data."""
    words: int
    """Words of the vocabulary, without special tokens."""
    found: int
    """Words with a vector."""
    exact: int
    """Words with a vector of the same word; the other vectors match in lower case."""
    type_share: float
    """Share of the words that have a vector."""
    token_share: float
    """Share of the training tokens that have a vector. `[UNK]` counts as not found; other special tokens do not
    count."""
    lines: int
    """Lines with a vector in the file, damaged ones included."""
    damaged: list[tuple[int, str]]
    """First damaged lines, each with its number (from 1) and the reason."""
    num_damaged: int
    """Damaged lines in total."""

    def describe(self) -> list[str]:
        """Return the lines to print."""
        summary = (
            f"vectors: {self.found:,} of {self.words:,} words found ({self.type_share:.1%}, {self.exact:,} of them "
            f"exactly), which are {self.token_share:.1%} of the training tokens"
        )
        if not self.num_damaged:
            return [summary]
        some = "; ".join(f"line {number:,}: {reason}" for number, reason in self.damaged)
        more = " …" if self.num_damaged > len(self.damaged) else ""
        return [summary, f"`{self.file}`: {self.num_damaged:,} damaged line(s) skipped: {some}{more}"]


@dataclass
class _Found:
    """Vectors found so far while the file is read."""

    matrix: Floats
    """(V, D)."""
    fit: npt.NDArray[np.int8]
    """(V,), quality of the match; 0 if not found."""
    lines: int = 0
    damaged: list[tuple[int, str]] = field(default_factory=list)
    num_damaged: int = 0

    def skip(self, number: int, reason: str) -> None:
        """Record a damaged line."""
        self.num_damaged += 1
        if len(self.damaged) < MAX_SHOWN:
            self.damaged.append((number, reason))


def require(path: str | None, kind: str) -> None:
    """Raise `ConfigError` if the file does not exist, has the binary format, or does not fit the kind of tokenizer."""
    if path is None:
        return
    if storage.split_query(path)[0].endswith((".bin", ".bin.gz")):
        raise ConfigError(
            f"`model.word_vectors`: `{path}` has the binary format. Convert it to text, for example with gensim."
        )
    if not storage.exists(path):
        raise ConfigError(f"`model.word_vectors`: `{path}` does not exist. Set the path of a file of vectors.")
    if kind not in ("word", "file") and not storage.is_folder(path):
        raise ConfigError(
            f"`model.word_vectors`: `{path}` has vectors of whole words, not of `tokenizer.kind: {kind}`. Set "
            "`tokenizer.kind: word`, or a folder with an encoder."
        )


def matched(run: RunConfig, prepared: str) -> Coverage:
    """Match `model.word_vectors` to the tokenizer of prepared data and store the matrix next to the data.

    The result is reused until the file changes. Raises `DataError` if the vectors of a file have not
    `model.hidden_size` numbers, if it is no text file of vectors, or if it has no word of the vocabulary. Raises
    `ConfigError` as `require` and `encoder_vectors.read` do.
    """
    path, width = run.model.word_vectors, run.model.hidden_size
    assert path is not None
    require(path, run.tokenizer.kind)
    files = [storage.join(path, name) for name in sorted(storage.list_folder(path))] if storage.is_folder(path) else []
    stamp = json.dumps([1, storage.absolute(path), *map(_stamp, files or [path]), width])
    name = f"vectors-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    record = storage.join(prepared, f"{name}.json")
    if storage.exists(record):
        return storage.read_as(record, Coverage)
    tokenizer = parse_tokenizer(shards.tokenizers(prepared)[0])
    vocabulary, special = _words(tokenizer)
    size = vocab_size(tokenizer)
    found = _by_encoder(path, width, tokenizer, vocabulary, size) if files else read(path, width, vocabulary, size)
    known = found.fit > 0
    if not known.any():
        raise DataError(f"`{path}`: none of its words is in the vocabulary. Use vectors of the language of the texts.")
    counts = _token_counts(prepared, len(known))
    counted = counts.copy()
    counted[sorted(special - {tokenizer.token_to_id("[UNK]"), tokenizer.token_to_id("<unk>")})] = 0
    coverage = Coverage(
        file=path,
        matrix=f"{name}.safetensors",
        words=len(vocabulary),
        found=int(known.sum()),
        exact=int((found.fit == EXACT).sum()),
        type_share=float(known.sum() / len(vocabulary)),
        token_share=float(counted[known].sum() / max(1, counted.sum())),
        lines=found.lines,
        damaged=found.damaged,
        num_damaged=found.num_damaged,
    )
    tensors = {"vectors": filled(found.matrix, known, run.seed), "found": known}
    storage.write_bytes(storage.join(prepared, coverage.matrix), save_safetensors(tensors))
    storage.write_json(record, coverage.model_dump())
    return coverage


def load(prepared: str, matrix: str) -> tuple[Tensor, Tensor]:
    """Return the matrix (V, D) that `matched` stored, and a mask (V,) of the rows that were found."""
    from safetensors.torch import load as load_safetensors  # not by the processes that only read rows

    path = storage.join(prepared, matrix)
    if not storage.exists(path):
        raise DataError(f"`{path}`: the vectors that this run started from are gone. Start a new run.")
    tensors = load_safetensors(storage.read_bytes(path))
    return tensors["vectors"], tensors["found"]


def filled(matrix: Floats, known: npt.NDArray[np.bool_], seed: int) -> Floats:
    """Return initial embeddings (V, D) for a model that multiplies them by sqrt(D).

    Rows that are not known are drawn from a normal distribution with the mean and the spread of the known rows in each
    dimension. Then all rows are scaled so that the known ones have a mean square of 1 / D: an embedded token has unit
    variance, as with a random initialization.
    """
    own = matrix[known].astype(np.float64)
    draw = np.random.default_rng([seed, 0x766563])
    rest = draw.normal(own.mean(axis=0), own.std(axis=0), (int((~known).sum()), matrix.shape[1]))
    whole: npt.NDArray[np.float64] = np.empty(matrix.shape, np.float64)
    whole[known], whole[~known] = own, rest
    square = float((own**2).mean())
    scaled: Floats = (whole / np.sqrt(square * matrix.shape[1] if square else 1.0)).astype(np.float32)
    return scaled


def _stamp(path: str) -> list[int]:
    """Return the size and the time of change of a file."""
    filesystem, inner = storage.resolve(path)
    info = filesystem.get_file_info(inner)
    return [info.size, info.mtime_ns]


def _by_encoder(folder: str, width: int, tokenizer: FastTokenizer, vocabulary: Mapping[str, int], size: int) -> _Found:
    """Return the vectors of a vocabulary (word to row) with `size` rows by an encoder."""
    from txclf.data import encoder_vectors  # and torch

    found = _Found(np.zeros((size, width), np.float32), np.zeros(size, np.int8), lines=len(vocabulary))
    rows = sorted(vocabulary.values())
    found.matrix[rows] = encoder_vectors.read(folder, encoder_vectors.token_texts(tokenizer, rows), width)
    found.fit[rows] = EXACT
    return found


def _words(tokenizer: FastTokenizer) -> tuple[dict[str, int], set[int]]:
    """Return the vocabulary without special tokens, and the ids of the special tokens."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {word: number for word, number in vocabulary.items() if number not in special}, special


def _token_counts(prepared: str, size: int) -> npt.NDArray[np.int64]:
    """Count the occurrences of each token in the training rows."""
    counts = np.zeros(size, np.int64)
    for shard in shards.load_manifest(prepared).splits["train"].shards:
        for table in shards.read_groups(prepared, shard, ["input_ids"]):
            for chunk in table["input_ids"].chunks:
                counts += np.bincount(chunk.flatten().to_numpy(), minlength=size)
    return counts


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: str, width: int, vocabulary: Mapping[str, int], size: int) -> _Found:
    """Read the vectors of a vocabulary (word to row) with `size` rows. Raises `DataError` as `matched` does."""
    found = _Found(np.zeros((size, width), np.float32), np.zeros(size, np.int8))
    lowered: dict[str, list[int]] = {}
    for word, row in vocabulary.items():
        lowered.setdefault(word.lower(), []).append(row)
    with _lines(path, width) as lines:
        announced = None
        for number, line in enumerate(lines, start=1):
            if number == 1:
                announced = _header(line)
                _check_width(path, line, announced, width)
                if announced:
                    continue
            if not line.strip():
                continue
            found.lines += 1
            problem = _take(line, width, vocabulary, lowered, found)
            if problem:
                found.skip(number, problem)
                if found.lines < MAX_SHOWN and b"\0" in line:
                    raise DataError(f"`{path}`: line {number}: not text. Convert binary vectors to text first.")
    if not found.lines:
        raise DataError(f"`{path}`: holds no vectors. Use a GloVe or word2vec text file.")
    if announced and found.lines != announced[0]:
        found.skip(1, f"it announces {announced[0]:,} words, but {found.lines:,} follow")
    if found.num_damaged > max(1, MAX_DAMAGED * found.lines):
        some = "\n".join(f"  line {number:,}: {reason}" for number, reason in found.damaged)
        raise DataError(
            f"`{path}`: {found.num_damaged:,} of {found.lines:,} lines are damaged:\n{some}\n"
            "Fix the file, or download it again."
        )
    return found


def _take(
    line: bytes, width: int, vocabulary: Mapping[str, int], lowered: Mapping[str, Sequence[int]], found: _Found
) -> str | None:
    """Store the vector of a line if a token needs it, and return the problem of a damaged line.

    Numbers that no token needs are not parsed.
    """
    parts = line.replace(b"\t", b" ").rstrip().rsplit(b" ", width)
    if len(parts) != width + 1:
        return f"{len(parts) - 1} numbers, expected {width}"
    try:
        word = parts[0].decode()
    except UnicodeDecodeError:
        return "not valid UTF-8"
    if _is_number(parts[0].rpartition(b" ")[2]) and b" " in parts[0]:
        return f"more than {width} numbers"
    low = word.lower()
    fits = [(row, LOWERED if low == word else FOLDED) for row in lowered.get(low, ())]
    if word in vocabulary:
        fits.append((vocabulary[word], EXACT))
    wanted = [(row, fit) for row, fit in fits if found.fit[row] < fit]
    if not wanted:
        return None
    try:
        vector = np.array(parts[1:], np.float64).astype(np.float32)
    except ValueError:
        return "a value that is not a number"
    if not np.isfinite(vector).all():
        return "a number that is not finite"
    for row, fit in wanted:
        found.matrix[row], found.fit[row] = vector, max(fit, found.fit[row])
    return None


def _header(line: bytes) -> tuple[int, int] | None:
    """Return the number of words and of numbers per word if the first line is a header."""
    parts = line.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    return None


def _check_width(path: str, line: bytes, header: tuple[int, int] | None, width: int) -> None:
    file_width = header[1] if header else _numbers(line)
    if file_width != width:
        raise DataError(
            f"`{path}`: its vectors have {file_width} numbers, `model.hidden_size` is {width}. Set "
            f"`model.hidden_size={file_width}` (a multiple of `model.num_heads`) or use vectors with {width} numbers."
        )


def _numbers(line: bytes) -> int:
    """Count the numbers at the end of a line, after the word."""
    return len(list(itertools.takewhile(_is_number, reversed(line.split()[1:]))))


def _is_number(part: bytes) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


@contextmanager
def _lines(path: str, width: int) -> Iterator[Iterator[bytes]]:
    """Open the lines of a file, decompressed. Of an archive, take the file whose vectors have `width` numbers."""
    filesystem, inner = storage.resolve(path)
    try:
        with ExitStack() as stack:
            if inner.endswith(".zip"):
                raw: IO[bytes] = stack.enter_context(filesystem.open_input_file(inner))
                yield iter(stack.enter_context(_member(path, zipfile.ZipFile(raw), width)))
            else:
                raw = stack.enter_context(filesystem.open_input_stream(inner, compression=None))
                stream = io.BufferedReader(raw, 2**20)  # type: ignore[type-var]
                yield iter(stack.enter_context(gzip.GzipFile(fileobj=stream)) if inner.endswith(".gz") else stream)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"`{path}`: cannot be read: {error}. Download it again.") from None


def _member(path: str, archive: zipfile.ZipFile, width: int) -> IO[bytes]:
    names = [info.filename for info in archive.infolist() if not info.is_dir() and info.filename[0] not in "._"]
    widths = {}
    for name in names:
        with archive.open(name) as file:
            first = next(iter(file), b"")
        header = _header(first)
        widths[name] = header[1] if header else _numbers(first)
    fitting = [name for name in names if widths[name] == width] if len(names) > 1 else names
    if len(fitting) != 1:
        members = ", ".join(
            f"`{name}` ({count} numbers)" for name, count in itertools.islice(widths.items(), MAX_SHOWN)
        )
        raise DataError(
            f"`{path}`: needs one file of vectors with {width} numbers (`model.hidden_size`), but has "
            f"{members or 'no file'}. Set `model.hidden_size`, or name the unpacked file."
        )
    return archive.open(fitting[0])
