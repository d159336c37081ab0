"""Does the benchmark of students run, in a short form, and go on where it stopped?"""

import functools
import json
import sys

import ablations
import jax.numpy as jnp
import numpy as np
import pytest
import student_scores
import students
import superlm_ablations
from texts import stories

import autodistill_jax as ad
from autodistill_jax.train import loop, optimizer


@pytest.fixture
def data(tmp_path):
    """A little of each set, in the layout of the real ones."""
    wiki = tmp_path / "wikipedia-2015" / "AA"
    wiki.mkdir(parents=True)
    articles = ["\n".join(story * 3) for story in stories()]
    text = "\n".join(f'<doc id="{i}">\n{a}\n</doc>' for i, a in enumerate(articles))
    (wiki / "wiki_00").write_text(text + "\n")
    sts = tmp_path / "glue" / "STS-B"
    (sts / "original").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sentences = [sentence for story in stories() for sentence in story]

    def pairs(count):
        for i in range(count):
            first, second = rng.choice(sentences, 2)
            yield i, f"{rng.uniform(0, 5):.3f}", first, second

    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
    for side in ("train", "dev"):
        lines = [f"{header}\tsentence2\tscore"]
        lines += [f"{i}\tg\tf\t1\t1\ts\ts\t{a}\t{b}\t{s}" for i, s, a, b in pairs(8)]
        (sts / f"{side}.tsv").write_text("\n".join(lines) + "\n")
    lines = [f"g\tf\t2012\t{i}\t{s}\t{a}\t{b}" for i, s, a, b in pairs(8)]
    (sts / "original" / "sts-test.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "squad").mkdir()
    paragraphs = [
        {"context": " ".join(story), "qas": [{"question": story[0]}]}
        for story in stories()[:6]
    ]
    squad = json.dumps({"data": [{"paragraphs": paragraphs}]})
    (tmp_path / "squad" / "dev-v1.1.json").write_text(squad)
    return tmp_path


@pytest.mark.e2e
@pytest.mark.usefixtures("one_device")
def test_students_in_a_short_form(data, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(students, "ARCHS", {"eighth": students.ARCHS["eighth"]})
    monkeypatch.setattr(students, "_REDUCTION_RATES", ())  # Each would compile a step.
    # A step each, however long a step takes here.
    monkeypatch.setattr(students.training_time, "steps_alone", lambda *_: 1.0)
    student_config = students.student_config

    def quick_config(*args):
        config = student_config(*args)
        config.distill.calibration_rows = 16
        config.distill.batch_size = 16
        config.export.pairs = 20
        config.search.proxy_rows = 16
        config.latency.runs = 10
        # Little to compile: one length, a SuperLM of two depths.
        config.data.update(length_buckets=1, max_seq_length=16, max_train_rows=64)
        config.space.update(hidden=(256,), ffn=(304,))
        return config

    monkeypatch.setattr(students, "student_config", quick_config)
    # Of every network one length is compiled.
    embed_short = functools.partial(ad.embed, max_seq_length=16)
    monkeypatch.setattr(
        student_scores, "embedder", lambda model: functools.partial(embed_short, model)
    )
    options = ["--seeds", "1", "--data", str(data), "--workdir", str(tmp_path / "w")]
    every, trained = ",".join(students.METHODS), "student,twin,layer_reduction"
    for steps, methods in (("0", every), ("2", trained)):
        argv = ["students.py", "--steps", steps, "--methods", methods, *options]
        monkeypatch.setattr(sys, "argv", argv)
        students.main()
        report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
        figures = report["eighth"]
        assert figures["flops"] == pytest.approx(0.1294, abs=1e-4)
        assert -1 <= figures["test"] <= 1 and 0 <= figures["mrr"] <= 1
        assert report["teacher"]["mrr_aligned"] == report["teacher"]["mrr"]
        assert figures["mrr_aligned"] >= 0  # The untrained start's map is fitted.
        if steps == "0":
            assert report["twin"] == report["layer_reduction"] == {}
            assert report["static"]["flops"] < 1e-3 and report["static"]["mrr"] >= 0
            # In int8 the teacher is near itself.
            assert abs(report["int8"]["dev"] - report["teacher"]["dev"]) < 0.1
    (twin,) = report["twin"]["eighth"].values()
    assert twin["flops"] == figures["flops"] and -1 <= twin["test"] <= 1
    reductions = report["layer_reduction"]["eighth"]
    assert set(reductions) == {
        "layer_reduction-1-seconds",
        "layer_reduction-1-even-seconds",
    }
    for reduction in reductions.values():
        assert reduction["flops"] == pytest.approx(1 / 6, abs=1e-3)
        assert reduction["mrr_aligned"] >= 0  # As wide as the teacher.
    minus = report["twin"]["eighth"]["twin-seconds"]["student_minus"]
    assert minus["test"] == pytest.approx(figures["test"] - twin["test"])
    students.main()
    output = capfd.readouterr()
    assert json.loads(output.out)["eighth"] == figures
    assert "compiling" not in output.err  # Nothing was trained again.
    (folder,) = (tmp_path / "w" / "2-0" / "students").glob("3x256*")
    monkeypatch.setattr(
        sys, "argv", ["students.py", "--student", str(folder), *options]
    )
    students.main()
    scored = json.loads(capfd.readouterr().out)["student"]
    assert scored["test"] == pytest.approx(figures["test"])
    # A map that is fitted takes what is all there to the checkpoint's own channels.
    config = students.student_config(data, "eighth", 0, 0)
    experiment = students.load_started(config, tmp_path / "w" / "0-0")
    network = students.with_fitted_map(experiment, experiment.teacher)
    texts, teacher = (
        [story[0] for story in stories()],
        ad.load_teacher(students.TEACHER),
    )
    vectors = [student_scores.embedder(model)(texts) for model in (network, teacher)]
    assert (vectors[0] * vectors[1]).sum(axis=1).mean() > 0.98
    # One part of the recipe changed, and the recipe itself, of one step.
    monkeypatch.setattr(ablations, "_PASSAGE_TOKENS", 16)
    options += [
        "--steps",
        "1",
        "--variants",
        "recipe,relation_alone,blocks_of_averaged_heads",
    ]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *options])
    ablations.main()
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert set(report) == set(options[-1].split(","))
    assert all(0 < figures["distance"] < 1 for figures in report.values())
    assert "mrr_aligned" in report["recipe"]  # By the map that its loss trained.
    assert "mrr_aligned" not in report["relation_alone"]
    # A SuperLM's recipe, whose sub-networks are scored as they lie in it.
    options[-1] = "bands,folded"
    monkeypatch.setattr(sys, "argv", ["superlm_ablations.py", *options])
    superlm_ablations.main()
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    for variant in ("bands", "folded"):
        assert 0 < report[variant]["distance"] == report[variant]["eighth"] < 1


