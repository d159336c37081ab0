"""Are files whole at any time, and is a workdir in a bucket (gs://) as good as any?"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from paths import ROOT
from tiny_networks import SPACE

from autodistill_jax import log, storage
from autodistill_jax.cli import main
from autodistill_jax.errors import UserError
from autodistill_jax.interop import huggingface
from autodistill_jax.search import study_storage
from autodistill_jax.train import checkpoint

SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"


@pytest.fixture(scope="module")
def bucket():
    """gs://bucket, in this process' memory."""
    server = pytest.importorskip("gcp_storage_emulator.server")
    emulator = server.create_server("localhost", 0, True, "bucket")
    emulator.start()
    port = emulator._api._httpd.server_port
    with pytest.MonkeyPatch.context() as patch:
        address = f"http://localhost:{port}"
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # Of gcsfs.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # Asks no emulator.
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)  # Of orbax.
        yield epath.Path("gs://bucket")
    emulator.stop()


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a" / "b.txt"
    storage.write_text(path, "one")
    with pytest.raises(RuntimeError), storage.atomic_write(path) as temporary:
        temporary.write_text("tw")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    with (
        pytest.raises(RuntimeError),
        storage.atomic_write(tmp_path / "f", folder=True) as temporary,
    ):
        (temporary / "x").write_text("1")
        raise RuntimeError
    assert not (tmp_path / "f").exists()
    for text in ("1", "2"):  # What was there before, and a stop's rest, are gone.
        with storage.atomic_write(tmp_path / "f", folder=True) as temporary:
            (temporary / text).write_text(text)
    assert [entry.name for entry in (tmp_path / "f").iterdir()] == ["2"]
    assert not (tmp_path / "f.partial").exists()


def test_arrays_stay_on_disk_until_they_are_looked_at(tmp_path):
    rows = {
        "train/ids": np.arange(12, dtype=np.int32).reshape(4, 3),
        "train/tokens": np.ones((4, 3), np.int8),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 3), np.int8),
    }
    storage.write_arrays(tmp_path / "rows.npz", rows)
    mapped = storage.mapped_arrays(tmp_path / "rows.npz", list(rows))
    for name, value in rows.items():
        assert mapped[name].dtype == value.dtype and np.array_equal(mapped[name], value)
        assert isinstance(mapped[name], np.memmap) or not value.size


def test_files_and_folders_go_to_a_bucket_and_back(bucket):
    storage.write_text(bucket / "w" / "a.txt", "one")
    assert storage.local_copy(bucket / "w" / "a.txt").read_text() == "one"
    storage.write_arrays(bucket / "w" / "x.npz", {"a": np.arange(3), "b": np.ones(2)})
    assert list(storage.read_arrays(bucket / "w" / "x.npz")) == ["a", "b"]
    assert (storage.mapped_arrays(bucket / "w" / "x.npz", ["b"])["b"] == 1).all()
    for text in ("1", "2"):
        with storage.atomic_write(bucket / "w" / "f", folder=True) as temporary:
            (temporary / "in").mkdir()
            (temporary / "in" / text).write_text(text)
    back = storage.local_copy(bucket / "w" / "f")
    assert [entry.name for entry in (back / "in").iterdir()] == ["2"]


def test_what_is_changed_in_place_is_sent_back(bucket):
    writer = log.MetricsWriter(bucket / "m")
    writer.write("distill", 1, {"loss": 2.0})
    assert not (bucket / "m" / "metrics.jsonl").exists()  # Not at every line.
    writer.uploaded_at -= 60
    writer.write("distill", 2, {"loss": 1.0})
    lines = (bucket / "m" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [2.0, 1.0]
    writer.write("distill", 3, {"loss": 0.5})
    log.upload_metrics(bucket / "m")  # As at the end of a job.
    assert len((bucket / "m" / "metrics.jsonl").read_text().splitlines()) == 3
    assert len(log.read_metrics(bucket / "m", "distill")) == 3
    study = study_storage.open_study(bucket / "m" / "search", {"main": SPACE}, "test")
    arch = SPACE.smallest()
    study_storage.record_trial(
        study, {"main": SPACE}, arch, {"proxy": 1.0, "flops": 2.0}
    )
    study_storage.upload_study(bucket / "m" / "search")
    storage._mirrors.clear()  # As another program would find it.
    reopened = study_storage.open_study(
        bucket / "m" / "search", {"main": SPACE}, "test"
    )
    assert study_storage.read_trials(reopened, {"main": SPACE})[arch]["proxy"] == 1.0


def test_checkpoints_and_networks_live_in_buckets(bucket, minilm):
    manager = checkpoint.checkpoint_manager(bucket / "c")
    state = {"params": jnp.arange(6.0).reshape(2, 3)}
    checkpoint.save_checkpoint(manager, 3, state)
    manager.wait_until_finished()
    reopened = checkpoint.checkpoint_manager(bucket / "c")
    assert reopened.latest_step() == 3
    assert (
        checkpoint.restore_checkpoint(reopened, state)["params"] == state["params"]
    ).all()
    huggingface.save_pretrained(
        bucket / "t", minilm.arch, minilm.dims, minilm.params, minilm.folder,
        "mean", True, "", lambda folder: None,
    )  # fmt: skip
    reloaded = huggingface.load_pretrained("gs://bucket/t")
    assert (
        reloaded.arch == minilm.arch and (reloaded.folder / "tokenizer.json").exists()
    )
    with pytest.raises(UserError, match="teacher=gs://bucket/nowhere: no such folder"):
        huggingface.load_pretrained("gs://bucket/nowhere")


def test_a_bucket_that_cannot_be_written_is_refused_at_once(bucket, capfd):
    assert main(["a", "run", SMOKE, "--workdir=gs://another/w"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "gs://another/w cannot be written: " in line and "account may write" in line
    assert main(["a", "run", SMOKE, "--workdir=gs://bucket/w9",
                 "--config.search.sampler=random", "--config.search.trials=2",
                 "--config.search.storage=journal"]) == 2  # fmt: skip
    assert "is in a bucket" in capfd.readouterr().err
    assert not (bucket / "w9").exists()  # Nothing is left of the trial.


def test_what_is_no_folder_and_no_bucket_is_refused(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("gs:/bucket/w", "s3://bucket/w"):
        assert main(["a", "run", SMOKE, f"--workdir={wrong}"]) == 2
        assert "give a path, or gs://bucket/folder" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_gcsfs_it_is_told_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "mkdir", missing)
    with pytest.raises(UserError, match=r"pip install 'autodistill_jax\[gcs\]'"):
        storage.check_writable(epath.Path("gs://bucket/w"))
