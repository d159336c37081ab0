"""Do Archs, spaces, budgets and counts equal the papers' and their own definitions?"""

import numpy as np
import pytest

from autodistill_jax.arch import (
    BERT_BASE,
    Arch,
    Budget,
    Sizes,
    Space,
    cost,
    front,
    kept_layers,
    parse,
    partition,
)
from autodistill_jax.errors import UserError

MINILM = Arch(6, 384, 12, 1536, 32)


def test_paper_counts():
    # Printed in AutoDistil's tables: BERT-base 109.48 M and 11.25 G, 6 x 768 66.96 M
    # and 5.66 G.
    base, half = cost(BERT_BASE), cost(Arch(6, 768, 12, 3072))
    assert (base["params_paper"], base["flops_paper"]) == (109483008, 11249124864)
    assert (half["params_paper"], half["flops_paper"]) == (66955776, 5662311936)


def test_paper_counts_widths_relative_to_the_teachers_heads():
    large, sizes = Arch(24, 1024, 16, 4096), Sizes(heads=16)
    made = cost(large, sizes)
    # All heads of a teacher are its whole width: the two counts all but agree.
    assert abs(made["flops_paper"] / made["flops"] - 1) < 0.01


def test_executed_counts_bert_base():
    assert cost(BERT_BASE)["params"] == 109482240  # transformers' BertModel


def test_executed_width_is_heads_times_head_size():
    thin, wide = Arch(2, 64, 2, 128, 32), Arch(2, 64, 4, 128, 32)
    n = 128
    assert cost(wide)["params"] - cost(thin)["params"] == 2 * (3 * 65 + 64) * 64
    assert cost(wide)["flops"] - cost(thin)["flops"] == 2 * (
        4 * n * 64 * 64 + 2 * n * n * 64
    )


def test_partition_of_bert_base_is_the_papers_table():
    tiny, small, base = partition(BERT_BASE, 3)
    assert tiny == Space(
        (4, 5, 6, 7), (128, 160, 192, 224), (7, 8, 9, 10), (), (2.0, 2.5, 3.0, 3.5)
    )
    assert small == Space(
        (9, 10, 11, 12), (256, 288, 320, 352), (7, 8, 9, 10), (), (2.5, 3.0, 3.5, 4.0)
    )
    assert base == Space(
        (9, 10, 11, 12), (544, 576, 608, 640), (9, 10, 11, 12), (), (2.5, 3.0, 3.5, 4.0)
    )
    assert [len(space.grid()) for space in (tiny, small, base)] == [256] * 3


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "teacher",
    [MINILM, BERT_BASE, Arch(24, 1024, 16, 4096), Arch(6, 384, 12, 768, 32)],
)
def test_partition_of_any_teacher_stays_under_it(teacher, k):
    spaces = partition(teacher, k)
    assert len(spaces) == k
    for space in spaces:
        big = space.envelope()
        assert big.layers <= teacher.layers and big.hidden < teacher.hidden
        assert big.heads <= teacher.heads and big.ffn <= teacher.ffn
        assert big.head_size == teacher.head_size
    sizes = [cost(space.largest())["params"] for space in spaces]
    assert sizes == sorted(sizes)


def test_kept_layers():
    assert kept_layers(4, 12) == (0, 3, 6, 9)
    assert kept_layers(5, 12) == (0, 2, 4, 7, 9)
    assert kept_layers(7, 12) == (0, 1, 3, 5, 6, 8, 10)
    assert kept_layers(9, 12) == (0, 1, 2, 4, 5, 6, 8, 9, 10)
    assert kept_layers(11, 12) == tuple(range(11))


def test_space_basics():
    space = Space((2, 4), (64, 128), (), (), (2.0, 4.0), head_size=32)
    assert len(space.grid()) == 8
    assert all(arch.exportable for arch in space.grid())
    assert space.envelope() == space.largest() == Arch(4, 128, 4, 512, 32)
    assert space.smallest() == Arch(2, 64, 2, 128, 32)
    assert Arch(2, 64, 2, 128, 32) in space and Arch(3, 64, 2, 128, 32) not in space
    assert np.array_equal(space.encode(space.largest()), np.ones(4))
    assert np.array_equal(space.encode(space.smallest()), np.zeros(4))
    step = space.sandwich(np.random.default_rng(0), 2)
    assert step[:2] == [space.largest(), space.smallest()] and len(step) == 4
    assert set(space.corners()) == set(space.grid())


