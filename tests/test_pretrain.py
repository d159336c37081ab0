"""Are pairs true pairs, heads the originals', and does training on text alone learn?"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SIZES

from autodistill_jax import sharding
from autodistill_jax.arch import Arch, MobileArch
from autodistill_jax.data import batches, text, tokens
from autodistill_jax.data import pairs as data_pairs
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import pretrain as job
from autodistill_jax.main import main
from autodistill_jax.model import extract, follows, huggingface, modules, words
from autodistill_jax.train import fit, objectives, optimizer, pretrain, terms

ROOT = Path(__file__).parents[1]
SPECIAL = tokens.Special(pad=0, cls=1, sep=2, hide=3)
PAIR_KEYS = {"ids", "tokens", "types", "next"}


# Pairs.


def stories(count=120, sentences=9):
    """Documents whose every word names document and sentence: "D7 S3 ..."."""
    return [
        [
            f"Story{d} line{s} " + " ".join(["again"] * ((d + s) % 5 + 2)) + "."
            for s in range(sentences)
        ]
        for d in range(count)
    ]


@pytest.fixture(scope="module")
def made(minilm):
    return tokens.tokenizer(minilm.folder, minilm.sizes.vocab)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join("\n".join(story) for story in stories()))
    return path


def cut(source, made, length=48, **more):
    return text.rows(
        text.documents(str(source), unit="pair"), made, "pair", length, **more
    )


@pytest.fixture(scope="module")
def pairs(corpus, made):
    return cut(corpus, made)


def read(made, ids, types, real, kind):
    """The (story, line)s of one of a row's two texts."""
    told = made.decode(ids[(types == kind) & (real > 0)].tolist())
    told = told.replace(" ", "")
    return [(int(d), int(s)) for d, s in re.findall(r"story(\d+)line(\d+)again", told)]


def both(made, side):
    for ids, types, real, other in zip(
        side["ids"], side["types"], side["tokens"], side["next"]
    ):
        yield (*(read(made, ids, types, real, kind) for kind in (0, 1)), other)


def test_a_pair_continues_or_is_of_another_document(pairs, made):
    for side in pairs.values():
        assert side.keys() == PAIR_KEYS
        for first, second, other in both(made, side):
            assert first and second
            for run in (first, second):  # Whole sentences of one document, in order.
                assert len({story for story, _ in run}) == 1
                lines = [line for _, line in run]
                assert lines == list(range(lines[0], lines[0] + len(run)))
            if other:
                assert first[0][0] != second[0][0]
            else:
                assert second[0] == (first[-1][0], first[-1][1] + 1)


def test_two_documents_of_unequal_length(made):
    """The long one has too few of the other's rows to exchange with."""
    one, other = stories(2, 100)
    documents = [(one, False), (other[:40], False), (one[:9], True), (other[:9], True)]
    side = data_pairs.rows(documents, made, 32)["train"]
    found = list(both(made, side))
    assert {run[0][0] for *runs, _ in found for run in runs} == {0, 1}
    assert 0.1 < side["next"].mean() <= 0.5
    for first, second, different in found:
        assert (first[0][0] != second[0][0]) == different


def test_pairs_are_half_and_half_and_their_form_tells_nothing(pairs, made):
    side = pairs["train"]
    assert abs(side["next"].mean() - 0.5) < 0.02
    lengths = side["tokens"].sum(axis=1)
    assert lengths.max() <= 48 and np.median(lengths) > 40  # Rows are filled.
    second = side["types"].sum(axis=1)
    for size in (lengths, second):
        follows, other = (size[side["next"] == kind].mean() for kind in (0, 1))
        assert abs(follows - other) < 2
    used = [line for row in both(made, side) for run in row[:2] for line in run]
    assert len(used) == len(set(used)) > 500  # Each sentence once.


def test_types_and_special_tokens_of_a_pair(pairs):
    side, (pad, cls, sep) = pairs["train"], (0, 101, 102)
    for ids, types, real in zip(side["ids"], side["types"], side["tokens"]):
        count = int(real.sum())
        ends = np.flatnonzero(ids == sep)
        assert ids[0] == cls and len(ends) == 2 and ends[1] == count - 1
        assert real[:count].all() and not ids[count:].any() and pad == 0
        where = np.arange(48)
        assert np.array_equal(types, (where > ends[0]) & (where <= ends[1]))


