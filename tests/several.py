"""What do several processes make of the same calls? A program, one of them:

python tests/several.py PORT PROCESSES PROCESS FOLDER FLAGS_AS_JSON
"""

import contextlib
import io
import json
import sys

from autodistill_jax import hosts
from autodistill_jax.errors import UserError
from autodistill_jax.main import main


def once(process):
    """The first process' value on all; what it does, and raises, on all alike."""
    done = []

    def do():
        done.append(process)
        # Inside it is alone: this waits for nobody.
        return hosts.once(lambda: f"by {process}")

    def wrong():
        raise UserError(f"no, says {process}")

    told = [hosts.once(do), hosts.every(True), hosts.every(process == 0)]
    try:
        hosts.once(wrong)
    except UserError as error:
        told.append(str(error))
    return {"told": told, "done": done}


def led(process):
    """The first decides; all work, and get what it makes of it."""
    worked = []

    def works(i):
        worked.append(i)
        if i == 1:
            raise UserError("one is wrong")
        return hosts.once(lambda: 10 * i)

    def run(ask):
        made = []
        for i in range(3):
            try:
                made.append(ask(i))
            except UserError as error:
                made.append(str(error))
        return made

    return {"made": hosts.led(run, works), "worked": worked}


def job(name, workdir, flags):
    """(exit status, the last line on stderr)."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["autodistill_jax", name, f"--workdir={workdir}", *flags])
    return status, (said.getvalue().splitlines() or [""])[-1]


if __name__ == "__main__":
    port, processes, process, folder, flags = sys.argv[1:]
    process, flags = int(process), json.loads(flags)
    hosts.start(f"localhost:{port}", int(processes), process)
    told = {
        "once": once(process),
        "led": led(process),
        "batch": job("distill", folder, [*flags, "--config.distill.batch_size=6"]),
        "apart": job("distill", f"{folder}-{process}", flags),
        "run": job("run", folder, flags),
        "again": job("run", folder, flags),
    }
    print(json.dumps(told))
