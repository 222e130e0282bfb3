"""Measure all comparisons side by side.

    make bench BENCH="…"
    .venv/bin/python benchmarks/bench.py [--short FILE --short-test FILE --long FILE] [--suites training,ray] …

Each sample is a process of its own. The variants of a comparison take turns, `--repeats` times, and the result is the
ratio of their medians, because single times mean little on a shared machine. Run nothing else meanwhile: a sample is
repeated, up to twice, if other programs keep the CPUs busy before or after it. Every sample is written to the JSON file
at once, with the machine, the versions and the date.

The suite `finetuning` takes a folder with a pretrained model, `--pretrained`, and runs only if it is named.

`--short` and `--short-test` are Parquet files of short texts with the columns `text` and `label` (the targets were set
on AG News), `--long` is one of long texts (IMDB). Without them the corpus of `txclf demo` is used.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
JOBS = HERE.parent / "jobs"
SHAPE = str(JOBS / "seed_classifier.yaml")
SEARCH = str(JOBS / "agnews_tune.yaml")
IDLE = 0.9
"""Least share of idle time around a sample."""
ATTEMPTS = 3
"""Times that a disturbed sample is measured at most."""
PACKAGES = ("torch", "pytorch-lightning", "ray", "pyarrow", "tokenizers", "numpy", "transformers", "accelerate")


@dataclass
class Comparison:
    """Variants that are measured in turns."""

    name: str
    unit: str
    variants: dict[str, list[str]]
    """The program under benchmarks/ and its arguments."""
    ratios: list[tuple[str, str, float]] = field(default_factory=list)
    """One variant over another, and the least that it should be."""
    limits: list[tuple[str, float]] = field(default_factory=list)
    """A variant and the most that it should be."""
    repeats: int | None = None
    most: list[tuple[str, str, float]] = field(default_factory=list)
    """One variant over another, and the most that it should be."""


def comparisons(
    short: list[str], long: list[str], cores: int, pretrained: str | None = None
) -> dict[str, list[Comparison]]:
    """By suite. `short` and `long` are the words that give the data, `pretrained` is the folder of an encoder."""
    one_step = ["train.micro_batches=1"]
    on_short = [SHAPE, *short, *one_step, "train.batch_size=64", "--threads", str(cores)]
    on_long = [SHAPE, *long, *one_step, "train.batch_size=16", "tokenizer.max_length=512", "--threads", str(cores)]
    plain = [*on_long, "model.attention_dropout=0"]
    wide = ["compute.workers=1", f"compute.cpus_per_worker={cores}"]
    steps, longer = ["--steps", "15"], ["--steps", "40", "--warmup", "8"]
    against = ("bare", "txclf", "original", "transformers")
    targets = [("txclf", "original", 8.0), ("txclf", "transformers", 1.5), ("txclf", "bare", 0.95)]
    half = [*on_short[:-1], "1", *longer]
    serial = [SEARCH, *short, "data.valid_fraction=0.1", "train.epochs=2"]
    encoder = [f"model.pretrained={pretrained}", "--threads", str(cores)]
    tuned_short = [str(JOBS / "minilm_agnews.yaml"), *short, *encoder]
    tuned_long = [str(JOBS / "minilm_imdb.yaml"), *long, *encoder, "--steps", "50"]
    peers = ("txclf", "trainer", "grouped")
    parts = [f"without-{part}" for part in ("buckets", "dropout", "attention", "optimizer")]
    return {
        "finetuning": [
            Comparison(
                "fine-tuning, short texts",
                "tokens/s",
                {name: ["finetuning.py", name, *tuned_short] for name in (*peers, *parts, "loop")},
                [("txclf", "trainer", 1.3), ("txclf", "grouped", 1.0), ("loop", "trainer", 1.0)]
                + [("txclf", part, 1.0) for part in parts],
            ),
            Comparison(
                "fine-tuning, long texts",
                "tokens/s",
                {name: ["finetuning.py", name, *tuned_long] for name in peers},
                [("txclf", "trainer", 1.3), ("txclf", "grouped", 1.0)],
            ),
        ],
        "training": [
            Comparison(
                "training, short texts",
                "tokens/s",
                {name: ["training.py", name, *on_short, *steps] for name in against},
                targets,
            ),
            Comparison(
                "training, long texts",
                "tokens/s",
                {name: ["training.py", name, *on_long, *steps] for name in against},
                targets,
            ),
            Comparison(
                "training, long texts, no attention dropout",
                "tokens/s",
                {name: ["training.py", name, *plain, *steps] for name in ("bare", "txclf", "transformers")},
                targets[1:],
            ),
        ],
        "ray": [
            Comparison(
                "one Ray worker",
                "tokens/s",
                {
                    "in-process": ["training.py", "txclf", *on_short, *longer],
                    "ray": ["training.py", "txclf", *on_short, *longer, *wide],
                },
                [("ray", "in-process", 0.95)],
            ),
            Comparison(
                "two workers of one thread",
                "tokens/s",
                {
                    "1 worker": ["training.py", "txclf", *half, "compute.workers=1"],
                    "2 workers": ["training.py", "txclf", *half, "compute.workers=2"],
                },
                [("2 workers", "1 worker", 1.85)],
            ),
        ],
        "startup": [
            Comparison(
                "from the command to the first step",
                "s",
                {
                    "in-process": ["startup.py", SHAPE, *short],
                    "one Ray worker": ["startup.py", SHAPE, *short, "compute.workers=1"],
                },
                limits=[("in-process", 4.0), ("one Ray worker", 15.0)],
                repeats=2,
            )
        ],
        "prepare": [
            Comparison(
                "prepare",
                "tokens/s",
                {name: ["preparing.py", name, SHAPE, *short, "--copies", "4"] for name in ("txclf", "tokenizers")},
                [("txclf", "tokenizers", 0.9)],
            ),
            Comparison(
                "prepare, by the number of rows",
                "tokens/s",
                {
                    f"{copies}x": ["preparing.py", "txclf", SHAPE, *short, "--copies", str(copies)]
                    for copies in (1, 3, 10)
                },
                repeats=1,
            ),
        ],
        "predict": [
            Comparison(
                "predict",
                "rows/s",
                {
                    "txclf": ["predicting.py", "txclf", SHAPE, *short],
                    "bare": ["predicting.py", "bare", SHAPE, *short],
                    "pipeline, batch 1": ["predicting.py", "transformers", SHAPE, *short, "--batch", "1"],
                    "pipeline, batch 32": ["predicting.py", "transformers", SHAPE, *short, "--batch", "32"],
                },
                [
                    ("txclf", "pipeline, batch 1", 3.0),
                    ("txclf", "pipeline, batch 32", 3.0),
                    ("txclf", "bare", 0.9),
                ],
            )
        ],
        "tune": [
            Comparison(
                "16 trials",
                "s",
                {name: ["tuning.py", name, *serial] for name in ("tune", "serial")},
                most=[("tune", "serial", 1.1)],
                repeats=1,
            )
        ],
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on: versions, processor and precision."""
    model, flags = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        found = {name.strip(): value.strip() for name, _, value in lines}
        model, flags = found.get("model name", model), found.get("flags", "")
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "instructions": known,
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def idle_share(seconds: float = 1.0) -> float:
    """Return the share of all CPUs' time over the next seconds in which they did nothing, 1.0 where it is not known."""
    if not Path("/proc/stat").exists():
        return 1.0

    def times() -> list[int]:  # user, nice, system, idle, waiting for a disk, …
        return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    before = times()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(times(), before, strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent))