def test_documents_stay_on_one_side_and_rows_are_the_same_again(pairs, corpus, made):
    seen = {
        name: {s for one in both(made, side) for run in one[:2] for s, _ in run}
        for name, side in pairs.items()
    }
    assert seen["train"] and seen["heldout"] and not seen["train"] & seen["heldout"]
    again = cut(corpus, made)
    for name, side in pairs.items():
        for key, value in side.items():
            assert np.array_equal(value, again[name][key]), (name, key)
    few = cut(corpus, made, limit=20)
    assert len(few["train"]["ids"]) == 20 and 0 < few["train"]["next"].mean() < 1


def test_sentences_that_are_too_long_are_cut(tmp_path, made):
    path = tmp_path / "long.jsonl"
    long = ["Here is " + "a long word " * 20 + f"and number {i}." for i in range(4)]
    lines = [json.dumps({"text": f"{' '.join(long)} Of {d}."}) for d in range(80)]
    path.write_text("\n".join(lines))
    found = cut(path, made, 16)["train"]
    assert found["tokens"].all() and (found["types"].sum(axis=1) > 4).all()


@pytest.mark.parametrize(
    "body", ["One sentence is here. " * 40, "\n".join(f"Line {i} is here." * 2 for i in range(300))]
)  # fmt: skip
def test_text_without_document_breaks_is_refused(tmp_path, made, body):
    path = tmp_path / "one.txt"
    path.write_text(body)
    with pytest.raises(UserError, match=r"gave . training and . held-out documents .*"
                       r"blank lines .*\.jsonl line.*data\.unit=chunk"):  # fmt: skip
        cut(path, made)


# Heads.

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
MOBILE = SHAPE | {
    "embedding_size": 10,
    "intra_bottleneck_size": 12,
    "num_feedforward_networks": 2,
}
CASES = {
    "Bert": SHAPE,
    "MobileBert": MOBILE,
    "MobileBert, no pooler": MOBILE | {"classifier_activation": False},
    "MobileBert, as wide as its words": MOBILE | {"embedding_size": 24},
}


