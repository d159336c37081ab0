"""Do proxies measure what they say, and is a ranking's trust told right?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_networks import DIMS, mesh_of

from autodistill_jax import metrics
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.models import build, encoder, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.search import proxies, ranking
from autodistill_jax.search.proxy_finetune import parallel_finetune
from autodistill_jax.train import classification, losses
from autodistill_jax.train.objective import Objective

TEACHER = Arch(2, 32, 4, 64, 8)
# Few branches: compiling them is most of the time.
SPACE = Space((1, 2), (12, 16), (2,), (24,), head_size=8)
BIG = Arch(2, 16, 2, 24, 8)
ARCHS = [Arch(1, 16, 2, 24, 8), SPACE.largest(), SPACE.smallest()]
TUNING = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}


def side(rows, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 12, (rows, 6)).astype(np.int32)
    attention_mask = (np.arange(6) < rng.integers(3, 7, (rows, 1))).astype(np.int8)
    label = ((ids == 5) * attention_mask).sum(axis=1).astype(np.float32)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "token_type_ids": 0 * attention_mask,
        "label": label,
    }


LABELLED = classification.ClassificationData(
    side(64), side(40, 1), 1, "pearson_spearman"
)


def proxy_inputs(devices=1):
    teacher = Bert(TEACHER, DIMS)
    params = build.init_params(teacher, jax.random.key(3))
    params = {k: v * 10 if k.endswith("kernel") else v for k, v in params.items()}
    return proxies.ProxyInputs(
        Bert(BIG, DIMS, space=SPACE),
        extract.extract(
            params, TEACHER, dataclasses.replace(BIG, layers=TEACHER.layers)
        ),
        teacher,
        params,
        {k: v for k, v in side(100, 2).items() if k in ("input_ids", "attention_mask")},
        8,
        Objective({"relation": 1.0}, relation_heads=4),
        mesh_of(devices),
        LABELLED,
        TUNING,
        Bert(BIG, DIMS, space=SPACE),
    )


def embeddings(module, params, rows):
    inputs = (rows["input_ids"], rows["attention_mask"])
    out = jax.jit(module.apply)({"params": params}, *inputs)
    return out, np.asarray(
        encoder.mean_pool(out.hidden, jnp.asarray(rows["attention_mask"]))
    )


def test_similarity_and_hidden_are_the_extracted_students():
    inputs = proxy_inputs()
    arch = ARCHS[0]
    student = extract.extract(inputs.params, BIG, arch)
    student_out, small = embeddings(Bert(arch, DIMS), student, inputs.held_out)
    full, large = embeddings(inputs.teacher, inputs.teacher_params, inputs.held_out)

    def cosines(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = [(i, (i + step) % 100) for step in range(1, 11) for i in range(100)]
        return [x[i] @ x[j] for i, j in pairs]

    expected = 1 - metrics.spearman(cosines(large), cosines(small))
    actual = proxies.make_proxy("similarity", inputs)([arch])[arch]["proxy"]
    assert actual == pytest.approx(expected, abs=2e-3)
    real = inputs.held_out["attention_mask"] > 0
    x, y = np.asarray(student_out.hidden)[real], np.asarray(full.hidden)[real]
    half = len(x) // 2
    centre, target = x[:half].mean(axis=0), y[:half].mean(axis=0)
    centred_x, centred_y = x[:half] - centre, y[:half] - target
    kernel = np.linalg.solve(
        centred_x.T @ centred_x + np.eye(16), centred_x.T @ centred_y
    )
    residual = y[half:] - ((x[half:] - centre) @ kernel + target)
    expected = (
        np.square(residual).sum(0) / np.square(y[half:] - y[half:].mean(0)).sum(0)
    ).mean()
    actual = proxies.make_proxy("hidden", inputs)([arch])[arch]["proxy"]
    assert actual == pytest.approx(expected, rel=1e-2)
    few = {name: value[:30] for name, value in inputs.held_out.items()}
    with pytest.raises(UserError, match="needs ten a channel"):
        proxies.check_heldout_size(few, arch.hidden, "search.proxy")
    proxies.check_heldout_size(inputs.held_out, arch.hidden, "search.proxy")


def test_relation_forms_are_proxies_of_their_own():
    inputs = proxy_inputs()
    by_form = {
        form: proxies.make_proxy(f"relation_{form}", inputs)(ARCHS)
        for form in losses.RELATION_FORMS
    }
    agnostic = proxies.make_proxy("agnostic", inputs)(ARCHS)
    for arch in ARCHS:
        assert by_form["minilmv2"][arch]["proxy"] == agnostic[arch]["proxy"]
        assert by_form["paper"][arch]["proxy"] != agnostic[arch]["proxy"]


def test_candidates_on_eight_devices_are_tuned_as_on_one():
    inputs, many = proxy_inputs(), proxy_inputs(8)
    pairs = [(arch, seed) for arch in ARCHS for seed in (0, 1)]
    runs = [
        parallel_finetune(
            run_inputs.module,
            run_inputs.params,
            LABELLED,
            TUNING,
            "mean",
            run_inputs.mesh,
        )(pairs)
        for run_inputs in (inputs, many)
    ]
    assert runs[0] == pytest.approx(runs[1], abs=2e-3)
    assert len({round(score, 3) for score in runs[0]}) == 6
    by_name = proxies.make_proxy("proxy", many)(ARCHS)
    assert [by_name[arch]["score"] for arch in ARCHS] == pytest.approx(runs[1][::2])


def test_a_candidate_is_tuned_as_its_extracted_student(monkeypatch):
    inputs = proxy_inputs()
    arch = ARCHS[0]
    (inside,) = parallel_finetune(
        inputs.module, inputs.params, LABELLED, TUNING, "mean", inputs.mesh
    )([(arch, 0)])
    student = extract.extract(inputs.params, BIG, arch)
    original = classification.init_task_head

    def head(key, hidden, rows):  # The first channels of the SuperLM's.
        task_head = original(key, BIG.hidden, rows)
        return task_head | {"head_kernel": task_head["head_kernel"][:hidden]}

    monkeypatch.setattr(classification, "init_task_head", head)
    (alone,) = classification.finetune_classifier(
        Bert(arch, DIMS),
        lambda seed: student,
        LABELLED,
        TUNING | {"epochs": 1},
        "mean",
        inputs.mesh,
        (0,),
        "test",
    )
    assert inside == pytest.approx(alone.scores[-1], abs=2e-3)


def test_tau_is_scipys_and_pairs_within_bands_are_counted_apart():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, 30), rng.integers(0, 8, 30)
    assert metrics.kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert metrics.kendall_tau([1, 1, 1], [1, 2, 3]) == 0
    bands = np.arange(30) // 10
    inside = np.equal.outer(bands, bands)
    signs = [
        (np.sign(x[i] - x[j]), np.sign(y[i] - y[j]))
        for i in range(30)
        for j in range(i)
        if bands[i] == bands[j]
    ]
    a, b = np.asarray(signs).T
    expected = (a * b).sum() / np.sqrt((a != 0).sum() * (b != 0).sum())
    assert metrics.kendall_tau(x, y, inside) == pytest.approx(expected)


def test_better_means_that_the_interval_leaves_0_out():
    rng = np.random.default_rng(1)
    quality = np.arange(30) + rng.normal(size=30)
    bands = np.arange(30) // 10
    table = ranking.rank_table(
        quality,
        {
            "flops": 10.0 * bands + rng.normal(size=30),  # Knows the band only.
            "good": quality + 0.5 * rng.normal(size=30),
            "same": 10.0 * bands + rng.normal(size=30),
            "bad": -quality,
        },
        bands,
    )
    assert table["good"]["within"]["verdict"] == "better"
    assert table["same"]["within"]["verdict"] == "tie"
    assert table["bad"]["overall"]["verdict"] == "worse"
    low, high = table["good"]["overall"]["interval"]
    assert low <= table["good"]["overall"]["tau"] <= high <= 1


def test_intervals_know_of_few_dev_rows_and_few_seeds():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    skill = np.linspace(0.6, 0.9, 24)
    bands = np.zeros(24, int)

    def predictions(seeds, rows):
        hits = rng.random((24, seeds, rows)) < skill[:, None, None]
        return np.where(hits, labels[:rows], 1 - labels[:rows])

    def width(seeds, rows, exact):
        of_archs = predictions(seeds, rows)
        quality = (of_archs == labels[:rows]).mean(axis=(1, 2))
        draws = ranking.redraw_quality(metrics.accuracy, labels[:rows], of_archs)
        if seeds == 1:  # Nothing but the rows varies: a binomial.
            deviation = np.sqrt(quality * (1 - quality) / rows).mean()
            assert draws.std(axis=0).mean() == pytest.approx(deviation, rel=0.1)
        table = ranking.rank_table(
            quality,
            {"flops": skill},
            bands,
            quality_draws=None if exact else draws,
        )
        low, high = table["flops"]["overall"]["interval"]
        return high - low

    assert width(1, 40, exact=False) > width(1, 40, exact=True)
    assert width(1, 40, exact=False) > width(3, 400, exact=False)


def test_archs_are_drawn_evenly_over_bands_of_flops():
    grid = list(Space((1, 2, 4), (12, 16, 24), (2, 3), (), (1.5, 2.0), 8))
    flops = {arch: float(i // 2) for i, arch in enumerate(grid)}
    bands = ranking.draw_by_flops(flops, 24, 3, seed=0)
    assert [list(bands.values()).count(band) for band in range(3)] == [8, 8, 8]
    tops = [max(flops[a] for a in bands if bands[a] == band) for band in range(3)]
    lows = [min(flops[a] for a in bands if bands[a] == band) for band in range(3)]
    assert tops[0] <= lows[1] and tops[1] <= lows[2]
    assert (
        bands
        == ranking.draw_by_flops(flops, 24, 3, seed=0)
        != ranking.draw_by_flops(flops, 24, 3, seed=1)
    )
    few = dict(list(flops.items())[:5])
    assert len(ranking.draw_by_flops(few, 24, 3, 0)) == 5


def test_proxies_that_cannot_be_are_refused():
    for name, task, match in (
        ("loss", "", "one of agnostic, proxy"),
        ("pooled", "", "no pooled loss"),
        ("proxy", "", "needs a labelled task"),
    ):
        with pytest.raises(UserError, match=match):
            proxies.check_proxy(name, "search.proxy", {"relation": 1.0}, task)
