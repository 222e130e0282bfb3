"""Pre-trained word vectors: a text file of GloVe or word2vec, matched to the tokenizer's words.

    the ±5 9 400 0.1 …      a line per word: the word, then its numbers; a word may hold spaces
    400000 50               word2vec's first line: words and numbers of each

The file is read line by line; only what the vocabulary asks for is kept, as one matrix beside the prepared data. All
workers, and a resumed run, begin from that; the bundle holds the trained matrix.

A word is looked up as it stands, else lower-cased, else among the file's words lower-cased: the first two for GloVe
(lower case), the last for cased files under a tokenizer that lower-cases. Of a word that stands twice the first counts.

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
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards
from txclf.data.tokenizer import parse_tokenizer, vocab_size

EXACT, LOWERED, FOLDED = 3, 2, 1
"""How well a word of the file fits a token: as it stands, the token lower-cased, the file's word lower-cased."""
SHOWN = 10
"""Damaged lines that are named."""
MOST_DAMAGED = 0.01
"""Share of the lines above which a file is refused."""

Floats = npt.NDArray[np.float32]


class Coverage(BaseModel):
    """What a file of vectors gave to a vocabulary; in the run's `vectors.json` and `summary.json`."""

    model_config = ConfigDict(frozen=True)

    file: str
    """The file of vectors, as the run file names it."""
    matrix: str
    """The matched matrix, in the folder of the prepared data."""
    words: int
    """Of the vocabulary, special tokens not counted."""
    found: int
    exact: int
    """Found as they stand; the others by lower case."""
    type_share: float
    """Share of the words that were found."""
    token_share: float
    """Share of the training tokens that these are; `[UNK]` counts as not found, other special tokens not at all."""
    lines: int
    damaged: list[tuple[int, str]]
    """The first damaged lines, by number from 1, with the reason."""
    num_damaged: int

    def describe(self) -> list[str]:
        """Lines for the screen."""
        about = (
            f"vectors: {self.found:,} of {self.words:,} words found ({self.type_share:.1%}, {self.exact:,} of them as "
            f"they stand), which are {self.token_share:.1%} of the training tokens"
        )
        if not self.num_damaged:
            return [about]
        some = "; ".join(f"line {number:,}: {reason}" for number, reason in self.damaged)
        more = " …" if self.num_damaged > len(self.damaged) else ""
        return [about, f"`{self.file}`: {self.num_damaged:,} damaged line(s) skipped: {some}{more}"]


@dataclass
class _Found:
    """Vectors of a vocabulary while the file is read."""

    matrix: Floats
    """(V, D)."""
    fit: npt.NDArray[np.int8]
    """(V,): 0 = not found."""
    lines: int = 0
    damaged: list[tuple[int, str]] = field(default_factory=list)
    num_damaged: int = 0

    def skip(self, number: int, reason: str) -> None:
        self.num_damaged += 1
        if len(self.damaged) < SHOWN:
            self.damaged.append((number, reason))


def require(path: str | None) -> None:
    """Raises `ConfigError` at once when the file is not there or is of a kind that is not read."""
    if path is None:
        return
    if path.endswith((".bin", ".bin.gz")):
        raise ConfigError(
            f"`model.word_vectors`: `{path}`: the binary format is not read: convert it to text, as gensim can"
        )
    if not storage.exists(path):
        raise ConfigError(f"`model.word_vectors`: `{path}` is not there")


def matched(path: str, width: int, prepared: str, seed: int) -> Coverage:
    """Matches a file of vectors to the tokenizer of prepared data; the matrix lies beside them then.

    Done once for a file, as it stands, and prepared data. Raises `DataError` for vectors of another width than `width`,
    a file that is no text of vectors, and one without any word of the vocabulary; `ConfigError` when it is not there.
    """
    require(path)
    filesystem, inner = storage.resolve(path)
    info = filesystem.get_file_info(inner)
    stamp = json.dumps([1, storage.absolute(path), info.size, info.mtime_ns, width])
    name = f"vectors-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    record = storage.join(prepared, f"{name}.json")
    if storage.exists(record):
        return Coverage.model_validate(storage.read_json(record))
    tokenizer = parse_tokenizer(shards.tokenizers(prepared)[0])
    vocabulary, special = _words(tokenizer)
    found = read(path, width, vocabulary, vocab_size(tokenizer))
    known = found.fit > 0
    if not known.any():
        raise DataError(f"`{path}`: none of its words is in the vocabulary: is it of the texts' language?")
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
    tensors = {"vectors": torch.from_numpy(filled(found.matrix, known, seed)), "found": torch.from_numpy(known)}
    storage.write_bytes(storage.join(prepared, coverage.matrix), save_safetensors(tensors))
    storage.write_json(record, coverage.model_dump())
    return coverage


def load(prepared: str, matrix: str) -> tuple[Tensor, Tensor]:
    """The matrix (V, D) that `matched` left, and which of its rows were found (V,)."""
    path = storage.join(prepared, matrix)
    if not storage.exists(path):
        raise DataError(f"`{path}`: the vectors that this run began with are gone: start a new run")
    tensors = load_safetensors(storage.read_bytes(path))
    return tensors["vectors"], tensors["found"]