def write(folder, case, kind="ForPreTraining"):
    """A random checkpoint of transformers, no parameter of it 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    name = case.split(",")[0]
    config = getattr(transformers, f"{name}Config")(**CASES[case])
    made = getattr(transformers, f"{name}{kind}")(config).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn_like(value))
    made.save_pretrained(folder)


def theirs(folder, batch, name, kind):
    import torch
    import transformers

    model, info = getattr(transformers, f"{name}{kind}").from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(np.array(batch["ids"])).long(),
            attention_mask=torch.tensor(np.array(batch["tokens"])).long(),
            token_type_ids=torch.tensor(np.array(batch["types"])).long(),
        )


def ours(loaded, batch):
    module = modules.module(loaded.arch, loaded.sizes)
    params = {**loaded.params, **loaded.head, **(loaded.next or {})}
    places = jnp.tile(jnp.arange(6), (2, 1))
    return pretrain.logits(module, params, batch | {"places": places})


def save(folder, arch, loaded, params, head):
    huggingface.save(
        folder, arch, loaded.sizes, params, loaded.folder, "pooler", False, "",
        lambda _: None, head,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_heads_equal_transformers_in_and_out(tmp_path, batch, case):
    name, batch = case.split(",")[0], batch | {"types": jnp.asarray([[0, 0, 1, 1, 1, 1]] * 2)}  # fmt: skip
    real = np.asarray(batch["tokens"], bool)
    write(tmp_path / "in", case)
    loaded = huggingface.load(str(tmp_path / "in"))
    assert loaded.head is not None and loaded.next["next_kernel"].shape == (24, 2)

    def same(folder, made):
        wanted = theirs(folder, batch, name, "ForPreTraining")
        off = made["words"] - wanted.prediction_logits.numpy()
        assert np.abs(off)[real].max() < 1e-4
        off = made["next"] - wanted.seq_relationship_logits.numpy()
        assert np.abs(off).max() < 1e-4

    same(tmp_path / "in", ours(loaded, batch))
    # A smaller network with the heads of its channels goes out, and comes in again.
    small = {
        "Bert": Arch(1, 16, 2, 12, 8),
        "MobileBert": MobileArch(1, 16, 8, 2, 12, 1),
    }
    arch = small[name]
    if loaded.sizes.embedding == 24:  # A MobileBERT is no narrower than its words.
        arch = MobileArch(1, 24, 8, 2, 12, 1)
    params = extract.extract(loaded.params, loaded.arch, arch)
    head = words.cut(loaded.head, arch.hidden, loaded.sizes)
    head |= {**loaded.next, "next_kernel": loaded.next["next_kernel"][: arch.hidden]}
    save(tmp_path / "out", arch, loaded, params, head)
    again = huggingface.load(str(tmp_path / "out"))
    assert again.arch == arch
    for key, value in head.items():
        assert np.array_equal({**again.head, **again.next}[key], value), key
    same(tmp_path / "out", ours(again, batch))
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert kind == [f"{name}ForPreTraining"]


@pytest.mark.parametrize("name", ["Bert", "MobileBert"])
def test_a_masked_word_head_alone(tmp_path, batch, name):
    """Nothing has trained the pooler then: it is left out, and not taken for one."""
    batch = batch | {"types": jnp.zeros((2, 6), jnp.int32)}
    write(tmp_path / "in", name)
    loaded = huggingface.load(str(tmp_path / "in"))
    save(tmp_path / "out", loaded.arch, loaded, loaded.params, loaded.head)
    again = huggingface.load(str(tmp_path / "out"))
    assert again.next is None and again.pooling == "mean" != loaded.pooling
    made = ours(again, batch)
    assert made.keys() == {"words"}
    wanted = theirs(tmp_path / "out", batch, name, "ForMaskedLM").logits.numpy()
    off = np.abs(made["words"] - wanted)[np.asarray(batch["tokens"], bool)]
    assert off.max() < 1e-4


# Training.

SETTINGS = {"learning_rate": 3e-3, "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}
TOPICS, HALF = 4, 5


def toy(count, seed):
    """Pairs of a language of four topics, each with a word of its own for every place:
    a hidden word follows from its text's topic, and a text keeps to one."""
    rng = np.random.default_rng(seed)
    other = (np.arange(count) % 2).astype(np.int32)
    first = rng.integers(0, TOPICS, count)
    second = (first + other * rng.integers(1, TOPICS, count)) % TOPICS
    one, two = (4 + x[:, None] * HALF + np.arange(HALF) for x in (first, second))
    cls, sep = np.full((count, 1), SPECIAL.cls), np.full((count, 1), SPECIAL.sep)
    ids = np.concatenate([cls, one, sep, two, sep], axis=1).astype(np.int32)
    types = np.tile(np.arange(ids.shape[1]) > HALF + 1, (count, 1)).astype(np.int8)
    real = np.ones(ids.shape, np.int8)
    return {"ids": ids, "tokens": real, "types": types, "next": other}


def start(module):
    params = modules.init(module, jax.random.key(0))
    params |= words.init(module.arch.hidden, module.sizes)
    return params | follows.init(module.arch.hidden, jax.random.key(1))


def test_it_learns_words_and_next_sentences():
    mesh, steps = sharding.make_mesh(32, 1), 400
    module = modules.module(Arch(1, 32, 4, 64, 8), SIZES)
    params = start(module)
    moves = optimizer.make(SETTINGS, steps, modules.axes(module))
    held_out = toy(192, seed=1)

    def right(params, **more):
        return pretrain.accuracies(
            module, pretrain.body(params), pretrain.head(params), held_out, SPECIAL,
            mesh, **more,
        )  # fmt: skip

    before = right(params)
    assert before["words"] < 0.2 and 0.3 < before["next"] < 0.7
    feed = batches.training(toy(2000, seed=0), 32, seed=0)
    state = {"params": params, "optimizer": moves.init(params)}
    state = fit.fit(
        pretrain.make_step(module, moves, SPECIAL, 0.15, 20),
        jax.device_put(state, sharding.replicated(mesh)),
        lambda i: (
            batches.put(feed[i], mesh),
            jax.random.fold_in(jax.random.key(0), i),
        ),
        steps,
        what="toy",
    )
    after = right(state["params"])
    assert after["words"] > 0.6 and after["next"] > 0.8, after
    # The same words are hidden whatever the batch; the last one is filled up.
    assert right(state["params"], batch_size=48) == after


