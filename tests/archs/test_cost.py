"""Are costs the papers' printed ones, and what the network has and computes?"""

import functools
import json
import math
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from paths import ROOT

from autodistill_jax.archs import published
from autodistill_jax.archs.arch import BERT_BASE, Arch, MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS, ModelDims, cost, student_dims
from autodistill_jax.cli import main
from autodistill_jax.errors import UserError
from autodistill_jax.models import build
from autodistill_jax.models.bert import Bert

CONFIG = ROOT / "configs" / "quickstart.py"
SMOKE = f"--config={CONFIG}:smoke"
UNCASED = "--config.teacher=bert-base-uncased"
ODD = {
    "stock": Arch(2, 24, 3, 40, 8),
    "wide attention": Arch(3, 16, 5, 24, 8),
    "narrow attention": Arch(1, 40, 2, 24, 8),
    "mobile": MobileArch(2, 24, 16, 2, 20, 3),
}


def sizes_of(name, **fields):
    """Small ones, for an Arch of ODD or `published.NAMED_ARCHS`."""
    arch = (ODD | published.NAMED_ARCHS)[name]
    dims = student_dims(ModelDims(**fields), type(arch))
    return published.named_dims(name, dims) if name in published.NAMED_ARCHS else dims


def test_paper_counts():
    # Printed in AutoDistil's tables: BERT-base 109.48 M and 11.25 G, 6 x 768 66.96 M
    # and 5.66 G.
    base, half = cost(BERT_BASE), cost(published.NAMED_ARCHS["distilbert"])
    assert (base["params_paper"], base["flops_paper"]) == (109483008, 11249124864)
    assert (half["params_paper"], half["flops_paper"]) == (66955776, 5662311936)


@pytest.mark.parametrize(
    ("name", "percent"), [("proxy_base", 39), ("agnostic", 19), ("proxy_tiny", 2.4)]
)
def test_paper_students_share_of_the_teachers_flops(name, percent):
    share = (
        cost(published.NAMED_ARCHS[name])["flops_paper"]
        / cost(BERT_BASE)["flops_paper"]
    )
    assert abs(100 * share - percent) < (0.05 if percent < 10 else 0.5)


def test_paper_counts_widths_relative_to_the_teachers_heads():
    large = cost(published.NAMED_ARCHS["bert_large"], ModelDims(reference_heads=16))
    # All heads of a teacher are its whole width: the two counts all but agree.
    assert abs(large["flops_paper"] / large["flops"] - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "params"),
    # What transformers' BertModel counts, pooler included.
    [
        ("bert_base", 109482240),
        ("bert_large", 335141888),
        ("minilm", 22713216),
        ("tinybert", 14350248),
    ],
)
def test_executed_params_are_those_that_hugging_face_counts(name, params):
    assert cost(published.NAMED_ARCHS[name])["params"] == params


def test_mobilebert_counts():
    # Published as 25.3 M; 24.58 M without a pooler, which it does not have.
    for name, millions in (
        ("mobilebert", 24.58),
        ("mobilebert_tiny", 15.49),
        ("ib_bert_large", 294.21),
    ):
        counts = cost(
            published.NAMED_ARCHS[name], published.named_dims(name, MOBILEBERT_DIMS)
        )
        assert round(counts["params"] / 1e6, 2) == millions
        assert counts["params_paper"] is None and counts["flops_paper"] is None


def test_executed_width_is_heads_times_head_size():
    thin, wide = Arch(2, 64, 2, 128, 32), Arch(2, 64, 4, 128, 32)
    n = 128
    assert cost(wide)["params"] - cost(thin)["params"] == 2 * (3 * 65 + 64) * 64
    assert cost(wide)["flops"] - cost(thin)["flops"] == 2 * (
        4 * n * 64 * 64 + 2 * n * n * 64
    )