def undisturbed(command: list[str], cores: int) -> dict[str, Any]:
    """Measure a sample, again if the CPUs were busy before or after it. The last one says so if it is disturbed too."""
    for attempt in range(ATTEMPTS):
        before = idle_share()
        found = sample(command, cores)
        idle = min(before, idle_share())
        if idle >= IDLE or "failed" in found:
            break
        again = ", measured again" if attempt + 1 < ATTEMPTS else ": this sample means little"
        print(f"warning: other programs use the CPUs ({idle:.0%} idle){again}", file=sys.stderr)
        found["idle_share"] = round(idle, 2)
    return found


def sample(command: list[str], cores: int) -> dict[str, Any]:
    """Run a program and return the JSON of its last line."""
    program, *arguments = command
    threads = arguments[arguments.index("--threads") + 1] if "--threads" in arguments else str(cores)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else starting would compile all that is imported, each time
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        return {"failed": (done.stderr or done.stdout).strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def verdicts(comparison: Comparison, samples: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the ratios of medians and their targets."""
    middle = {
        name: statistics.median(values)
        for name, found in samples.items()
        if (values := [one["value"] for one in found if "value" in one])
    }
    rows = []
    for over, under, wanted in comparison.ratios:
        if over in middle and under in middle:
            ratio = middle[over] / middle[under]
            rows.append({"what": f"{over} / {under}", "is": ratio, "least": wanted, "met": ratio >= wanted})
    for over, under, wanted in comparison.most:
        if over in middle and under in middle:
            ratio = middle[over] / middle[under]
            rows.append({"what": f"{over} / {under}", "is": ratio, "most": wanted, "met": ratio <= wanted})
    for name, wanted in comparison.limits:
        if name in middle:
            rows.append({"what": name, "is": middle[name], "most": wanted, "met": middle[name] <= wanted})
    return rows


def show(comparison: Comparison, samples: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    print(f"\n{comparison.name} ({comparison.unit})")
    for name, found in samples.items():
        values = sorted(one["value"] for one in found if "value" in one)
        more = {key: value for key, value in found[-1].items() if key not in ("value", "seconds")}
        if values:
            middle = statistics.median(values)
            print(f"  {name:20} {middle:>12,.1f}   {values[0]:,.1f} to {values[-1]:,.1f} of {len(values)}   {more}")
        else:
            print(f"  {name:20} failed: {found}")
    for row in rows:
        limit = f">= {row['least']}" if "least" in row else f"<= {row['most']}"
        print(f"  {row['what']:36} {row['is']:8.2f}   {limit:8} {'met' if row['met'] else 'MISSED'}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short")
    parser.add_argument("--short-test")
    parser.add_argument("--long")
    parser.add_argument("--suites", default="training,ray,startup,prepare,predict,tune", help="also: finetuning")
    parser.add_argument("--pretrained", metavar="FOLDER", help="an encoder, for the suite finetuning")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="bench.json")
    chosen = parser.parse_args()
    if "finetuning" in chosen.suites.split(",") and chosen.pretrained is None:
        parser.error("the suite finetuning needs --pretrained FOLDER")
    for option in ("short", "short_test", "long"):
        if path := getattr(chosen, option):
            require_columns(parser, f"--{option.replace('_', '-')}", path)
    if (chosen.short is None) != (chosen.short_test is None):
        parser.error("--short and --short-test belong together: name both or neither")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="txclf-bench-") as scratch:
        corpus = demo_corpus(scratch) if not (chosen.short and chosen.short_test and chosen.long) else {}
        data = {
            "short": [chosen.short or corpus["train"], chosen.short_test or corpus["test"]],
            "long": [chosen.long or corpus["train"]],
        }
        short = [f"storage={scratch}", f"data.train={data['short'][0]}", f"data.test={data['short'][1]}"]
        long = [f"storage={scratch}", f"data.train={data['long'][0]}", "data.test=null"]
        suites = comparisons(short, long, cores, chosen.pretrained)
        result: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "data": {name: [Path(path).name for path in paths] for name, paths in data.items()},
            "comparisons": [],
        }
        for comparison in [one for suite in chosen.suites.split(",") for one in suites[suite]]:
            samples: dict[str, list[dict[str, Any]]] = {name: [] for name in comparison.variants}
            entry: dict[str, Any] = {"name": comparison.name, "unit": comparison.unit, "samples": samples}
            result["comparisons"].append(entry)
            for _ in range(comparison.repeats or chosen.repeats):
                for name, command in comparison.variants.items():
                    samples[name].append(undisturbed(command, cores))
                    entry["verdicts"] = verdicts(comparison, samples)
                    Path(chosen.out).write_text(json.dumps(result, indent=1) + "\n")
            show(comparison, samples, verdicts(comparison, samples))
    print(f"\nevery sample: {chosen.out}")


def require_columns(parser: argparse.ArgumentParser, option: str, path: str) -> None:
    """End with a message unless the file is Parquet with a text and a label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        parser.error(f"{option} {path}: not a Parquet file ({error})")
    if missing := [column for column in ("text", "label") if column not in columns]:
        parser.error(f"{option} {path}: no column {missing[0]}; its columns are {', '.join(columns)}")


def demo_corpus(folder: str) -> dict[str, str]:
    """Write the corpus of `txclf demo` as Parquet files."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    from txclf.data.demo_corpus import write_corpus

    files = write_corpus(os.path.join(folder, "corpus"))
    made = {}
    for split, path in files.items():
        reader = pyarrow.json.read_json if path.endswith(".jsonl") else pyarrow.csv.read_csv
        made[split] = os.path.join(folder, f"{split}.parquet")
        pq.write_table(reader(path), made[split])
    return made


if __name__ == "__main__":
    main()