def test_seconds_before_a_stop_count(tmp_path):
    path = tmp_path / "seconds.txt"
    path.write_text("100.0")
    with students.kept_seconds(path) as seconds:
        assert 100 <= seconds() < 101
    assert 100 <= float(path.read_text()) < 101


def test_a_stable_rate_falls_over_the_last_fifth():
    settings = {
        "learning_rate": 0.1,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "grad_clip_norm": 0.0,
    }
    with ablations.changed_training("stable_rate"):
        tx = optimizer.make_optimizer(settings, 10, {"w": ("embed", "mlp")})
    params = {"w": jnp.zeros((2, 2))}
    state = tx.init(params)
    sizes = []
    for _ in range(10):
        updates, state = tx.update({"w": jnp.ones((2, 2))}, state, params)
        sizes.append(float(-updates["w"][0, 0]))
    # The same gradient each time: AdamW's update is the rate. Its first step warms up.
    np.testing.assert_allclose(sizes[1:], [0.1] * 8 + [0.05], rtol=1e-4)


def test_other_ways_to_muons_products():
    """All near what is orthogonal, and none the recipe's."""
    settings = {
        "learning_rate": 1.0,
        "warmup_ratio": 0.0,
        "lr_decay": False,
        "weight_decay": 0.0,
        "grad_clip_norm": 0.0,
        "optimizer": "muon",
    }
    name, axes = "layers_ffn_in_kernel", ("layers", "embed", "mlp")
    gradient = np.random.default_rng(0).normal(size=(1, 16, 24)).astype(np.float32)
    u, _, vt = np.linalg.svd(gradient[0], full_matrices=False)
    updates = {}
    for variant in ("recipe", "larger_updates", "polar_express", "four_iterations"):
        with ablations.changed_training(variant):
            tx = optimizer.make_optimizer(settings, 10, {name: axes})
            state = tx.init({name: jnp.zeros_like(gradient)})
            for _ in range(2):  # The first step warms up.
                update, state = tx.update({name: gradient}, state, {name: gradient})
        updates[variant] = -np.asarray(update[name][0])
        size = np.linalg.norm(updates[variant])
        assert (updates[variant] * (u @ vt)).sum() > 0.95 * size * 16**0.5
    larger = updates.pop("larger_updates")
    assert np.allclose(larger, 2.5 * updates["recipe"], rtol=1e-4, atol=1e-6)
    for variant in ("polar_express", "four_iterations"):
        assert np.abs(updates[variant] - updates["recipe"]).max() > 1e-3


def test_averaged_weights_are_what_is_saved_at_the_end():
    saved = {}
    with ablations.changed_training("averaged_weights"):
        loop.fit(
            lambda state: ({"params": {"w": state["params"]["w"] + 1.0}}, {}),
            {"params": {"w": jnp.zeros(())}},
            lambda i: (),
            3,
            label="counting",
            save_fn=lambda done, state: saved.update({done: state["params"]["w"]}),
            save_every=2,
        )
    assert saved[2] == 2.0  # What a stopped run goes on from is not averaged.
    # 1, 2 and 3, each of them two hundredths of the average, that starts at 0.
    assert saved[3] == pytest.approx(0.02 * (0.98**2 * 1 + 0.98 * 2 + 3), rel=1e-5)


def test_ranks_and_recall_are_of_the_first_ten():
    documents = np.eye(12)
    questions = documents[[0, 3]] + 0.1 * documents[[1, 4]]
    assert student_scores.retrieval(questions, documents, np.asarray([0, 4])) == {
        "mrr": 0.75,
        "recall": 1.0,
    }
