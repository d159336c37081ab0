"""What a job reports while it works: progress lines, metrics.jsonl, TensorBoard."""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metrics as clu_metrics
from etils import epath
from tqdm import tqdm

from autodistill_jax import multihost, storage

_METRICS_FILE = "metrics.jsonl"
_UPLOAD_SECONDS = 30.0


def say(text: str) -> None:
    """One line to the user, on stderr, by the first process: stdout is for results."""
    if not multihost.is_first_process():
        return
    if sys.stderr.isatty():  # A bar may be there: above it.
        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def print_result(value: Any) -> None:
    """One JSON object on stdout, by the first process."""
    if multihost.is_first_process():
        print(json.dumps(value))


class Progress:
    """How far a job is, how fast it goes and how long it will take, on stderr.

    A bar where stderr is a terminal; a line every few seconds in a log or a pipe. Call
    it with the number of steps done, and a note for the end of the line.

    Args:
      label: what the line begins with.
      total: steps in all.
      done: steps done before it starts.
      interval_seconds: between two lines.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, interval_seconds: float = 5.0
    ):
        self.label, self.total, self.interval_seconds = label, total, interval_seconds
        self.first, self.start = done, time.monotonic()
        self.last_shown = self.start
        self.bar = None
        # Nothing to do: nobody would call it, and the bar would stay as it is.
        has_steps = done < total
        if has_steps and multihost.is_first_process() and sys.stderr.isatty():
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def restart(self, done: int) -> None:
        """Counts the rate from now on, when `done` steps are done."""
        self.first, self.start = done, time.monotonic()
        if self.bar is not None:
            self.bar.initial = done
            self.bar.unpause()

    def __call__(self, done: int, note: str = "") -> None:
        if self.bar is not None:
            self._draw(done, note)
            return
        current_time = time.monotonic()
        if current_time - self.last_shown < self.interval_seconds and done < self.total:
            return
        self.last_shown = current_time
        rate = (done - self.first) / max(current_time - self.start, 1e-9)
        time_left = f"{(self.total - done) / rate:.0f} s left" if rate else "compiled"
        say(
            f"{self.label}  {done}/{self.total}  {rate:.2f}/s  {time_left}"
            + (f"  {note}" if note else "")
        )

    def _draw(self, done: int, note: str) -> None:
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= self.total:
            self.bar.close()


class Averages:
    """Means of named values since the last look, by clu's metrics.

    Attributes:
      means: {name: the running mean}.
    """

    def __init__(self):
        self.means: dict[str, clu_metrics.Average] = {}

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Counts in {name: values of any shape}."""
        for name, value in values.items():
            new = clu_metrics.Average.from_model_output(value)
            old = self.means.get(name)
            self.means[name] = new if old is None else old.merge(new)

    def take(self) -> dict[str, float]:
        """{name: mean}, and starts anew."""
        means = {name: float(mean.compute()) for name, mean in self.means.items()}
        self.means = {}
        return means


class MetricsWriter:
    """Appends to metrics.jsonl, and to TensorBoard where its extra is installed.

    Only the first process writes. What belongs in a bucket goes there every half
    minute, and by `upload_metrics`.

    Args:
      workdir: holds metrics.jsonl.
      tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, workdir: epath.Path, tensorboard: bool = False):
        self.destination = workdir / _METRICS_FILE
        self.board, self.uploaded_at = None, time.monotonic()
        if not multihost.is_first_process():
            return
        self.path = storage.local_mirror(self.destination)
        content = self.path.read_bytes() if self.path.exists() else b""
        self.is_torn = bool(content) and not content.endswith(b"\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            # Imports TensorFlow: slow, and only there with the extra.
            from clu import metric_writers

            self.board = metric_writers.create_default_writer(str(workdir))

    def write(self, job: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one line.

        Args:
          job: whose line it is.
          step: of the training.
          values: {name: value}.
        """
        if not multihost.is_first_process():
            return
        line = {"job": job, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a") as file:
            # On a line of its own, even after one that a stop cut short.
            file.write("\n" * self.is_torn + json.dumps(line) + "\n")
        self.is_torn = False
        if time.monotonic() - self.uploaded_at > _UPLOAD_SECONDS:
            storage.upload_mirror(self.destination)
            self.uploaded_at = time.monotonic()
        if self.board is not None:
            self.board.write_scalars(
                step, {f"{job}/{name}": value for name, value in values.items()}
            )
            self.board.flush()


def read_metrics(workdir: epath.Path, job: str) -> list[dict]:
    """The lines of a job in metrics.jsonl.

    Args:
      workdir: holds metrics.jsonl.
      job: the name that they were written under.

    Returns:
      The lines in the order of their steps; of a step that was run twice the last.
    """
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


def training_seconds(workdir: epath.Path, job: str) -> float:
    """What a training took by its lines in metrics.jsonl, in seconds.

    What compiling took and what passed between a stop and the restart is not in it: an
    interval of three times the median's seconds a step counts as the mean of others.

    Args:
      workdir: holds metrics.jsonl.
      job: the name that its lines were written under.

    Returns:
      Seconds for all its steps; 0.0 where there are fewer than two lines.
    """
    lines = read_metrics(workdir, job)
    paces = [
        (line["time"] - previous["time"]) / (line["step"] - previous["step"])
        for previous, line in itertools.pairwise(lines)
    ]
    if not paces:
        return 0.0
    median = statistics.median(paces)
    usual = [pace for pace in paces if 0 < pace <= 3 * median]
    return statistics.mean(usual) * lines[-1]["step"]


def upload_metrics(workdir: epath.Path) -> None:
    """Sends what was written so far to a bucket, if the workdir is in one."""
    storage.upload_mirror(workdir / _METRICS_FILE)
