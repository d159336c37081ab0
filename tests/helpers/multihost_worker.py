"""What do several processes make of the same calls? A program, one of them:

python tests/helpers/multihost_worker.py PORT PROCESSES PROCESS FOLDER FLAGS_AS_JSON
"""

import contextlib
import io
import json
import os
import signal
import sys
import time

from etils import epath

from autodistill_jax import multihost
from autodistill_jax.cli import main
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import workdir
from autodistill_jax.train import checkpoint

ARCH = "--arch=layers=1,hidden=96,heads=3,ffn=96"


def once(process):
    """The first process' value on all; what it does, and raises, on all alike."""
    done = []

    def do():
        done.append(process)
        # Inside it is alone: this waits for nobody.
        return multihost.on_first_process(lambda: f"by {process}")

    def wrong():
        raise UserError(f"no, says {process}")

    results = [
        multihost.on_first_process(do),
        multihost.all_processes(True),
        multihost.all_processes(process == 0),
    ]
    try:
        multihost.on_first_process(wrong)
    except UserError as error:
        results.append(str(error))
    return {"results": results, "done": done}


def leader_work(process):
    """The first decides; all work, and get what it makes of it."""
    worked = []

    def works(i):
        worked.append(i)
        if i == 1:
            raise UserError("one is wrong")
        return multihost.on_first_process(lambda: 10 * i)

    def run(ask):
        answers = []
        for i in range(3):
            try:
                answers.append(ask(i))
            except UserError as error:
                answers.append(str(error))
        return answers

    return {"results": multihost.run_on_leader(run, works), "worked": worked}


def job(name, workdir, flags):
    """(exit status, the last line on stderr)."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["autodistill_jax", name, f"--workdir={workdir}", *flags])
    return status, (said.getvalue().splitlines() or [""])[-1]


def preempted(process, folder, flags):
    """As `job`, where the second process is told to end while it trains."""
    # A step has a batch, and some steps are done by the tenth.
    original_batch, calls = loader.batch_at_step, []

    def of_step(*args):
        calls.append(args)
        if process == 1 and len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(calls) >= 10:
            time.sleep(0.2)  # The others hear of it within a second or two.
        return original_batch(*args)

    loader.batch_at_step = of_step
    status, _ = job("distill", folder, flags)
    loader.batch_at_step = original_batch
    manager = checkpoint.checkpoint_manager(
        workdir.superlm_folder(epath.Path(folder), "main")
    )
    return status, len(calls), manager.latest_step()


if __name__ == "__main__":
    port, processes, process, folder, flags = sys.argv[1:]
    process, flags = int(process), json.loads(flags)
    multihost.join_processes(f"localhost:{port}", int(processes), process)
    report = {
        # First: nothing has used a device before.
        "latency": job("latency", f"{folder}-latency", [*flags, ARCH]),
        "once": once(process),
        "leader_work": leader_work(process),
        "unlike": job("distill", folder, [*flags, f"--config.seed={process}"]),
        "batch": job("distill", folder, [*flags, "--config.distill.batch_size=6"]),
        "apart": job("distill", f"{folder}-{process}", flags),
        "preempted": preempted(process, folder, flags),
        # It goes on from there.
        "run": job("run", folder, flags),
        "again": job("run", folder, flags),
    }
    print(json.dumps(report))