def test_the_loss_is_the_mean_over_hidden_words_and_rows():
    """Against the definition, on a batch whose texts hide unequally many words."""
    sizes = SIZES._replace(
        family="mobilebert", embedding=10, norm="layer_norm", pooler=False
    )
    module = modules.module(MobileArch(1, 16, 8, 2, 12, 1), sizes)
    params, rows = start(module), toy(8, seed=2)
    rows["tokens"][:4, 9:] = 0
    moves = optimizer.make(SETTINGS, 10, {})
    step = pretrain.make_step(module, moves, SPECIAL, 0.3, 20)
    key = jax.random.key(5)
    hidden = pretrain._hide(jax.random.split(key)[0], rows, SPECIAL, 60, 0.3, 20)
    made = jax.jit(lambda p, b: pretrain.logits(module, p, b))(params, hidden)
    log_p = jax.nn.log_softmax(made["words"])
    each = [
        -log_p[b, k, hidden["targets"][b, k]]
        for b in range(8)
        for k in range(hidden["places"].shape[1])
        if hidden["chosen"][b, k]
    ]
    log_q = jax.nn.log_softmax(made["next"])
    of_next = np.mean([-log_q[b, rows["next"][b]] for b in range(8)])
    state = {"params": params, "optimizer": moves.init(params)}
    _, values = step(state, rows, key)
    assert abs(values["words"] - np.mean(each)) < 1e-4
    assert abs(values["next"] - of_next) < 1e-4
    assert abs(values["loss"] - np.mean(each) - of_next) < 1e-4


def test_distillation_sees_the_types_of_pairs():
    module = modules.module(Arch(1, 16, 2, 24, 8), SIZES)
    params, rows = start(module), jax.tree.map(jnp.asarray, toy(2, seed=3))
    objective = objectives.Objective({"hidden": 1.0})
    inputs = ({"params": pretrain.body(params)}, rows["ids"], rows["tokens"])
    made = terms.targets(module, params, rows, objective)["hidden"]
    wanted = module.apply(*inputs, types=rows["types"]).hidden
    assert np.array_equal(made, wanted)
    student = {**pretrain.body(params), "matcher_hidden": jnp.eye(16)}
    same = terms.terms(module, student, rows, {"hidden": wanted}, objective)
    assert not np.any(same["hidden"])
    other = module.apply(*inputs).hidden
    other = terms.terms(module, student, rows, {"hidden": other}, objective)
    assert np.all(other["hidden"] > 1e-6)


# The job.


def flags(workdir, corpus, *more):
    return [
        "autodistill_jax",
        "pretrain",
        f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke",
        f"--workdir={workdir}",
        f"--config.data.source={corpus}",
        "--config.data.unit=pair",
        "--config.pretrain.arch=layers=1,hidden=16,heads=2,ffn=32",
        "--config.pretrain.steps=6",
        "--config.pretrain.save_every=2",
        "--config.mesh.data=1",
        *more,
    ]


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job") / "w"
    assert main(flags(workdir, corpus)) == 0
    return workdir