def filled(matrix: Floats, known: npt.NDArray[np.bool_], seed: int) -> Floats:
    """Vectors (V, D) for a model that multiplies them by sqrt(D): rows that are not known are drawn from a normal
    distribution with the mean and spread that the known ones have in each number; then one factor for all makes the
    known ones' mean square 1 / D, so that an embedded token has unit variance, as random ones have."""
    own = matrix[known].astype(np.float64)
    draw = np.random.default_rng([seed, 0x766563])
    rest = draw.normal(own.mean(axis=0), own.std(axis=0), (int((~known).sum()), matrix.shape[1]))
    whole: npt.NDArray[np.float64] = np.empty(matrix.shape, np.float64)
    whole[known], whole[~known] = own, rest
    square = float((own**2).mean())
    scaled: Floats = (whole / np.sqrt(square * matrix.shape[1] if square else 1.0)).astype(np.float32)
    return scaled


def _words(tokenizer: FastTokenizer) -> tuple[dict[str, int], set[int]]:
    """The vocabulary without special tokens, and the ids of these."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {word: number for word, number in vocabulary.items() if number not in special}, special


def _token_counts(prepared: str, size: int) -> npt.NDArray[np.int64]:
    """How often each token stands in the training rows."""
    counts = np.zeros(size, np.int64)
    for shard in shards.load_manifest(prepared).splits["train"].shards:
        for table in shards.read_groups(prepared, shard, ["input_ids"]):
            for chunk in table["input_ids"].chunks:
                counts += np.bincount(chunk.flatten().to_numpy(), minlength=size)
    return counts


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: str, width: int, vocabulary: Mapping[str, int], size: int) -> _Found:
    """The vectors of a vocabulary (word to row) of `size` rows. Raises `DataError` as `matched` says."""
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
                if found.lines < SHOWN and b"\0" in line:
                    raise DataError(f"`{path}`: line {number}: not text: convert binary vectors to text first")
    if not found.lines:
        raise DataError(f"`{path}`: holds no vectors")
    if announced and found.lines != announced[0]:
        found.skip(1, f"it says {announced[0]:,} words, {found.lines:,} follow")
    if found.num_damaged > max(1, MOST_DAMAGED * found.lines):
        some = "\n".join(f"  line {number:,}: {reason}" for number, reason in found.damaged)
        raise DataError(f"`{path}`: {found.num_damaged:,} of {found.lines:,} lines are damaged:\n{some}")
    return found


def _take(
    line: bytes, width: int, vocabulary: Mapping[str, int], lowered: Mapping[str, Sequence[int]], found: _Found
) -> str | None:
    """Takes a line's vector where a token asks for it; what is wrong with it. Numbers for nobody are not parsed."""
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
        return "a number that is none"
    if not np.isfinite(vector).all():
        return "a number that is not finite"
    for row, fit in wanted:
        found.matrix[row], found.fit[row] = vector, max(fit, found.fit[row])
    return None


def _header(line: bytes) -> tuple[int, int] | None:
    """Words and width, where the first line says them."""
    parts = line.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    return None


def _check_width(path: str, line: bytes, header: tuple[int, int] | None, width: int) -> None:
    there = header[1] if header else _numbers(line)
    if there != width:
        raise DataError(
            f"`{path}`: its vectors have {there} numbers, `model.hidden_size` is {width}. Set "
            f"`model.hidden_size={there}` (a multiple of `model.num_heads`) or use vectors with {width} numbers."
        )


def _numbers(line: bytes) -> int:
    """Numbers at the end of a line; the word before them is at least one part."""
    return len(list(itertools.takewhile(_is_number, reversed(line.split()[1:]))))


def _is_number(part: bytes) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


@contextmanager
def _lines(path: str, width: int) -> Iterator[Iterator[bytes]]:
    """The lines of a file, unpacked; of an archive of several those of the one whose vectors have `width` numbers."""
    filesystem, inner = storage.resolve(path)
    try:
        with ExitStack() as stack:
            if path.endswith(".zip"):
                raw: IO[bytes] = stack.enter_context(filesystem.open_input_file(inner))
                yield iter(stack.enter_context(_member(path, zipfile.ZipFile(raw), width)))
            else:
                raw = stack.enter_context(filesystem.open_input_stream(inner, compression=None))
                stream = io.BufferedReader(raw, 2**20)  # type: ignore[type-var]
                yield iter(stack.enter_context(gzip.GzipFile(fileobj=stream)) if path.endswith(".gz") else stream)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"`{path}`: cannot be read: {error}") from None


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
        there = ", ".join(f"`{name}` ({count} numbers)" for name, count in itertools.islice(widths.items(), SHOWN))
        raise DataError(
            f"`{path}`: needs one file of vectors of `model.hidden_size` ({width}) numbers, it has {there or 'no file'}"
        )
    return archive.open(fitting[0])
