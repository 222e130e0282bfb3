"""A first run file for labelled files: the settings that they need, each with the reason as a comment."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from txclf.config import run_config, yaml_text
from txclf.core.errors import DataError
from txclf.core.text import listed, shown
from txclf.data import audit, detect, profile, records, scan
from txclf.data.sources import Source, find_sources

SMALL_TEST_FRACTION = 0.2
MIN_TEXTS = 200
"""Different texts from which on a test split is worth its rows, as the author of a new run file would decide."""
MAX_COMMENT_CHARS = 74
MAX_REASONS = 5
ENCODERS = (
    "# Without this key a model is trained from scratch. To fine-tune an encoder of",
    "# the Hugging Face hub, name it; for texts that are not English for example",
    "# sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "# model: {pretrained: sentence-transformers/all-MiniLM-L6-v2}",
)
"""Last lines of the run file."""


@dataclass(frozen=True)
class Starter:
    """Run file for labelled files, and what they hold."""

    content: str
    """Run file with comments."""
    facts: dict[str, str]
    """Facts about the files."""
    warnings: list[str]


def starter(
    paths: Sequence[str], text: Sequence[str] = (), label: str | None = None, name: str | None = None
) -> Starter:
    """Return a run file for files, globs, folders and URIs. `text` and `label` name columns that are otherwise guessed.

    `name` is that of the run, by default the name of the first file. The names of the files tell validation and test
    files. Raises `DataError` if a model cannot be trained on the files.
    """
    every = find_sources(paths)
    text_format = detect.of_files(every)
    sources = {path: find_sources([path], *text_format) for path in paths}
    splits = _splits(sources)
    found = profile.audit(", ".join(paths), splits["train"], text, label)
    if found["label"] is None and not found["columns"]:
        reason = next((f": {entry['reason']}" for entry in found["bad_reasons"]), "")
        raise DataError(f"`{paths[0]}`: no row can be read{reason}.")
    if found["label"] is None:
        names = listed([column["column"] for column in found["columns"]])
        raise DataError(f"`{paths[0]}`: no column among {names} looks like a label. Pass --label-column COLUMN.")
    audits, warnings = {"train": found}, list(found["warnings"])
    known = {entry["label"] for entry in found["label_rows"]}
    for split in ("valid", "test"):
        without = [source for source in splits[split] if not _has_columns(source, [*found["text"], found["label"]])]
        for source in without:
            columns = listed([*found["text"], found["label"]])
            warnings.append(f"`{source.path}`: left out, because it has no columns {columns}.")
        splits[split] = [source for source in splits[split] if source not in without]
        if splits[split]:
            audits[split] = profile.audit(split, splits[split], found["text"], found["label"], like=found)
            if not known & {entry["label"] for entry in audits[split]["label_rows"]}:
                del audits[split]
                paths_of_split = listed([source.path for source in splits.pop(split)])
                warnings.append(f"{paths_of_split}: left out, because no row has one of the training labels.")
    bad = _bad_rows(audits)
    if found["bad_rows"] > found["rows"]:
        reason = max(found["bad_reasons"], key=lambda entry: entry["rows"])["reason"]
        warnings.append(
            f"{found['bad_rows']:,} of {found['bad_rows'] + found['rows']:,} rows cannot be used: {reason}."
        )
    named = {split: _names(sources, files) for split, files in splits.items() if files}
    settings = {"name": _run_name(name or named["train"]), **_settings(named, audits, bool(bad))}
    _require_learnable(settings, found)
    comments = _comments(audits, bad)
    return Starter(_written(settings, comments), _facts(named, audits, bad), warnings)


def _splits(sources: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """Return the files of each split by their paths, folders of labels by the path that was given."""
    every = [(path, source) for path, files in sources.items() for source in files]
    return profile.by_split([(path if source.format == "text" else source.path, source) for path, source in every])


def _names(sources: dict[str, list[Source]], wanted: Sequence[Source]) -> str | list[str]:
    """Return the given paths of some sources, or the paths of the files where a given path has others too."""
    names: list[str] = []
    for path, files in sources.items():
        if all(source in wanted for source in files):
            names.append(path)
        else:
            names += [_relative(source.path) for source in files if source in wanted]
    return names[0] if len(names) == 1 else names


def _relative(path: str) -> str:
    here = os.getcwd().rstrip("/") + "/"
    return path.removeprefix(here)


def _has_columns(source: Source, columns: Sequence[str]) -> bool:
    first = next(records.read_raw(source, batch_rows=256), None)
    return source.format == "text" or first is None or set(columns) <= set(first.columns)


def _bad_rows(audits: dict[str, dict[str, Any]]) -> Counter[str]:
    """Return the number of bad rows by reason. A label of another split must be one of the training labels."""
    reasons: Counter[str] = Counter()
    known = {entry["label"] for entry in audits["train"]["label_rows"]}
    for found in audits.values():
        listed_ones = {entry["reason"]: entry["rows"] for entry in found["bad_reasons"]}
        reasons.update(listed_ones)
        if more := found["bad_rows"] - sum(listed_ones.values()):
            reasons["other reasons"] += more
        for entry in found["label_rows"]:
            if entry["label"] not in known:
                reasons[f"label `{shown(entry['label'])}` is not among the training labels"] += entry["rows"]
    return reasons


def _run_name(paths: str | list[str]) -> str:
    """Return the name of a file without its ending, as the name of a run."""
    first = paths if isinstance(paths, str) else paths[0]
    stem = os.path.basename(first.partition("?")[0].rstrip("/")).partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-") or "run"


def _settings(
    named: dict[str, str | list[str]], audits: dict[str, dict[str, Any]], has_bad_rows: bool
) -> dict[str, dict[str, Any]]:
    """Return the keys of the run file."""
    suggested = audits["train"]["suggested"]
    texts = audits["train"]["rows"] - audits["train"]["duplicates"]
    data = {
        **named,
        **{key: value for key, value in suggested["data"].items() if key not in ("train", "valid", "test")},
    }
    if isinstance(data.get("text"), list) and len(data["text"]) == 1:
        data["text"] = data["text"][0]
    if "test" not in named:
        fraction = scan.AUTO_TEST_FRACTION if texts >= scan.AUTO_TEST_ROWS else SMALL_TEST_FRACTION
        data["test_fraction"] = fraction if texts >= MIN_TEXTS else 0
    data.pop("on_bad_row", None)
    if has_bad_rows:
        data["on_bad_row"] = "skip"
    return {**suggested, "data": data}


def _require_learnable(settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise `DataError` if preparing would refuse the training labels."""
    labels = Counter({entry["label"]: entry["rows"] for entry in found["label_rows"]})
    scanned = audit.Audit(labels=labels, label_kinds=set(found["label_kinds"]), rejected=found["bad_rows"])
    scanned.hashes.append(np.zeros(found["rows"], np.uint64))
    audit.check(run_config.parse(settings), "train", scanned)