def test_the_job_leaves_a_teacher(done, corpus, capfd):
    loaded = huggingface.load(str(done / "pretrained"))
    assert loaded.arch == Arch(1, 16, 2, 32, 8) and loaded.pooling == "pooler"
    assert loaded.head is not None and loaded.next is not None and not loaded.embeds
    card = (done / "pretrained" / "README.md").read_text()
    assert re.search(r"6 steps of 8 rows of 32 tokens\s\(1,536 tokens\)", card)
    assert "% of hidden words named right" in card and "next sentences told" in card
    lines = (done / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["job"] for line in lines} == {
        "pretrain", "pretrain/heldout",
    }  # fmt: skip
    with np.load(done / "data" / "rows.npz") as kept:
        assert {name.split("/")[1] for name in kept} == PAIR_KEYS
    assert main(flags(done, corpus)) == 0
    assert "done already" in capfd.readouterr().err
    # It is a teacher: here of itself, on hidden words alone, from its own weights.
    further = done.parent / "further"
    more = [
        f"--config.teacher={done / 'pretrained'}",
        "--config.pretrain.arch=",
        "--config.pretrain.learning_rate=0.0",
        "--config.data.unit=chunk",
        "--config.space.layers=(1,)",
        "--config.space.hidden=(16,)",
        "--config.space.ffn_ratio=(2.0,)",
        "--config.budget.flops_fraction=0.0",
    ]
    assert main(flags(further, corpus, *more)) == 0
    told = capfd.readouterr().err
    assert "by transformers (BertForMaskedLM)" in told and "next sent" not in told
    again = huggingface.load(str(further / "pretrained"))
    assert again.next is None
    for name, value in {**loaded.params, **loaded.head}.items():
        if not name.startswith("pooler"):
            assert np.array_equal({**again.params, **again.head}[name], value), name


def test_kill_and_resume_equals_uninterrupted(
    done, corpus, tmp_path, monkeypatch, capfd
):
    whole, dies = fit.fit, 5

    def dying(*args, **kwargs):
        def after(count, state):
            if count == dies:
                raise KeyboardInterrupt

        return whole(*args, **kwargs, after=after)

    monkeypatch.setattr(fit, "fit", dying)
    assert main(flags(tmp_path / "w", corpus)) == 130
    assert not (tmp_path / "w" / "pretrained").exists()
    monkeypatch.setattr(fit, "fit", whole)
    assert main(flags(tmp_path / "w", corpus)) == 0
    told = capfd.readouterr().err
    assert "going on after step 4" in told
    assert "by transformers (BertForPreTraining)" in told
    for name in ("model.safetensors", "README.md", "config.json"):
        one, other = (w / "pretrained" / name for w in (done, tmp_path / "w"))
        assert one.read_bytes() == other.read_bytes(), name


BAD = {
    "no steps": (["--config.pretrain.steps=0"], "pretrain.steps is 0, which means"),
    "nothing hidden": (["--config.pretrain.hide=0.0"], "hide is 0.0; it must be from"),
    "no Arch": (["--config.pretrain.arch=huge"], "pretrain.arch=huge is no Arch"),
    "no stock class": (["--config.pretrain.arch=agnostic"], "with heads of 64; pre"),
    "narrow": (
        ["--config.pretrain.arch=layers=1,hidden=64,bottleneck=16,heads=2,ffn=8,stacks=1"],
        "hidden 64, narrower than the 128 channels",
    ),
    "large batch": (["--config.pretrain.batch_size=4096"], "pretrain.batch_size 4096 is"),
    "no breaks": (
        [f"--config.data.source={ROOT / 'LICENSE'}"],
        "gave 25 training and 1 held-out documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, corpus, tmp_path, capfd):
    more, expected = BAD[name]
    assert main(flags(tmp_path / "w", corpus, *more)) == 2
    told = capfd.readouterr().err
    assert expected in told and told.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_which_networks_it_trains(minilm):
    def made(arch="", family="bert", special=SPECIAL):
        sizes = minilm.sizes._replace(family=family)
        return SimpleNamespace(
            config=SimpleNamespace(
                teacher="t", pretrain=SimpleNamespace(steps=1, arch=arch)
            ),
            teacher=minilm._replace(sizes=sizes),
            special=special,
        )

    assert job.network(made()) == (minilm.arch, minilm.sizes)
    arch, sizes = job.network(made("mobilebert"))
    assert (arch.stacks, sizes.vocab, sizes.pooler) == (4, 30522, False)
    assert job.network(made("layers=2,hidden=96,heads=4,ffn=8"))[0].head_size == 24
    job.check(made("mobilebert", family="roberta"))
    for told, asked in (
        ("would be of the type roberta", made(family="roberta")),
        ("would be of the type electra", made("bert_base", family="electra")),
        ("has no token for a hidden word", made(special=SPECIAL._replace(hide=None))),
    ):
        with pytest.raises(UserError, match=told):
            job.check(asked)