@pytest.mark.parametrize("name", [*ODD, *published.NAMED_ARCHS])
def test_executed_params_count_the_tree(name):
    arch = (ODD | published.NAMED_ARCHS)[name]
    sizes = sizes_of(name, vocab=50, positions=10, types=1)
    module = build.build_module(arch, sizes)
    params = jax.eval_shape(
        functools.partial(build.init_params, module), jax.random.key(0)
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == cost(arch, sizes)["params"]


@pytest.mark.parametrize("embedding", [16, 24])
def test_an_embedding_size_of_its_own_is_counted(embedding):
    arch, sizes = (
        Arch(2, 24, 3, 40, 8),
        ModelDims(vocab=50, positions=10, types=1),
    )
    projected = sizes._replace(embedding=embedding)
    tree = jax.eval_shape(
        lambda key: build.init_params(Bert(arch, projected), key), jax.random.key(0)
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    counts, plain = cost(arch, projected, 32), cost(arch, sizes, 32)
    assert count == counts["params"]
    assert counts["flops"] - plain["flops"] == 32 * embedding * 24
    assert counts["params_paper"] == plain["params_paper"]


@pytest.mark.parametrize("length", [8, 20])
@pytest.mark.parametrize(
    "name",
    [
        *ODD,
        "agnostic",
        "proxy_tiny",
        "tinybert",
        "minilm",
        "mobilebert_tiny",
        "ib_bert_large",
    ],
)
def test_executed_flops_are_the_programs_own(name, length):
    arch = (ODD | published.NAMED_ARCHS)[name]
    sizes = sizes_of(name, vocab=50, positions=20)
    flops = dot_flops(lowered(arch, sizes, length))
    assert flops == 2 * cost(arch, sizes, length)["flops"]


def lowered(arch, sizes, length):
    """StableHLO of one text's forward pass: before XLA fuses or drops anything."""
    module = build.build_module(arch, sizes, unroll=True)
    ids = jax.ShapeDtypeStruct((1, length), np.int32)
    variables = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), ids, ids))

    def forward(variables, ids, attention_mask):
        output = module.apply(variables, ids, attention_mask)
        return output.hidden, output.pooler

    return jax.jit(forward).lower(variables, ids, ids).as_text()


def dot_flops(text):
    """2 * product(result) * product(contracted) of every dot of a StableHLO program,
    those of the functions that it calls as often as they are called."""
    assert "stablehlo.while" not in text  # Its body would count once.
    assert not re.search(r"stablehlo\.(dot |convolution)", text)
    bodies = {}
    for line in text.splitlines():
        if start := re.search(r"func\.func \w+ @(\w+)", line):
            body = bodies[start[1]] = []
        elif bodies:
            body.append(line)

    def shape(tensor):
        return [int(size) for size in tensor.split("x")[:-1]]

    def count(name):
        total = 0
        for line in bodies[name]:
            if called := re.search(r"call @(\w+)", line):
                total += count(called[1])
            elif "stablehlo.dot_general" in line:
                contracted = re.search(r"contracting_dims = \[([\d, ]*)\]", line)[1]
                lhs, _, result = map(shape, re.findall(r"tensor<([^>]*)>", line))
                over = [lhs[int(i)] for i in contracted.split(",")]
                total += 2 * math.prod(result) * math.prod(over)
        return total

    return count("main")


def test_the_counter_of_dots():
    @jax.jit
    def inner(x, y):
        return x @ y

    def outer(x, y, z):
        return inner(x, y) + inner(x, y), jax.numpy.einsum("bij,bjk->bik", z, z)

    shapes = [(3, 5), (5, 7), (2, 4, 4)]
    args = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    text = jax.jit(outer).lower(*args).as_text()
    assert "call @inner" in text
    assert dot_flops(text) == 2 * (2 * 3 * 5 * 7) + 2 * (2 * 4 * 4 * 4)