def _comments(audits: dict[str, dict[str, Any]], bad: Counter[str]) -> dict[str, list[str]]:
    """Return the comment of each key, a list of lines."""
    found = audits["train"]
    words, classes = found["words"], found["label_rows"]
    shares = ", ".join(f"{shown(entry['label'], 30)} ({entry['rows']:,})" for entry in classes[:4])
    reasons = [f"{rows:,}: {shown(reason, MAX_COMMENT_CHARS)}" for reason, rows in bad.most_common(MAX_REASONS)]
    return {
        **{split: [f"{audit['rows']:,} rows"] for split, audit in audits.items()},
        "encoding": ["not UTF-8; the encoding is a guess"],
        "text": [f"{words['shortest']:,} to {words['longest']:,} words, median {words['median']:,}"],
        "label": [f"{found['labels']:,} labels: {shares}{', …' if len(classes) > 4 else ''}"],
        "test_fraction": ["no test file: share of the rows for `txclf evaluate`; 0 for none"],
        "on_bad_row": [f"{bad.total():,} bad row(s) are left out:", *reasons],
        "max_length": [f"tokens read of a text; 1 % of the texts have over {words['p99']:,} words"],
        "monitor": [f"the labels have {classes[-1]['rows']:,} to {classes[0]['rows']:,} rows"],
    }


def _written(settings: dict[str, Any], comments: dict[str, list[str]]) -> str:
    """Return the settings as YAML, each key below its comment."""
    lines = ["# Written by `txclf init`. Other keys: txclf config RUN.yaml"]
    for key, value in settings.items():
        if not isinstance(value, dict):
            lines.append(yaml_text.written({key: value}).rstrip("\n"))
            continue
        lines.append(f"{key}:")
        for inner, item in value.items():
            lines += [f"  # {shown(comment, MAX_COMMENT_CHARS)}" for comment in comments.get(inner, [])]
            lines += [f"  {line}" for line in yaml_text.written({inner: item}).splitlines()]
    return "\n".join([*lines, *ENCODERS]) + "\n"


def _facts(named: dict[str, str | list[str]], audits: dict[str, dict[str, Any]], bad: Counter[str]) -> dict[str, str]:
    """Return the facts to show, as text."""
    found = audits["train"]
    files = {split: listed([paths] if isinstance(paths, str) else paths, "") for split, paths in named.items()}
    classes = ", ".join(f"{shown(entry['label'], 30)} ({entry['rows']:,})" for entry in found["label_rows"][:10])
    facts = {split: f"{names}: {audits[split]['rows']:,} rows" for split, names in files.items()}
    reasons = "; ".join(f"{rows:,}: {shown(reason, 60)}" for reason, rows in bad.most_common(MAX_REASONS))
    facts |= {key: found[key] for key in ("encoding", "delimiter") if key in found}
    facts |= {
        "text": listed(found["text"], ""),
        "label": shown(found["label"]),
        "labels": f"{found['labels']:,}: {classes}{', …' if found['labels'] > 10 else ''}",
        "words": ", ".join(f"{name} {count:,}" for name, count in found["words"].items()),
        "script": ", ".join(f"{name} {share} %" for name, share in found["script_percent"].items()),
        "duplicates": f"{found['duplicates']:,} rows",
        "conflicting texts": f"{found['conflicting_texts']:,} with several labels",
        "bad rows": f"{bad.total():,}{f' ({reasons})' if bad else ''}",
    }
    return facts
