"""The sections of the run file: frozen models, each key with its type, its limits, its default and what it does."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the run file: frozen, and without room for unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# The schema, for editors, knows the bare string too.
Strings = BeforeValidator(_as_list, json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)])


def _text_keys(value: object) -> object:
    """Labels that YAML reads as numbers or booleans, as they are named in the data."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): weight for key, weight in value.items()}


Paths = Annotated[tuple[str, ...], Strings, Field(min_length=1)]
Columns = Annotated[tuple[str, ...], Strings, Field(min_length=1)]
Weights = dict[str, Annotated[float, Field(ge=0.0)]]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Workers = Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Steps = Annotated[int, Field(strict=True, ge=1)]
ShareOfEpoch = Annotated[float, Field(strict=True, gt=0.0, le=1.0)]
Duration = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[smh]$")]
CheckpointEvery = Steps | ShareOfEpoch | Duration


Monitor = Literal[
    "valid_loss",
    "valid_accuracy",
    "valid_f1_macro",
    "valid_f1_micro",
    "valid_map",
    "valid_subset_accuracy",
    "valid_token_accuracy",
    "valid_exact_match",
]


class Data(Section):
    """Where the labelled rows are."""

    train: Paths | None = None
    """Training files: a path, glob, folder or URI, or a list of them. csv, tsv, jsonl, parquet (also .gz, .zst), or a
    folder of `<label>/<file>.txt`."""
    valid: Paths | None = None
    """Validation files; without them `valid_fraction` of the training rows is set aside."""
    test: Paths | None = None
    """Test files, scored by `txclf evaluate` and by nothing else."""
    valid_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training rows set aside for validation, by a hash of the text: duplicates never straddle the two."""
    text: Columns = ("text",)
    """Column that holds the text, or a list of columns that become one sequence with a separator token between. Where
    they are too long together, the longest column is cut first."""
    target: str = "target"
    """Column that holds the text to produce, for `task: seq2seq`."""
    label: str = "label"
    """Column that holds the label: strings, integers or booleans; with `task: multilabel` any number of them."""
    label_delimiter: Annotated[str, Field(min_length=1)] = ","
    """For `task: multilabel`: what stands between the labels where the column holds strings instead of lists."""
    truncation: Literal["head", "tail", "head_tail", "windows"] = "head"
    """What is read of a text of more than `tokenizer.max_length` tokens: its first tokens, its last, a quarter from its
    head and the rest from its tail (arXiv:1905.05583), or windows of `max_length` tokens whose logits are averaged."""
    window_overlap: Annotated[int, Field(ge=0)] = 0
    """Tokens that neighbouring windows of `truncation: windows` share; fewer than `tokenizer.max_length`."""
    max_windows: Annotated[int, Field(ge=1, le=1024)] = 8
    """Most windows of a row; what lies beyond them is cut. A batch holds up to this many times its rows."""
    ingest: Literal["auto", "memory", "stream"] = "auto"
    """Where the tokens are while training: in `memory` (on Ray in its object store too), or streamed once to the disk
    of each node and read from there, so that memory stays small. `auto` takes memory where they fit, and says so."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """`fail` stops with the first twenty bad rows; `skip` leaves each out and writes it to `rejected.jsonl`."""


class Truncation(Section):
    """How a row of more than `tokenizer.max_length` tokens is treated. Kept in the bundle."""

    mode: Literal["head", "tail", "head_tail", "windows"] = "head"
    """As `data.truncation`."""
    window_overlap: int = 0
    max_windows: int = 1
    """1 but for `windows`."""
    columns: Literal["longest", "end"] = "longest"
    """Of several columns the longest is cut first, or the end of all of them, as it was before."""

    def capacity(self, max_length: int) -> int:
        """Most tokens kept of a row."""
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
    """How text becomes token ids. Trained on the train split, unless `file` is given."""

    kind: Literal["bpe", "wordpiece", "unigram", "word", "file"] = "bpe"
    """`bpe` (bytes, no unknown token), `wordpiece`, `unigram`, `word` (whole words), or `file`. Trained twice on
    the same text, `bpe` and `word` come out the same; the `tokenizers` library does not promise it of the other two."""
    vocab_size: Annotated[int, Field(ge=16, le=1_000_000)] = 16_000
    """Most tokens in the vocabulary, special tokens included."""
    lowercase: bool = True
    """Whether text is lower-cased first."""
    normalize: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode normal form applied first."""
    max_length: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Tokens kept of a text; the rest is cut and counted in the manifest."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """Occurrences that a token needs to enter the vocabulary."""
    training_megabytes: Annotated[int, Field(ge=1)] = 200
    """Size of the training files above which the tokenizer learns from a sample of them, drawn by the seed."""
    target: Literal["shared", "separate"] = "shared"
    """For `task: seq2seq`: whether one vocabulary serves both sides, or each has its own of `vocab_size`."""
    file: str | None = None
    """A `tokenizer.json` of the `tokenizers` library, for `kind: file`."""

    @model_validator(mode="after")
    def _file_goes_with_kind(self) -> Self:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("`kind: file` and `file: PATH` go together: set both or neither")
        return self


class Model(Section):
    """The transformer encoder and its head."""

    num_layers: Annotated[int, Field(ge=1)] = 2
    """Encoder blocks."""
    hidden_size: Annotated[int, Field(ge=1)] = 128
    """Size of a token's vector."""
    word_vectors: str | None = None
    """Path or URI of pre-trained word vectors that initialize the token embeddings: a GloVe or word2vec text file with
    `hidden_size` numbers per word, also .gz or .zip. Needs `tokenizer.kind: word`."""
    freeze_word_vectors: bool = False
    """Whether the vectors found in `word_vectors` stay as they are; the others are trained either way."""
    num_heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; they divide `hidden_size`."""
    intermediate_size: Annotated[int, Field(ge=1)] = 512
    """Hidden size of a block's feed-forward part."""
    dropout: Fraction = 0.1
    """Dropout on each residual branch and in the head."""
    attention_dropout: Fraction = 0.0
    """Dropout on attention weights; 0 lets attention take its fastest kernel."""
    embedding_dropout: Fraction | None = None
    """Dropout on the embedded tokens; null = `dropout`."""
    position_encoding: Literal["rotary", "sinusoidal", "learned", "none"] = "rotary"
    """Rotary (arXiv:2104.09864), sinusoidal (arXiv:1706.03762), learned, or none."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each branch (arXiv:2002.04745) or after the sum."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the feed-forward part and of the head."""
    pooling: Literal["mean", "max", "mean_max", "cls", "attention"] = "mean"
    """How real tokens become one vector; `mean_max` puts the two side by side, `cls` a learned vector in front."""
    segment_embeddings: bool | None = None
    """Whether a learned vector for its column is added to each token (arXiv:1810.04805); null = where `data.text` has
    several columns."""
    classifier_hidden_size: Annotated[int, Field(ge=0)] = 0
    """Hidden size of the head; 0 = one linear layer."""
    num_decoder_layers: Annotated[int, Field(ge=1)] | None = None
    """Decoder blocks of a `seq2seq` model; null = `num_layers`."""
    tie_embeddings: bool = True
    """Whether a `seq2seq` model has one matrix for its target tokens, in and out (arXiv:1608.05859), and for its source
    tokens too where the vocabulary is shared."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"`num_heads` ({self.num_heads}) must divide `hidden_size` ({self.hidden_size})")
        if self.freeze_word_vectors and self.word_vectors is None:
            raise ValueError("`freeze_word_vectors` needs a file of `word_vectors`")
        if self.position_encoding == "rotary" and (self.hidden_size // self.num_heads) % 2:
            size = self.hidden_size // self.num_heads
            raise ValueError(f"`position_encoding: rotary` needs an even `hidden_size` / `num_heads`, not {size}")
        if self.position_encoding == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"`position_encoding: sinusoidal` needs an even `hidden_size`, not {self.hidden_size}")
        return self


class Train(Section):
    """Optimization, validation and checkpoints."""

    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows per optimizer step, over all workers and accumulated parts together."""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """Parts into which each worker cuts its share of a batch, to save memory; the step stays the same."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay (arXiv:1711.05101), on weight matrices only: not on norms, biases or embeddings."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "one_cycle"
    """Learning rate over the steps: warm-up to the peak, then down by a cosine, a line, or not at all."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps spent warming up."""
    start_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.04
    """Learning rate of the first step, as a share of the peak."""
    end_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Learning rate at the end of a falling schedule, as a share of the peak."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Gradient norm above which gradients are scaled down; 0 = never."""
    ema_decay: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and bundled; 0 = none."""
    class_weights: Literal["none", "balanced"] | Annotated[Weights, BeforeValidator(_text_keys)] = "none"
    """`balanced` weighs a class by rows / (classes x its rows); a mapping gives each label's weight (default 1). For
    `task: multilabel` it is the weight of the rows that have a label: `balanced` is rows without / rows with it."""
    token_dropout: Fraction = 0.0
    """Share of a row's tokens left out each time it is trained on (word dropout); at least one stays."""
    adversarial: Annotated[float, Field(ge=0.0)] = 0.0
    """Length of a shift of a row's token vectors (each about 1 long), towards a higher loss; every step is then half on
    the rows as they are and half on the shifted ones, at twice the cost (arXiv:1605.07725); 0 = none."""
    label_smoothing: Fraction = 0.0
    """Probability mass spread over all classes (arXiv:1512.00567)."""
    focal_gamma: Annotated[float, Field(ge=0.0)] = 0.0
    """Focal loss (arXiv:1708.02002): a row's loss is multiplied by (1 - p) to this power, p being the probability of
    its label, so that easy rows count less; with `class_weights` too, but not with `label_smoothing`; 0 = none."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Rows of an epoch: each at most once (`shuffle`), or all classes equally often, with rows of rare classes several
    times and not all of the frequent ones (`balanced`); the steps stay as many. Not with `class_weights`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware multiplies it fast (CUDA, AMX, AVX512-BF16), fp32 elsewhere."""
    compile: bool = False
    """Whether `torch.compile` is applied to the model."""
    monitor: Monitor = "valid_loss"
    """What ranks validations: for the best checkpoint, and so for the bundle. `multilabel` knows `valid_loss`,
    `valid_map`, `valid_f1_macro`, `valid_f1_micro` and `valid_subset_accuracy`; `seq2seq` knows `valid_loss`,
    `valid_token_accuracy` and `valid_exact_match`."""
    early_stopping_patience: Annotated[int, Field(ge=0)] = 5
    """Validations without a better `monitor` after which the run stops; 0 = never."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """Best checkpoints kept, beside the last."""
    average_checkpoints: Annotated[int, Field(ge=0)] = 0
    """Best checkpoints whose mean weights are bundled (arXiv:2203.05482) where they score at least as well on the
    validation rows as the best alone; at most `keep_checkpoints`; 0 = the best alone."""
    train_on_valid: bool = False
    """Whether to train on the validation rows too, as for the last model after a search. The last checkpoint is the
    model then, and there is no early stopping: validation scores are of rows that it learned from."""
    calibrate: bool = True
    """Whether the bundle's probabilities are calibrated by a temperature fitted on the validation rows
    (arXiv:1706.04599); not with `train_on_valid`, which learned from them."""
    eval_every: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of an epoch between validations."""
    checkpoint_every: CheckpointEvery = "10m"
    """What passes between checkpoints beside those of validations: steps (an integer), a share of an epoch (0.25) or
    time (`90s`, `10m`, `1h`)."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What a gradient that is not finite does: it never reaches the weights, and the run ends (`stop`), or goes on with
    the next step (`skip`)."""
    stall_timeout_s: Annotated[float, Field(gt=0.0)] = 300
    """Seconds without a sign of life, a batch or a step after which a worker of Ray counts as lost."""
    log_every_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between lines in `metrics.jsonl` and TensorBoard."""
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Experiment trackers that get the metrics and the run file too: `mlflow`, `wandb`; packages of their own."""
    bucket_batches: Annotated[int, Field(ge=1)] = 32
    """Batches sorted by length together: more = less padding, less mixing."""

    @model_validator(mode="after")
    def _one_remedy_at_a_time(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("`focal_gamma` and `label_smoothing` do not go together: the one needs one true class")
        if self.sampling == "balanced" and self.class_weights != "none":
            raise ValueError("`sampling: balanced` and `class_weights` do the same twice: take one of them")
        return self

    @model_validator(mode="after")
    def _averaged_checkpoints_are_kept(self) -> Self:
        if self.average_checkpoints > self.keep_checkpoints:
            kept = self.keep_checkpoints
            raise ValueError(
                f"`average_checkpoints` ({self.average_checkpoints}) needs as many `keep_checkpoints`, not {kept}"
            )
        return self


class Generate(Section):
    """How a `seq2seq` model makes its output. Kept in the bundle, as defaults."""

    num_beams: Annotated[int, Field(ge=1, le=100)] = 4
    """Outputs followed at once (beam search); 1 = always the likeliest token."""
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.6
    """Exponent of the length penalty (arXiv:1609.08144): more = longer outputs."""
    max_length: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Most tokens of an output; null = `tokenizer.max_length`."""


class Compute(Section):
    """Where it runs."""

    workers: Workers = 0
    """0 = in this process, Ray is not started; N = Ray Train with N workers; `[2, 8]` = elastic: as many as the cluster
    has room for, fewer when a node dies and more when one comes."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1
    """CPUs of a worker; with `workers: 0` every core is used."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0
    """GPUs of a worker."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the model: `ddp` a copy each, `fsdp` a shard each, for models that one GPU cannot hold."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """In what gradients travel between workers; bf16 halves the traffic."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures after which a Ray run gives up; before, it goes on from the last checkpoint."""
    address: str | None = None
    """Ray cluster to join (`auto`, `host:port`); null = `RAY_ADDRESS` if set, else a local Ray for this run."""

    @model_validator(mode="after")
    def _fewest_before_most(self) -> Self:
        if self.fewest > self.most:
            raise ValueError(f"`workers: [{self.fewest}, {self.most}]`: expected the fewest, then the most")
        return self

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return isinstance(self.workers, tuple)

    @property
    def fewest(self) -> int:
        """Workers that it takes at least."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most(self) -> int:
        """Workers that it has room for."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def on_ray(self) -> bool:
        """Whether Ray runs it."""
        return self.most > 0
