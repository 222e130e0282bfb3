"""The `train` section of the run file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from txclf.config.base import CheckpointEvery, Count, CountOrZero, Fraction, Monitor, Section, Weights


class Train(Section):
    """Optimization, validation and checkpoints.

    Some keys have other defaults, which follow from the number of training rows: with `model.pretrained`, and for
    `task: classify` from scratch if the run file sets none of them.
    """

    epochs: Count = 3
    """Passes over the training rows. Early stopping may end the run sooner; the schedule is made for all epochs."""
    batch_size: Count = 64
    """Rows per optimizer step, over all workers and micro-batches together (the global batch). The loss and the
    gradient of a step are means over these rows, so the learning rate is the same for any number of workers. An epoch
    has `rows // batch_size` steps and leaves out the remaining rows, other ones each time. At least `compute.workers` x
    `micro_batches`, at most the number of training rows."""
    micro_batches: Count = 1
    """Chunks that each worker splits its share of a batch into, to save memory (gradient accumulation; the batch is
    split, not multiplied). The step is the same."""
    pretrain_epochs: CountOrZero = 0
    """Passes over the texts of the training rows, of `data.unlabelled` and `data.altered_copies` before training, in
    which the encoder learns to predict masked tokens (arXiv:1810.04805). The model is then trained twice, from this
    encoder and from random weights, and the better one by `monitor` is bundled. Runs on the same prepared data share
    the encoder; the trials of a search train from it only. Not with `model.pretrained` or `model.word_vectors`, and not
    for `task: seq2seq`."""
    contrastive_steps: CountOrZero = 0
    """Optimizer steps before training in which a sentence encoder of `model.pretrained` learns from pairs of training
    rows to give those of one label similar vectors (SetFit, arXiv:2209.11055). Made for few rows, with `model.freeze:
    encoder`: of up to 32 rows of each label, and 480 in all, both follow if the run file sets neither. For `task:
    classify` and an encoder with `model.pooling: mean`. Not with `model.reinitialize_layers` or `data.truncation:
    windows`."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1e30)] = 1e-3
    """Peak learning rate."""
    head_learning_rate: Annotated[float, Field(gt=0.0, le=1e30)] | None = None
    """Peak learning rate of the head. null takes `learning_rate`. Not for `task: seq2seq`."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor of the learning rate from one layer to the layer below it, down to the embeddings (arXiv:1801.06146).
    Not for `task: seq2seq`."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1e6)] = 0.01
    """Decoupled weight decay (arXiv:1711.05101) of the weight matrices. Norms, biases and embeddings have none."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "one_cycle"
    """Learning rate over the steps of the whole run. It rises from `start_factor` to the peak during warm-up, along a
    half cosine for `one_cycle` and along a line for the others. Then it falls to `end_factor` along a half cosine
    (`one_cycle`, `cosine`) or a line (`linear`), or stays at the peak (`constant`)."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps used for warm-up."""
    start_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.04
    """Learning rate of the first step, as a share of `learning_rate`."""
    end_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Learning rate at the end of a falling schedule, as a share of `learning_rate`."""
    max_grad_norm: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Gradient norm above which gradients are scaled down. 0 disables clipping."""
    ema_decay: Fraction = 0.0
    """Decay per step of an exponential moving average (EMA) of the weights, over about 1 / (1 - `ema_decay`) steps;
    0.99 to 0.999 are usual. If set, the EMA weights are validated and bundled; training itself does not change. 0
    disables EMA."""
    class_weights: Literal["none", "balanced"] | Weights = "none"
    """Weights of the classes in the training loss. `balanced` weights a class by rows / (classes x rows of the class).
    A mapping from label to weight gives 1 to the other labels and is scaled to a mean of 1 over the training rows.
    With `task: multilabel`, the weight multiplies the loss of the rows that
    have the label: `balanced` is rows without / rows with it, between 0.01 and 100, and a mapping is not scaled. Not
    for `task: seq2seq`."""
    token_dropout: Fraction = 0.0
    """Share of the tokens of a row that are removed each time the row is trained on (word dropout). At least one token
    stays."""
    adversarial: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Length of the adversarial shift of a row's token embeddings (arXiv:1605.07725), each about 1 long. The shift
    points in the direction that raises the loss most. Each step then trains on the rows as they are and on the shifted
    rows, half each, and takes a little over twice as long. 1 is a good first value, with some more epochs. 0 disables
    it. Not for `task: seq2seq`."""
    label_smoothing: Fraction = 0.0
    """Probability mass spread over all classes (arXiv:1512.00567), which helps with wrong labels. With `task:
    multilabel`, a value e moves targets from 0 and 1 to e / 2 and 1 - e / 2. Only the training loss uses it. Not with
    `focal_gamma`."""
    focal_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Exponent of the focal loss (arXiv:1708.02002), which multiplies the loss of a row by (1 - p) to this power; p is
    the probability of its label. Easy rows then count less, which helps rare classes. 2 is usual; 0 disables it. It
    works together with `class_weights`, but not with `label_smoothing`. With `task: multilabel`, it applies to each
    label by itself. Not for `task: seq2seq`."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Rows of an epoch. `shuffle` takes each row at most once. `balanced` takes all classes equally often, in as many
    steps: it repeats rows of rare classes and leaves out some rows of frequent classes. With few rows of the rarest
    class, buckets are shorter than `bucket_batches`, which costs padding. `balanced` is for `task: classify` only and
    excludes `class_weights`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation: `fp32`, `bf16` or `fp16` (mixed precision). `auto` takes `bf16` on hardware
    that multiplies it fast (CUDA, AMX, AVX512-BF16), and `fp32` elsewhere."""
    compile: bool = False
    """Apply `torch.compile` to the model."""
    monitor: Monitor = "valid_calibrated_loss"
    """Validation metric that ranks checkpoints, for the best checkpoint, early stopping and the bundle. `classify`:
    `valid_calibrated_loss` (the loss with the best temperature; with `calibrate: false` set `valid_loss`),
    `valid_loss`, `valid_accuracy`, `valid_f1_macro`. `multilabel`: the two losses, `valid_map` (mean average precision
    over the labels; recommended), `valid_f1_macro` and `valid_f1_micro` (each label at its best threshold),
    `valid_subset_accuracy` (share of rows with all labels right at 0.5). `seq2seq`: `valid_loss`, its default,
    `valid_token_accuracy`, `valid_exact_match`. Losses are better if lower, the others if higher."""
    early_stopping_patience: CountOrZero = 5
    """Validations without a better `monitor` after which the run stops. 0 disables early stopping."""
    keep_checkpoints: Count = 3
    """Best checkpoints to keep, in addition to the last one."""
    average_checkpoints: CountOrZero = 0
    """Best checkpoints whose mean weights are bundled (arXiv:2203.05482), if they score at least as well on the
    validation rows as the best checkpoint. At most `keep_checkpoints`. 0 bundles the best checkpoint."""
    train_on_valid: bool = False
    """Train on the validation rows too, as for the final model after a search. The run then has no early stopping,
    bundles the last checkpoint, does not calibrate, and has no quantiles for `--coverage`."""
    calibrate: bool = True
    """Calibrate the probabilities of the bundle, by a temperature fitted on the validation rows (arXiv:1706.04599).
    Without effect with `train_on_valid`, because the model has learned these rows."""
    eval_every: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Epochs between validations. Below 1 it is a share of an epoch, which then has `1 / eval_every` validations,
    rounded, at even distances, and ends with one. Above 1 it is rounded, and the last epoch ends with a validation."""
    checkpoint_every: CheckpointEvery = "10m"
    """Interval between checkpoints, in addition to the one at each validation: steps (`200`), a share of an epoch
    (`0.25`) or a time (`90s`, `10m`, `1h`). A failure loses at most this much work."""
    on_nan: Literal["stop", "skip"] = "stop"
    """Reaction to a gradient that is not finite, which never changes the weights. `stop` ends the run and names the
    step and its rows. `skip` continues with the next step, unless 50 steps in a row are skipped."""
    stall_timeout_s: Annotated[float, Field(gt=0.0, le=1e7)] = 300
    """Seconds without a heartbeat, a batch or a step after which a Ray worker is ended. All workers then restart from
    the last checkpoint."""
    log_every_steps: Count = 50
    """Optimizer steps between lines in `metrics.jsonl` and TensorBoard."""
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Experiment trackers that also receive the metrics and the run file: `mlflow`, `wandb` or both. Install them with
    the extra of the same name."""
    bucket_batches: Count = 32
    """Batches per bucket. The rows of a bucket are sorted by length, so a larger bucket means less padding and less
    shuffling."""

    @model_validator(mode="after")
    def _exclusive_keys(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("`focal_gamma` and `label_smoothing` exclude each other. Set one of them to 0.")
        if self.sampling == "balanced" and self.class_weights != "none":
            raise ValueError("`sampling: balanced` and `class_weights` both balance the classes. Set one of them.")
        return self

    @model_validator(mode="after")
    def _averaged_checkpoints_are_kept(self) -> Self:
        if self.average_checkpoints > self.keep_checkpoints:
            raise ValueError(
                f"`average_checkpoints` ({self.average_checkpoints}) is more than `keep_checkpoints` "
                f"({self.keep_checkpoints}). Keep as many checkpoints as are averaged."
            )
        return self
