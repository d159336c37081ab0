"""Does Python have the same door as the command line, and costs the import nothing?"""

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

import autodistill_jax as ad
from autodistill_jax import log

CONFIG = str(ROOT / "configs" / "quickstart.py") + ":smoke"


def test_the_import_loads_nothing_and_knows_its_names():
    code = "import sys, autodistill_jax; print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
    assert set(ad.__all__) <= set(dir(ad)) and all(getattr(ad, n) for n in ad.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ad.nothing  # noqa: B018


@pytest.mark.e2e
@pytest.mark.usefixtures("one_device")
def test_a_run_from_python_gives_its_result(tmp_path):
    config = ad.load_config(CONFIG)
    config.space.update(layers=(2,), hidden=(64,), ffn_ratio=(2.0,))
    config.distill.steps = 2
    config.finetune.tasks = ()
    config.baselines = ()
    assert ad.run(config, tmp_path / "w", job="distill") is None
    result = ad.run(config, tmp_path / "w")
    assert result.arch == ad.Arch(2, 64, 2, 128, head_size=32)
    assert result.chosen in result.trials and result.front == [result.chosen]
    assert result.student.name == result.arch.name and result.report.exists()
    table = result.table()
    assert "| parameters | 22.7" in table and "similarities (Spearman)" in table
    assert len(result.plot_front().axes) == 2
    student = ad.load_student(result.student)
    assert student.arch == result.arch
    texts = [
        "One text.",
        "A second, which is longer by far. " * 4,
        "Another, longer text.",
    ]
    vectors = ad.embed(student, texts, batch_size=1)
    assert vectors.shape == (3, 64)
    assert ad.embed(student, []).shape == (0, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # Padding and the batch change nothing.
    alone = ad.embed(student, [texts[0], texts[2]], max_seq_length=16)
    assert np.allclose(vectors[[0, 2]], alone, atol=1e-5)


def test_what_prints_json_gives_it_too(capfd):
    config = ad.load_config(CONFIG)
    record = ad.run(config, None, job="cost", arch="minilm")
    assert json.loads(capfd.readouterr().out) == record
    assert record["arch"].startswith("layers=6,hidden=384") and record["flops"] > 1e8
    with pytest.raises(ad.UserError, match="unknown job 'nothing'; one of run, "):
        ad.run(config, None, job="nothing")
    with pytest.raises(ad.UserError, match="the job search needs a workdir"):
        ad.run(config, None, job="search")


def test_a_config_is_found_in_any_folder_and_says_its_presets(tmp_path):
    folder = tmp_path / "my.pyenv"
    folder.mkdir()
    path = folder / "quickstart.py"
    path.write_text((ROOT / "configs" / "quickstart.py").read_text())
    assert ad.load_config(f"{path}:smoke") == ad.load_config(CONFIG)
    with pytest.raises(ad.UserError, match="no preset 'huge'. Presets: \"\""):
        ad.load_config(f"{path}:huge")
    with pytest.raises(ad.UserError, match="no config file .*nothing.py"):
        ad.load_config(str(folder / "nothing.py"))


class Terminal:
    """A stderr that says that it is a terminal, or not."""

    def __init__(self, is_terminal):
        self.text, self.is_terminal = "", is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(is_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal(is_terminal))
    progress = log.Progress("distill", 3, interval_seconds=0.0)
    log.say("in between")
    for done in (1, 2, 3):
        progress(done, "loss 0.5")
    log.Progress("nothing to do", 0)
    text = sys.stderr.text
    assert "nothing to do" not in text
    assert ("\r" in text) == is_terminal and "in between\n" in text
    assert "3/3" in text and "loss 0.5" in text
    assert is_terminal or text.count("\n") == 4
