"""Programs of several JAX processes with fake devices, started and heard to the end."""

import json
import os
import socket
import subprocess
import sys


def start_processes(devices, *arguments, program, processes=1):
    """What a program says on its last line, with so many devices of its
    own; of several processes, which also get a port, their number and which they are, a
    list."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags += " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ways = [(port, processes, i) for i in range(processes)] if processes > 1 else [()]
    started = [
        subprocess.Popen(
            [sys.executable, program, *map(str, (*way, *arguments))],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for way in ways
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started)
    # gloo speaks before it.
    results = [json.loads(out.splitlines()[-1]) for out in said]
    return results if processes > 1 else results[0]
