"""Kill commands at random moments and start pairs of them at once: the results must be those of quiet processes.

    python benchmarks/soak.py --rounds 50 --pairs 200 --out soak.json

Each round runs `prepare`, `train` or `predict` (every fifth one `tune`, on a Ray of its own) to its end. Until then it
is killed with SIGKILL, with all its processes, at random moments and resumed. The data, weights, predictions or trials
must equal those of an uninterrupted command. Each pair starts two processes on one folder or output: one must win
whole, and the other be refused, wait, or come later. Commands are forks of one process that imported everything once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from txclf.cli.main import main as run_command

WORDS = {"weather": "rain wind storm cloud sun snow fog heat", "sport": "goal match team coach ball race score win"}
MODEL = [
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.intermediate_size=64",
    "tokenizer.vocab_size=400",
    "tokenizer.max_length=16",
    "train.precision=fp32",
    "train.batch_size=32",
    "train.checkpoint_every=5",
]
REFUSED = 2
MOST_KILLS = 6


def write_rows(path: Path, rows: int, seed: int) -> str:
    """Write a csv with labelled rows and return its path."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for number in range(rows):
        label = draw.choice(list(WORDS))
        lines.append(" ".join(draw.choices(WORDS[label].split(), k=8)) + f" {seed} {number},{label}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def start(words: list[str], log: Path) -> int:
    """Fork a process, the first of a session, that executes a command of txclf; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    code = 70
    try:
        sys.argv = ["txclf", *words]
        run_command()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0) if isinstance(error.code, int | None) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def end(pid: int) -> int:
    """Wait for a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digest(folder: Path, *patterns: str) -> str:
    """Return a hash of the names and contents of the files that match."""
    content = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()


class Bench:
    """Folder with the inputs of all rounds, and the results of uninterrupted commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        self.train = write_rows(folder / "train.csv", 4_000, 0)
        self.inputs = [write_rows(folder / f"in{number}.csv", 9_000 + number, number + 1) for number in range(2)]
        self.run_file = str(folder / "run.yaml")
        Path(self.run_file).write_text(yaml.safe_dump({"data": {"train": self.train}}))
        space = {"train.learning_rate": {"grid": [1e-3, 3e-3, 1e-2]}}
        tune = {"search": "grid", "space": space, "max_concurrent": 1, "scheduler": {"kind": "fifo"}}
        self.search_file = str(folder / "search.yaml")
        Path(self.search_file).write_text(yaml.safe_dump({"data": {"train": self.train}, "tune": tune}))
        reference = folder / "reference"
        self.must(self.training(reference, 3e-3))
        self.model = str(reference / "run" / "model")

    def must(self, words: list[str]) -> None:
        """Execute a command that must succeed."""
        if code := end(start(words, self.log)):
            raise SystemExit(f"{' '.join(words)}: exit code {code}, see {self.log}")

    def training(self, storage: Path, rate: float, resume: bool = False) -> list[str]:
        """Return the words of a training."""
        words = ["train", self.run_file, f"storage={storage}", *MODEL, "train.epochs=2", f"train.learning_rate={rate}"]
        return [*words, "--resume"] if resume else words

    def preparing(self, storage: Path) -> list[str]:
        """Return the words of a preparation."""
        return ["prepare", self.run_file, f"storage={storage}", *MODEL]

    def predicting(self, out: Path, number: int) -> list[str]:
        """Return the words of a prediction."""
        return ["predict", self.model, self.inputs[number], "--out", str(out), "--chunk-rows", "500"]

    def searching(self, storage: Path, resume: bool = False) -> list[str]:
        """Return the words of a search."""
        words = ["tune", self.search_file, f"storage={storage}", *MODEL, "train.epochs=1"]
        return [*words, "--resume"] if resume else words


def search_result(storage: Path) -> str:
    """Return the settings and best values of all trials of a search, and a hash of the winner's bundle."""
    search = json.loads((storage / "run" / "search.json").read_text())
    kept = {name: search[name] for name in ("trials", "finished", "winner", "best", "settings")}
    return json.dumps(kept) + digest(storage, "run/model/model.safetensors")


def killed_until_done(words: Callable[[], list[str]], log: Path, longest: float) -> int:
    """Execute a command, kill it at random moments and resume it until it ends; return the number of kills."""
    kills = 0
    while True:
        pid = start(words(), log)
        until = time.monotonic() + random.uniform(0.02, longest)
        while kills < MOST_KILLS and time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if code:
                    raise SystemExit(f"exit code {code} after {kills} kills, see {log}")
                return kills
            time.sleep(0.005)
        if kills == MOST_KILLS:
            if code := end(pid):
                raise SystemExit(f"exit code {code} after {kills} kills, see {log}")
            return kills
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        end(pid)
        kills += 1


def rounds(bench: Bench, number: int, tunes: bool) -> dict[str, int]:
    """Kill and resume commands; return the number of rounds and kills of each verb."""
    quiet = bench.folder / "quiet"
    bench.must(bench.training(quiet / "train", 3e-3))
    bench.must(bench.preparing(quiet / "prepare"))
    bench.must(bench.predicting(quiet / "out.csv", 0))
    if tunes:
        bench.must(bench.searching(quiet / "tune"))
    counts: Counter[str] = Counter()
    for at in range(number):
        verb = ("prepare", "train", "predict", "train", "tune" if tunes else "predict")[at % 5]
        place = bench.folder / f"round{at}"
        place.mkdir()
        kills, same = one_round(bench, verb, place, quiet)
        if not same:
            raise SystemExit(f"round {at} ({verb}): the result differs after {kills} kills, see {place}")
        counts[f"{verb}_rounds"] += 1
        counts[f"{verb}_kills"] += kills
        print(f"round {at + 1} of {number}: {verb}, {kills} kills, the same result", flush=True)
    return dict(counts)


def one_round(bench: Bench, verb: str, place: Path, quiet: Path) -> tuple[int, bool]:
    """Kill and resume one command; return the number of kills, and True if the result is that of the quiet one."""
    begun, weights = place / "run" / "run.yaml", "run/model/model.safetensors"
    if verb == "prepare":
        kills = killed_until_done(lambda: bench.preparing(place), bench.log, 1.0)
        files = ("prepared/*/*.json", "prepared/*/*/*.parquet")
        same = digest(place, *files) == digest(quiet / "prepare", *files)
        return kills, same and len(list((place / "prepared").glob("[!.]*"))) == 1
    if verb == "train":
        kills = killed_until_done(lambda: bench.training(place, 3e-3, begun.exists()), bench.log, 4.0)
        return kills, digest(place, weights) == digest(quiet / "train", weights)
    if verb == "predict":
        kills = killed_until_done(lambda: bench.predicting(place / "out.csv", 0), bench.log, 2.0)
        same = digest(place, "out.csv") == digest(quiet, "out.csv")
        return kills, same and [path.name for path in place.iterdir()] == ["out.csv"]
    kills = killed_until_done(lambda: bench.searching(place, begun.exists()), bench.log, 25.0)
    return kills, search_result(place) == search_result(quiet / "tune")


def pairs(bench: Bench, number: int) -> dict[str, int]:
    """Start pairs of commands on one folder; return how often the second was refused, waited or came later."""
    rates = (3e-3, 1e-2)
    outputs, weights = [], []
    for which in range(2):
        bench.must(bench.predicting(bench.folder / f"alone{which}.csv", which))
        outputs.append((bench.folder / f"alone{which}.csv").read_bytes())
        bench.must(bench.training(bench.folder / f"alone{which}", rates[which]))
        weights.append(digest(bench.folder / f"alone{which}", "run/model/model.safetensors"))
    counts: Counter[str] = Counter()
    for at in range(number):
        verb = ("prepare", "predict", "train")[at % 3]
        place = bench.folder / f"pair{at}"
        place.mkdir()
        commands = {
            "prepare": [bench.preparing(place)] * 2,
            "predict": [bench.predicting(place / "out.csv", which) for which in range(2)],
            "train": [bench.training(place, rate) for rate in rates],
        }[verb]
        codes = [end(pid) for pid in [start(words, bench.log) for words in commands]]
        if verb == "prepare":
            folders = list((place / "prepared").iterdir())
            expected = digest(bench.folder / "quiet" / "prepare", "prepared/*/*/*.parquet")
            fine = codes == [0, 0] and len(folders) == 1 and digest(folders[0], "*/*.parquet") == expected
        elif verb == "predict":
            written = (place / "out.csv").read_bytes()
            winners = [which for which in range(2) if written == outputs[which]]
            fine = len(winners) == 1 and codes[winners[0]] == 0 and codes[1 - winners[0]] in (0, REFUSED)
        else:
            made = digest(place, "run/model/model.safetensors")
            winners = [which for which in range(2) if made == weights[which]]
            rate = yaml.safe_load((place / "run" / "run.yaml").read_text())["train"]["learning_rate"]
            fine = len(winners) == 1 and rate == rates[winners[0]]
            fine = fine and codes[winners[0]] == 0 and codes[1 - winners[0]] == REFUSED
        if not fine:
            raise SystemExit(f"pair {at} ({verb}): mixed or lost, exit codes {codes}, see {place}")
        counts[f"{verb}_pairs"] += 1
        counts[f"{verb}_{'refused' if REFUSED in codes else 'both_done'}"] += 1
        if at % 20 == 19:
            print(f"{at + 1} pairs of {number}: {dict(counts)}", flush=True)
    return dict(counts)


def main() -> None:
    """Run the rounds and pairs, and write their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tune", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", help="JSON file for the counts.")
    wanted = parser.parse_args()
    random.seed(wanted.seed)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    import txclf.prediction.predict
    import txclf.training.worker  # noqa: F401  # imported once, for all forks

    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="txclf-soak-"))  # kept if a check fails
    bench = Bench(folder)
    result: dict[str, Any] = {"rounds": rounds(bench, wanted.rounds, wanted.tune), "pairs": pairs(bench, wanted.pairs)}
    shutil.rmtree(folder)
    result["seconds"] = round(time.monotonic() - started)
    print(json.dumps(result, indent=2))
    if wanted.out:
        Path(wanted.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
