"""The sections of the run file: frozen models that say of each key its type, limits, default and meaning.

`train` is in `config/train.py` and `tune` in `config/search_space.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from txclf.config.base import Columns, Count, CountOrZero, Delimiter, Encoding, Fraction, Paths, Section, Size, Workers


class Data(Section):
    """Labelled files and how their rows are read."""

    train: Paths | None = None
    """Training files: a path, glob, folder or URI, or a list of them. Formats are csv, tsv, jsonl and parquet, each
    also with .gz or .zst, and folders of `<label>/<file>.txt`. `txclf prepare` and `txclf train` need it."""
    valid: Paths | None = None
    """Validation files, named as in `train`. null holds out `valid_fraction` of the training rows."""
    test: Paths | None = None
    """Test files, named as in `train`. They are used for the final score of `txclf evaluate` only. null holds out
    `test_fraction` of the training rows."""
    unlabelled: Paths | None = None
    """Files without labels, named as in `train`, for the teacher of `distill`, which answers their rows, or for
    `train.pretrain_epochs`. A label column in them is ignored. The tokenizer is trained on them too. Not for `task:
    seq2seq`."""
    altered_copies: Annotated[int, Field(ge=0, le=1000)] = 0
    """Copies of each training text with words left out, replaced and rearranged, which the teacher of `distill` answers
    too (arXiv:1903.12136). A model from scratch gains much from them on small data; preparation, the teacher and an
    epoch take as many times longer. Not for `task: seq2seq`."""
    valid_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training rows held out for validation, at least one text. The choice is a hash of the text, so rows
    with the same text stay together. Without effect if `valid` is set."""
    encoding: Encoding = "utf-8"
    """Encoding of csv, tsv, jsonl and text files, by its name in Python: `utf-8` (with or without a byte order mark),
    `latin-1`, `cp1252`, `utf-16` and so on."""
    delimiter: Delimiter | None = None
    """Character between the columns of csv files, such as `";"`, `"|"` or `"\\t"`. null is a comma. The columns of tsv
    files are always separated by tabs."""
    test_fraction: Literal["auto"] | Annotated[float, Field(ge=0.0, lt=1.0)] = "auto"
    """Share of the training rows held out for the test split. `auto` is 0.1 if there are at least 1,000 rows, otherwise
    0, which holds out none. The choice is a hash of the text alone, the same for every `seed`; rows with the same text
    stay together. `valid_fraction` is a share of the other rows. Without effect if `test` is set."""
    text: Columns = ("text",)
    """Column with the text, or a list of columns, which become one sequence with a separator token between them. If
    they are too long together, the longest column is truncated first."""
    target: str = "target"
    """Column with the text to generate, for `task: seq2seq`."""
    label: str = "label"
    """Column with the label: strings, integers or booleans. With `task: multilabel`, lists of them, or strings with
    `label_delimiter` between the labels."""
    label_delimiter: Annotated[str, Field(min_length=1)] = ","
    """Delimiter between labels in a column of strings, and in csv predictions, for `task: multilabel`."""
    corrections: Paths | None = None
    """Files with corrected labels, as `txclf audit` writes them: a path or a list, applied in order. A row of the
    training, validation and test files with the text and label of a correction gets the label in the column
    `corrected`. `[drop]` there leaves the row out, `[none]` takes all labels away with `task: multilabel`, and a blank
    changes nothing. Not for `task: seq2seq`."""
    truncation: Literal["head", "tail", "head_tail", "windows"] = "head"
    """Truncation of texts with more than `tokenizer.max_length` tokens. `head` keeps the first tokens, `tail` the last,
    and `head_tail` 25 % from the head and 75 % from the tail (arXiv:1905.05583). `windows` reads overlapping windows of
    `max_length` tokens and averages their logits. `task: seq2seq` does not support `windows`."""
    window_overlap: CountOrZero = 0
    """Tokens shared by neighbouring windows, for `truncation: windows`. Less than `tokenizer.max_length`."""
    max_windows: Annotated[int, Field(ge=1, le=1024)] = 8
    """Maximum number of windows per row, for `truncation: windows`. The rest of the text is truncated. A batch holds up
    to `max_windows` times as many sequences as rows."""
    shuffle_window: Annotated[int, Field(ge=1, le=2**40)] = 2**24
    """Tokens of the training rows that are shuffled together. An epoch is read in windows of about so many tokens, each
    from row groups drawn at random, and a process holds two or three windows. Training data of at most that size are
    shuffled as a whole. With `train.sampling: balanced`, classes come equally often within a window."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """Reaction to rows that cannot be used. `fail` stops and names the first twenty; `skip` leaves them out and writes
    them to `rejected.jsonl`."""


class Truncation(Section):
    """Truncation of rows with more than `tokenizer.max_length` tokens, as kept in the bundle."""

    mode: Literal["head", "tail", "head_tail", "windows"] = "head"
    """Value of `data.truncation`."""
    window_overlap: int = 0
    """Tokens shared by neighbouring windows; 0 unless `mode` is `windows`."""
    max_windows: int = 1
    """Maximum number of windows per row; 1 unless `mode` is `windows`."""
    columns: Literal["longest", "end"] = "longest"
    """Truncation of several text columns: the longest first, or the end of the joined columns (old bundles)."""

    def capacity(self, max_length: int) -> int:
        """Return the maximum number of tokens kept per row."""
        return max_length + (self.max_windows - 1) * (max_length - self.window_overlap)

    def describe(self, max_length: int) -> str:
        """Describe which tokens of a text the model reads."""
        if self.mode == "head":
            return f"the first {max_length:,} tokens"
        if self.mode == "tail":
            return f"the last {max_length:,} tokens"
        if self.mode == "head_tail":
            return f"the first and last tokens, {max_length:,} together,"
        return f"at most {self.max_windows:,} windows of {max_length:,} tokens"


class Tokenizer(Section):
    """Tokenizer, trained on the train split or read from `file`. With `model.pretrained`, only `max_length` counts."""

    kind: Literal["bpe", "wordpiece", "unigram", "word", "file"] = "bpe"
    """Kind of tokenizer: `bpe` (on bytes, without unknown tokens), `wordpiece`, `unigram`, `word` (whole words), or
    `file`. Training is repeatable for `bpe` and `word`. For `wordpiece` and `unigram`, the `tokenizers` library may
    give another vocabulary for the same text."""
    vocab_size: Annotated[int, Field(ge=16, le=1_000_000)] = 16_000
    """Maximum number of tokens in the vocabulary, special tokens included. `bpe` has at least 260: the bytes and the
    special tokens."""
    lowercase: bool = True
    """Convert text to lower case first. For `task: seq2seq`, whose answers are texts, the default is false."""
    normalize: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode normal form applied to the text first; `none` keeps the text as it is."""
    max_length: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Maximum number of tokens per text, or per window with `data.truncation: windows`. Longer texts are truncated, and
    the manifest counts them. The special tokens of a pretrained model count too."""
    min_frequency: Count = 2
    """Occurrences that a token needs to enter the vocabulary. `unigram` ignores it."""
    training_megabytes: Count = 200
    """Size of the training files on disk, in MiB, above which the tokenizer is trained on a sample of the rows. The
    sample is drawn with `seed`."""
    target: Literal["shared", "separate"] = "shared"
    """Vocabulary of the targets, for `task: seq2seq`: `shared` with the texts, or `separate`, each of `vocab_size`."""
    file: str | None = None
    """Path of a `tokenizer.json` of the `tokenizers` library, for `kind: file`. It replaces training, so of the other
    keys only `max_length` has an effect."""

    @model_validator(mode="after")
    def _file_requires_kind(self) -> Self:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("`kind: file` and `file: PATH` require each other. Set both or neither.")
        return self


class SpecialTokens(Section):
    """Tokens that a pretrained model expects around a text, which are added when rows become sequences."""

    prefix: tuple[int, ...] = ()
    """Token ids in front of a sequence, such as `[CLS]`."""
    separator: tuple[int, ...] = ()
    """Token ids between two text columns. They are part of the prepared rows."""
    suffix: tuple[int, ...] = ()
    """Token ids behind a sequence, such as `[SEP]`."""
    pad: int = 0
    """Token id of padding."""
    token_types: int = 0
    """Token types that tell text columns apart; 0 if the model does not."""

    @property
    def added(self) -> int:
        """Number of tokens that are added to each sequence."""
        return len(self.prefix) + len(self.suffix)


class Model(Section):
    """Transformer encoder with a pooling and a head; an encoder and a decoder for `task: seq2seq`.

    With `pretrained`, the keys of the architecture follow from the pretrained model. For `task: classify` from scratch,
    some follow from the number of training rows if the run file sets none of them.
    """

    pretrained: str | None = None
    """Pretrained model to fine-tune, with its tokenizer: a folder or URI, or an id of the Hugging Face hub. Any model
    that `AutoModelForSequenceClassification` of Transformers loads, except encoder-decoders, in the safetensors format.
    Needs the extra `pretrained`. null trains from scratch. Not for `task: seq2seq`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. A run records the commit."""
    freeze: Literal["none", "embeddings", "encoder"] | Count = "none"
    """Part of the pretrained model that is not trained: `embeddings`, the embeddings and the first layers (`4`), or the
    whole `encoder`. A frozen part has no dropout. With `encoder`, the rows pass through it only once."""
    reinitialize_layers: CountOrZero = 0
    """Top layers of the pretrained encoder that start from random weights (arXiv:2006.05987)."""
    ngrams: Literal["auto"] | bool = "auto"
    """Let a linear model on n-grams, trained on the same rows in seconds, answer together with the network. Its weight
    is the one with the smallest loss on the validation rows, which may be 0 or 1. `auto` does so for a model from
    scratch that has validation rows. A Transformers folder and exported graphs hold the network alone. Not for `task:
    seq2seq`."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass (arXiv:1604.06174), which saves memory and takes
    about a third longer. Only with `pretrained`."""
    num_layers: Annotated[int, Field(ge=1, le=1000)] = 2
    """Encoder blocks."""
    hidden_size: Size = 128
    """Size of the vector of a token. `num_heads` must divide it."""
    word_vectors: str | None = None
    """Path or URI of pre-trained word vectors that initialize the token embeddings. Either a GloVe or word2vec text
    file with `hidden_size` numbers per word, also as .gz or .zip, which needs `tokenizer.kind: word`, or `file` with a
    word vocabulary. Or the folder of a pretrained encoder, such as the bundle of a teacher: each token has the mean of
    the encoder's last layer for it alone, projected to `hidden_size`. null initializes at random. Not for `task:
    seq2seq`."""
    freeze_word_vectors: bool = False
    """Keep the vectors found in `word_vectors` fixed. The other embeddings are always trained."""
    num_heads: Size = 4
    """Attention heads. They must divide `hidden_size`; with `position_encoding: rotary`, `hidden_size` / `num_heads`
    must be even."""
    intermediate_size: Size = 512
    """Hidden size of the feed-forward layer in each block."""
    dropout: Fraction = 0.1
    """Dropout probability on each residual branch and in the head. A pretrained model keeps its own unless set."""
    attention_dropout: Fraction = 0.0
    """Dropout probability on attention weights. 0 allows the fastest attention kernel. A pretrained model keeps its own
    unless set."""
    embedding_dropout: Fraction | None = None
    """Dropout probability on the token embeddings. null takes `dropout`."""
    position_encoding: Literal["rotary", "sinusoidal", "learned", "none"] = "rotary"
    """Position encoding: `rotary` (arXiv:2104.09864), `sinusoidal` (arXiv:1706.03762), `learned` or `none`. The default
    of `task: seq2seq` is `sinusoidal`: with rotary positions, the decoder learns those in the source slowly."""
    norm: Literal["pre", "post"] = "pre"
    """Position of the layer norm: `pre` before each branch (arXiv:2002.04745), `post` after the sum."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Activation function of the feed-forward layers and of the head."""
    pooling: Literal["mean", "max", "mean_max", "cls", "attention"] = "mean"
    """Pooling of the token vectors into one vector: their `mean`, their `max`, both concatenated (`mean_max`), a mean
    with learned weights (`attention`), or the output of a learned vector in front of the text (`cls`). `task: seq2seq`
    does not use it and does not accept `cls`. A pretrained model pools as it was trained: by the `mean` if it is a
    sentence encoder (BERT or RoBERTa with a folder `1_Pooling` that says so), otherwise as its classifier in
    Transformers does (`cls`). `mean` selects the mean for any BERT or RoBERTa."""
    segment_embeddings: bool | None = None
    """Add a learned vector for its text column to each token (arXiv:1810.04805). null adds it if `data.text` names
    several columns. Not for `task: seq2seq`."""
    classifier_hidden_size: Annotated[int, Field(ge=0, le=2**17)] = 0
    """Size of the hidden layer of the head. 0 makes the head a single linear layer. `task: seq2seq` does not use it."""
    num_decoder_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Decoder blocks, for `task: seq2seq`. null takes `num_layers`."""
    tie_embeddings: bool = True
    """Share one matrix between the input and output embeddings of the target tokens (arXiv:1608.05859), and with the
    source embeddings if the vocabulary is shared. For `task: seq2seq`."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        size = self.hidden_size // self.num_heads
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`num_heads` ({self.num_heads}) must divide `hidden_size` ({self.hidden_size}). Change one of them."
            )
        if self.freeze_word_vectors and self.word_vectors is None:
            raise ValueError("`freeze_word_vectors` needs `word_vectors`. Set it, or remove the key.")
        if self.position_encoding == "rotary" and size % 2:
            raise ValueError(
                f"`position_encoding: rotary` needs an even `hidden_size` / `num_heads`, not {size}. Change one."
            )
        if self.position_encoding == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                f"`position_encoding: sinusoidal` needs an even `hidden_size`, not {self.hidden_size}. Add 1."
            )
        return self


class Distill(Section):
    """Knowledge distillation (arXiv:1503.02531): the model learns the probabilities of a trained model, its teacher.

    The loss of a labelled row is `weight` x the teacher's loss + (1 - `weight`) x the loss of the label. A row of
    `data.unlabelled` has the teacher's loss alone. The teacher's loss is the Kullback-Leibler divergence from its
    probabilities, times `temperature` squared; with `task: multilabel`, its mean over the labels.
    """

    teacher: str | None = None
    """Path or URI of the teacher: a bundle of the same task with the same labels, such as `runs/large/model`. It reads
    the training rows once, and all runs on the same prepared data share its answers. null trains on labels alone. Not
    for `task: seq2seq`."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 2.0
    """Divisor of the logits of both models in the teacher's loss. A higher one shows more of what the teacher thinks of
    the less likely labels."""
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    """Share of the teacher's loss in the loss of a labelled row."""


class Generate(Section):
    """Beam search of a `seq2seq` model. The bundle keeps these settings as its defaults."""

    num_beams: Annotated[int, Field(ge=1, le=100)] = 4
    """Beams: outputs that are extended in parallel. 1 is greedy decoding."""
    length_penalty: Annotated[float, Field(ge=0.0, le=100.0)] = 0.6
    """Exponent of the length penalty (arXiv:1609.08144): outputs are ranked by log probability / ((5 + length) / 6) **
    `length_penalty`. Higher values give longer outputs; 0 disables the penalty."""
    max_length: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Maximum number of tokens of an output, at most `tokenizer.max_length`, which null takes."""


class Compute(Section):
    """Processes and devices of a run."""

    workers: Workers = 0
    """Training processes. 0 runs in this process, without Ray. N starts Ray Train with N workers, and prepares with Ray
    Data. `[2, 8]` is elastic: as many workers as the cluster has room for, fewer if a node dies and more if one joins.
    `workers` x `cpus_per_worker` and x `gpus_per_worker` must not exceed the resources of the Ray cluster."""
    cpus_per_worker: Annotated[float, Field(gt=0.0, le=1e5)] = 1
    """CPUs per worker, which are also its threads (rounded down, at least one). With `workers: 0`, all cores are
    used."""
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=1e5)] = 0
    """GPUs per Ray worker: 0 or 1. A share such as 0.5 lets two trials of one worker, or two workers that predict, have
    the same GPU; the workers of one run need a GPU each. With `workers: 0`, this process uses one GPU if it has one."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Distribution of the model. With `ddp`, each worker holds a copy. With `fsdp`, each worker holds a shard of the
    weights, gradients and optimizer state, for models that do not fit one GPU with all of them; the weights alone must
    fit, for validation. A run may be resumed with the other strategy, because checkpoints are the same."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the gradients that workers exchange. `bf16` halves the traffic."""
    max_failures: CountOrZero = 3
    """Worker failures that a run on Ray survives, each by a restart from the last checkpoint. One more ends it."""
    address: str | None = None
    """Address of the Ray cluster to join: `auto` or `host:port`. null takes the environment variable `RAY_ADDRESS`, or
    starts a local Ray for this run, as `local` always does."""

    @model_validator(mode="after")
    def _min_before_max(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"`workers: [{self.min_workers}, {self.max_workers}]`: the minimum must come first. Exchange them."
            )
        return self

    @property
    def elastic(self) -> bool:
        """True if the number of workers may change during the run."""
        return isinstance(self.workers, tuple)

    @property
    def min_workers(self) -> int:
        """Minimum number of workers."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def on_ray(self) -> bool:
        """True if the run uses Ray."""
        return self.max_workers > 0