def test_names_in_any_spelling():
    for text in ("proxy_base", "Proxy-Base", "PROXY_BASE "):
        assert published.parse_arch_or_name(text, 32) == Arch(12, 544, 9, 1632, 64)
    assert published.parse_arch_or_name("layers=1,hidden=2,heads=3,ffn=4", 32) == Arch(
        1, 2, 3, 4, 32
    )
    for text in ("proxy", "layers", "agnostic,minilm"):
        with pytest.raises(UserError, match="agnostic, .*tinybert.*layers=3,hidden="):
            published.parse_arch_or_name(text, 64)


def test_named_sizes_hang_together():
    for name, arch in published.NAMED_ARCHS.items():
        custom_code = name in ("agnostic", "proxy_base", "proxy_small", "proxy_tiny")
        assert arch.is_stock_hf != custom_code
    for name, (arch, sizes) in published.NAMED_TEACHERS.items():
        assert arch.is_stock_hf and sizes.reference_heads == arch.heads, name


def job(capfd, *flags):
    assert main(["autodistill_jax", "cost", SMOKE, *flags]) == 0
    out, err = capfd.readouterr()
    assert len(out.strip().splitlines()) == 1
    record = json.loads(out)
    assert list(record) == ["arch", "params", "flops", "params_paper", "flops_paper"]
    assert all(isinstance(record[key], int) for key in list(record)[1:])
    return record, err


def test_job_inside_the_space(capfd):
    record, err = job(capfd, "--arch=layers=3,hidden=192,ffn=768,heads=6")
    arch = Arch(3, 192, 6, 768, 32)
    assert record == {"arch": str(arch), **cost(arch, length=32)} and not err
    teacher, err = job(capfd, "--arch=layers=6,hidden=384,ffn=1536,heads=12")
    assert not err and teacher["params"] == 22713216


def test_job_counts_texts_of_data_length(capfd):
    flags = ["--arch=bert-base", UNCASED, "--config.data.max_seq_length=128"]
    record, _ = job(capfd, *flags, "--config.latency.max_seq_length=16")
    assert record["flops_paper"] == 11249124864 and record["params"] == 109482240


def test_job_outside_the_space_notes_the_nearest(capfd):
    record, err = job(capfd, "--arch=layers=99,hidden=192,ffn=768,heads=6")
    assert record["arch"] == "layers=99,hidden=192,heads=6,ffn=768"
    lines = err.strip().splitlines()
    assert len(lines) == 1 and "outside the space" in lines[0]
    assert "nearest inside is layers=3,hidden=192,heads=6,ffn=768" in lines[0]


def test_job_of_a_name_keeps_its_head_size(capfd):
    record, err = job(capfd, "--arch=Agnostic", "--config.data.max_seq_length=128")
    arch = Arch(11, 352, 10, 1408, 64)
    assert record["arch"] == f"{arch},head_size=64" and record["arch"] in err
    assert record == {"arch": record["arch"], **cost(arch)}
    repeated, _ = job(
        capfd, f"--arch={record['arch']}", "--config.data.max_seq_length=128"
    )
    assert repeated == record


@pytest.mark.parametrize(
    ("teacher", "embeddings"),
    [
        ("google-bert/bert-large-uncased", 30522 + 512 + 2),
        ("roberta-base", 50265 + 512 + 1),
        ("bert-base-cased", 28996 + 512 + 2),
    ],
)
def test_job_knows_teachers_that_are_not_here(teacher, embeddings, capfd):
    record, _ = job(capfd, "--arch=agnostic", f"--config.teacher={teacher}")
    assert record["params"] == 31925344 + (embeddings - 30522 - 512 - 2) * 352
    # The paper's own count of its students, whatever the teacher's heads.
    sizes = ModelDims(vocab=embeddings - 2, positions=0)
    agnostic = cost(published.NAMED_ARCHS["agnostic"], sizes, 32)["flops_paper"]
    assert record["flops_paper"] == agnostic


def test_job_prefers_a_folder_to_what_all_know(tmp_path, monkeypatch, capfd, minilm):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    config = json.loads((minilm.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    record, _ = job(capfd, "--arch=minilm", UNCASED)
    assert record["params"] == 22713216 - (30522 - 100) * 384
