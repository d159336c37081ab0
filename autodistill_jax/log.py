"""What does a job tell while it works? Progress lines, metrics.jsonl, TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metrics as clu_metrics
from etils import epath

from autodistill_jax import multihost, storage

_METRICS_FILE = "metrics.jsonl"
_UPLOAD_SECONDS = 30.0  # Seconds.


def say(text: str) -> None:
    """One line to the user, on stderr, by the first process: stdout is for results."""
    if multihost.is_first_process():
        print(text, file=sys.stderr, flush=True)


def print_result(value: Any) -> None:
    """One JSON object on stdout, by the first process."""
    if multihost.is_first_process():
        print(json.dumps(value))


class Progress:
    """A line every few seconds: what, how far, how fast, how long to go."""

    def __init__(self, what: str, total: int, done: int = 0, every: float = 5.0):
        self.what, self.total, self.every = what, total, every
        self.first, self.start = done, time.monotonic()
        self.told = self.start

    def restart(self, done: int) -> None:
        """Counts the rate from here on."""
        self.first, self.start = done, time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.told < self.every and done < self.total:
            return
        self.told = now
        rate = (done - self.first) / max(now - self.start, 1e-9)
        left = f"{(self.total - done) / rate:.0f} s left" if rate else "compiled"
        say(
            f"{self.what}  {done}/{self.total}  {rate:.2f}/s  {left}"
            + (f"  {note}" if note else "")
        )


class Averages:
    """Means since the last look, by clu's metrics: {name: mean}."""

    def __init__(self):
        self.means: dict[str, clu_metrics.Average] = {}

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            new = clu_metrics.Average.from_model_output(value)
            old = self.means.get(name)
            self.means[name] = new if old is None else old.merge(new)

    def take(self) -> dict[str, float]:
        means = {name: float(mean.compute()) for name, mean in self.means.items()}
        self.means = {}
        return means


class MetricsWriter:
    """Appends to metrics.jsonl, and to TensorBoard where its extra is installed; by the
    first process. What goes to a bucket goes there every half minute, and by `upload_metrics`."""

    def __init__(self, workdir: epath.Path, tensorboard: bool = False):
        self.kept = workdir / _METRICS_FILE
        self.board, self.sent = None, time.monotonic()
        if not multihost.is_first_process():
            return
        self.path = storage.local_mirror(self.kept)
        there = self.path.read_bytes() if self.path.exists() else b""
        self.torn = bool(there) and not there.endswith(b"\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            # Imports TensorFlow: slow, and only there with the extra.
            from clu import metric_writers

            self.board = metric_writers.create_default_writer(str(workdir))

    def write(self, job: str, step: int, values: Mapping[str, float]) -> None:
        if not multihost.is_first_process():
            return
        line = {"job": job, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a") as file:
            # On a line of its own, even after one that a stop cut short.
            file.write("\n" * self.torn + json.dumps(line) + "\n")
        self.torn = False
        if time.monotonic() - self.sent > _UPLOAD_SECONDS:
            storage.upload_mirror(self.kept)
            self.sent = time.monotonic()
        if self.board is not None:
            self.board.write_scalars(
                step, {f"{job}/{name}": value for name, value in values.items()}
            )
            self.board.flush()


def read_metrics(workdir: epath.Path, job: str) -> list[dict]:
    """The lines of a job in metrics.jsonl; of a step that was run twice the last."""
    path = storage.local_mirror(workdir / _METRICS_FILE)
    lines = {}
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # A stop cut it short.
                continue
            if line["job"] == job:
                lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


def upload_metrics(workdir: epath.Path) -> None:
    """Sends what was written so far to a bucket, if the workdir is in one."""
    storage.upload_mirror(workdir / _METRICS_FILE)