def test_corners_are_the_ends_of_every_axis():
    corners = partition(BERT_BASE, 3)[0].corners()
    assert len(corners) == 16
    assert {arch.layers for arch in corners} == {4, 7}
    assert {arch.hidden for arch in corners} == {128, 224}


def test_check_names_the_nearest():
    with pytest.raises(UserError, match="nearest inside is layers=4,hidden=128"):
        partition(BERT_BASE, 3)[0].check(Arch(3, 128, 7, 256))


def test_budget_of_fractions_and_both_conventions():
    space, teacher = partition(BERT_BASE, 3)[1], cost(BERT_BASE)
    for convention, key in (("executed", "flops"), ("paper", "flops_paper")):
        budget = Budget(flops_fraction=0.2, params=30e6, convention=convention)
        inside = space.within(budget, teacher)
        assert 0 < len(inside) < 256
        params = key.replace("flops", "params")
        for arch in space.grid():
            meets = cost(arch)[key] <= 0.2 * teacher[key] and cost(arch)[params] <= 30e6
            assert meets == (arch in inside)


def test_budget_counts_a_latency_where_it_is_known():
    space = Space((1,), (32, 64), (), (), (2.0,), head_size=32)
    small, large = space.grid()
    costs = {small: {"latency_ms": 1.0}, large: {"latency_ms": 3.0}}
    budget = Budget(latency_fraction=0.5)
    teacher = {**cost(MINILM), "latency_ms": 4.0}
    assert space.within(budget, teacher, costs) == [small]


def test_empty_budget_says_which_bound_and_the_nearest():
    space = partition(BERT_BASE, 3)[2]
    with pytest.raises(UserError) as error:
        space.within(Budget(flops=1e9, params_fraction=0.9), cost(BERT_BASE))
    text = str(error.value)
    assert "flops <= 1e+09 excludes all 256 Archs" in text and "params <=" not in text
    assert f"the nearest, {space.smallest()}, has flops" in text


def test_bad_spaces_and_budgets():
    with pytest.raises(UserError, match="exactly one"):
        Space((1,), (32,), (1,), (64,), (2.0,))
    with pytest.raises(UserError, match="does not divide"):
        Space((1,), (40,), (), (64,), (), head_size=32)
    with pytest.raises(UserError, match="'executed' or 'paper'"):
        Budget(convention="other")
    with pytest.raises(UserError, match="latency_ms is -1"):
        Budget(latency_ms=-1.0)


def test_parse():
    assert parse("layers=3,hidden=192,ffn=768,heads=6", 32) == Arch(3, 192, 6, 768, 32)
    for text in ("layers=3", "layers=3,hidden=x,ffn=1,heads=1", "layer=3"):
        with pytest.raises(UserError, match="layers=3,hidden=192"):
            parse(text, 32)


def test_front_is_what_nothing_beats():
    points = [(1, 5), (2, 3), (3, 3), (4, 1), (4, 1), (5, 2)]
    assert front(points) == [0, 1, 3]


@pytest.mark.parametrize("embedding", [0, 16, 24])
def test_executed_params_count_the_tree(embedding):
    import jax

    from autodistill_jax.model import extract
    from autodistill_jax.model.bert import Bert

    arch = Arch(2, 24, 3, 40, 8)
    sizes = Sizes(vocab=50, positions=10, types=1, embedding=embedding)
    tree = jax.eval_shape(
        lambda key: extract.init(Bert(arch, sizes), key), jax.random.key(0)
    )
    count = sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(tree))
    made, plain = cost(arch, sizes, 32), cost(arch, sizes._replace(embedding=0), 32)
    assert count == made["params"]
    assert made["flops"] - plain["flops"] == 32 * embedding * 24
    assert made["params_paper"] == plain["params_paper"]
