"""Measure one sample of prediction speed: rows per second of an untrained model with the run file's shape.

    .venv/bin/python benchmarks/predicting.py VARIANT RUN.yaml [key=value …] [--rows N] [--batch N]

Prints one line of JSON. The variants, all over the first rows of `data.test`:

    txclf         `txclf predict`: reads a Parquet file, tokenizes, predicts, writes a Parquet file
    bare          the model over padded batches that are ready in memory, sorted by length
    transformers  Transformers' text-classification pipeline and a `BertConfig`, in batches of `--batch`
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.data.sampler import scoring_batches
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.model.classifier import TransformerClassifier
from txclf.prediction.predict import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=["txclf", "bare", "transformers"])
    parser.add_argument("run_file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    run = run_config.load(options.run_file, options.overrides)
    torch.manual_seed(run.seed)
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    assert run.data.test
    table = pq.read_table(run.data.test[0])[: options.rows]
    with tempfile.TemporaryDirectory() as scratch:
        data = str(Path(scratch, "rows.parquet"))
        pq.write_table(table, data)
        if options.variant == "transformers":
            tokenizer = Path(scratch, "tokenizer.json")
            tokenizer.write_text(shards.tokenizers(folder)[0])
            seconds = pipeline(run, manifest, tokenizer, table[run.data.text[0]].to_pylist(), options.batch)
        else:
            shape = (run.model, manifest.vocab_size, len(manifest.labels), run.tokenizer.max_length)
            model = TransformerClassifier(*shape)
            model_folder = str(Path(scratch, "model"))
            bundle.save(
                model_folder,
                run,
                model.state_dict(),
                labels=manifest.labels,
                tokenizers=shards.tokenizers(folder),
                metrics={},
                rows={},
            )
            if options.variant == "txclf":
                out = str(Path(scratch, "out.parquet"))
                predict(model_folder, [data], out=out)  # warm-up, which also does the lazy imports
                start = time.perf_counter()
                predict(model_folder, [data], out=out)
                seconds = time.perf_counter() - start
            else:
                seconds = bare(model_folder, table[run.data.text[0]].to_pylist(), options.batch)
    print(json.dumps({"value": len(table) / seconds, "seconds": seconds, "rows": len(table)}))


def bare(folder: str, texts: list[str], size: int) -> float:
    classifier = Classifier.load(folder)
    rows = classifier.rows([pa.table({"input_ids": classifier.encode([(text,) for text in texts])})])
    ready = [rows.pad(part) for part in scoring_batches(rows.lengths, size)]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in ready:
                classifier.model(batch.input_ids, batch.mask)
        seconds.append(time.perf_counter() - start)
    return seconds[-1]


def pipeline(run: RunConfig, manifest: shards.Manifest, tokenizer: Path, texts: list[str], size: int) -> float:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers as hf

    shape = hf.BertConfig(
        vocab_size=manifest.vocab_size,
        hidden_size=run.model.hidden_size,
        num_hidden_layers=run.model.num_layers,
        num_attention_heads=run.model.num_heads,
        intermediate_size=run.model.intermediate_size,
        max_position_embeddings=run.tokenizer.max_length,
        num_labels=len(manifest.labels),
        attn_implementation="sdpa",
    )
    tokenizer_hf = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), pad_token="[PAD]", model_max_length=run.tokenizer.max_length
    )
    classify: Any = hf.pipeline(
        "text-classification", model=hf.BertForSequenceClassification(shape), tokenizer=tokenizer_hf
    )
    classify(texts[:size])
    start = time.perf_counter()
    predictions = list(classify(texts, batch_size=size, truncation=True))
    seconds = time.perf_counter() - start
    assert len(predictions) == len(texts)
    assert np.isfinite([row["score"] for row in predictions]).all()
    return seconds


if __name__ == "__main__":
    main()
