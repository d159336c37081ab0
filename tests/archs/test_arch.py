"""Do Archs, spaces, budgets and counts equal the papers' and their own definitions?"""

import dataclasses
import itertools

import numpy as np
import pytest

from autodistill_jax.archs.arch import (
    BERT_BASE,
    Arch,
    MobileArch,
    nearest_arch,
    pareto_indices,
    parse_arch,
    spread_layers,
)
from autodistill_jax.archs.budget import (
    AffordableArchs,
    Budget,
    loosest_budget,
    parse_budgets,
)
from autodistill_jax.archs.cost import cost
from autodistill_jax.archs.published import (
    AUTODISTIL_SPACES,
    AUTODISTILL_SPACE,
    NAMED_ARCHS,
    partition,
)
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError

MINILM = NAMED_ARCHS["minilm"]


def test_partition_of_bert_base_is_the_papers_table():
    assert partition(BERT_BASE, 3) == [
        AUTODISTIL_SPACES[n] for n in ("tiny", "small", "base")
    ]
    # (min, max, step) of the table, both ends included.
    for name, layers, hidden, ratio, heads in (
        ("tiny", (4, 7, 1), (128, 224, 32), (2.0, 3.5, 0.5), (7, 10, 1)),
        ("small", (9, 12, 1), (256, 352, 32), (2.5, 4.0, 0.5), (7, 10, 1)),
        ("base", (9, 12, 1), (544, 640, 32), (2.5, 4.0, 0.5), (9, 12, 1)),
    ):
        space = AUTODISTIL_SPACES[name]
        for values, (low, high, step) in (
            (space.layers, layers),
            (space.hidden, hidden),
            (space.ffn_ratio, ratio),
            (space.heads, heads),
        ):
            assert values == tuple(np.arange(low, high + step, step))


def test_sizes_of_the_papers_spaces():
    sizes = {name: len(space) for name, space in AUTODISTIL_SPACES.items()}
    assert sizes == {
        "tiny": 256,
        "small": 256,
        "base": 256,
        "one_27": 27,
        "one_864": 864,
        "one_11232": 11232,
    }
    for name, space in AUTODISTIL_SPACES.items():
        big = space.largest()
        assert all(getattr(big, axis) <= getattr(BERT_BASE, axis) for axis in Arch.axes)
        assert big.head_size == 64
    assert set(AUTODISTIL_SPACES["one_864"]) < set(AUTODISTIL_SPACES["one_11232"])
    # The paper's students are each in one of its three.
    for name, inside in (
        ("agnostic", "small"),
        ("proxy_base", "base"),
        ("proxy_small", "small"),
        ("proxy_tiny", "tiny"),
    ):
        assert NAMED_ARCHS[name] in AUTODISTIL_SPACES[inside]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "teacher",
    [MINILM, BERT_BASE, Arch(24, 1024, 16, 4096), Arch(6, 384, 12, 768, 32)],
)
def test_partition_of_any_teacher_stays_under_it(teacher, k):
    spaces = partition(teacher, k)
    assert len(spaces) == k
    for space in spaces:
        big = space.largest()
        assert big.layers <= teacher.layers and big.hidden < teacher.hidden
        assert big.heads <= teacher.heads and big.ffn <= teacher.ffn
        assert big.head_size == teacher.head_size
    sizes = [cost(space.largest())["params"] for space in spaces]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (4, (0, 3, 6, 9)),
        (5, (0, 2, 4, 7, 9)),
        (6, (0, 2, 4, 6, 8, 10)),
        (7, (0, 1, 3, 5, 6, 8, 10)),
        (9, (0, 1, 2, 4, 5, 6, 8, 9, 10)),
        (10, (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)),
        (11, tuple(range(11))),
        (12, tuple(range(12))),
    ],
)
def test_spread_layers(depth, expected):
    assert spread_layers(depth, 12) == expected


def test_space_basics():
    space = Space((2, 4), (64, 128), (), (), (2.0, 4.0), head_size=32)
    assert len(space) == 8
    assert all(arch.is_stock_hf for arch in space)
    assert space.largest() == Arch(4, 128, 4, 512, 32)
    assert space.smallest() == Arch(2, 64, 2, 128, 32)
    assert Arch(2, 64, 2, 128, 32) in space and Arch(3, 64, 2, 128, 32) not in space
    step = space.sandwich(np.random.default_rng(0), 2)
    assert step[:2] == [space.largest(), space.smallest()] and len(step) == 4


def test_nearest():
    tiny = AUTODISTIL_SPACES["tiny"]
    assert nearest_arch(tiny, Arch(3, 128, 7, 256)) == Arch(4, 128, 7, 256)
    assert nearest_arch(tiny, NAMED_ARCHS["proxy_tiny"]) == NAMED_ARCHS["proxy_tiny"]
    # Eighteen heads of 32 channels are as wide as nine of 64.
    assert nearest_arch(tiny, Arch(5, 192, 18, 576, 32)) == Arch(5, 192, 9, 576)


# Of each kind: heads and ffn of their own, tied to the width, repeated, out of order; and
# MobileBERTs.
KINDS = (
    Space((2, 1), (64, 32, 96), (3, 1), (), (1.5, 2.0, 1.51), head_size=16),
    Space((3,), (64, 32), (), (128, 64, 128), (), head_size=32),
    Space((1, 2, 2), (8, 16, 12), (2, 4), (4, 20), (), 4, (8, 12), (2, 1)),
)


def listed(space):
    """All Archs of a space by its definition."""
    archs = set()
    for layers, hidden in itertools.product(space.layers, space.hidden):
        heads = space.heads or [hidden // space.head_size]
        ffns = space.ffn or [int(hidden * ratio) for ratio in space.ffn_ratio]
        for head, ffn in itertools.product(heads, ffns):
            if space.family is Arch:
                archs.add(Arch(layers, hidden, head, ffn, space.head_size))
                continue
            for bottleneck, stacks in itertools.product(space.bottleneck, space.stacks):
                archs.add(MobileArch(layers, hidden, bottleneck, head, ffn, stacks))
    return sorted(archs)


@pytest.mark.parametrize(
    "space", [*KINDS, *AUTODISTIL_SPACES.values(), AUTODISTILL_SPACE], ids=str
)
def test_a_space_is_its_list_without_listing(space):
    grid = listed(space)
    assert list(space) == grid and len(space) == len(grid)
    assert [space[i] for i in range(0, len(grid), 7)] == grid[::7]
    assert space[-2] == grid[-2]
    with pytest.raises(IndexError):
        space[len(grid)]
    for axis in space.family.axes:
        sizes = {getattr(arch, axis) for arch in grid}
        assert space.axis_values_product(axis) == [(size,) for size in sorted(sizes)]
        ends = (getattr(end, axis) for end in (space.smallest(), space.largest()))
        assert tuple(ends) == (min(sizes), max(sizes))
    pair = space.family.axes[1], space.family.axes[-2]
    assert space.axis_values_product(*pair) == sorted(
        {tuple(getattr(arch, axis) for axis in pair) for arch in grid}
    )
    count = [cost(arch)["params"] for arch in grid]
    assert cost(space.smallest())["params"] == min(count)
    assert cost(space.largest())["params"] == max(count)
    for arch in (grid[0], grid[len(grid) // 2], grid[-1]):
        assert arch in space and space.decode(space.encode(arch)) == arch
        for axis in arch.axes:
            neighbour = dataclasses.replace(arch, **{axis: getattr(arch, axis) + 1})
            assert (neighbour in space) == (neighbour in grid)
            assert space.nearest(neighbour) == nearest_arch(grid, neighbour)
    assert space.subset(len(grid), 0) == grid
    subset = space.subset(3, 0)
    assert (
        len(set(subset)) == 3
        and set(subset) < set(grid)
        and subset == space.subset(3, 0)
    )


def test_an_arch_of_another_kind_is_in_no_space():
    bert, _, mobile = KINDS
    assert dataclasses.replace(bert[0], head_size=8) not in bert
    assert bert[0] not in mobile and mobile[0] not in bert


HUGE = Space(
    tuple(range(1, 25)), tuple(range(64, 1088, 16)), tuple(range(1, 17)),
    tuple(range(64, 4160, 16)),
)  # fmt: skip


def test_a_space_of_millions_is_never_listed(monkeypatch):
    monkeypatch.setattr(Space, "__iter__", None)
    space, rng = HUGE, np.random.default_rng(0)
    assert len(space) == 24 * 64 * 16 * 256 == 6_291_456
    assert space.smallest() == Arch(1, 64, 1, 64)
    assert space.largest() == Arch(24, 1072, 16, 4144)
    first = space.sandwich(rng, 2)
    assert first[:2] == [space.largest(), space.smallest()]
    assert all(arch in space for arch in first)
    assert Arch(3, 72, 1, 64) not in space
    assert space.nearest(Arch(30, 101, 3, 5000)) == Arch(24, 96, 3, 4144)
    inside = AffordableArchs(
        {"main": space}, Budget(flops_fraction=0.5), cost(BERT_BASE)
    )
    assert inside[space.smallest()] == "main" and space.largest() not in inside


def test_sample_is_uniform_over_the_grid():
    space = Space((1, 2), (64, 128), (1,), (), (1.0,))
    samples = space.sample(np.random.default_rng(0), 4000)
    assert all(abs(samples.count(arch) - 1000) < 150 for arch in space)


def test_budget_of_fractions_and_both_conventions():
    space, teacher = partition(BERT_BASE, 3)[1], cost(BERT_BASE)
    for convention, key in (("executed", "flops"), ("paper", "flops_paper")):
        budget = Budget(flops_fraction=0.2, params=30e6, convention=convention)
        inside = AffordableArchs({"main": space}, budget, teacher)
        assert 0 < len(inside) < 256
        params = key.replace("flops", "params")
        for arch in space:
            meets = cost(arch)[key] <= 0.2 * teacher[key] and cost(arch)[params] <= 30e6
            assert meets == (arch in inside)


def test_an_arch_of_several_spaces_is_of_the_first():
    first, second = Space((1, 2), (32,), (1,), (64,)), Space((2, 3), (32,), (1,), (64,))
    budget = Budget(params=cost(Arch(2, 32, 1, 64))["params"])
    inside = AffordableArchs(
        {"first": first, "second": second}, budget, cost(BERT_BASE)
    )
    assert dict(inside) == {first[0]: "first", first[1]: "first"} and len(inside) == 2
    assert second[0] in inside and second[1] not in inside
    # The first leaves nothing, the second does.
    inside = AffordableArchs(
        {"third": Space((3,), (32,), (1,), (64,)), "first": first},
        budget,
        {"params": 1, "flops": 1},
    )
    assert dict(inside) == {first[0]: "first", first[1]: "first"}


def test_empty_budget_says_which_bound_and_the_nearest():
    space = partition(BERT_BASE, 3)[2]
    with pytest.raises(UserError) as error:
        budget = Budget(flops=1e9, params_fraction=0.9)
        AffordableArchs({"main": space}, budget, cost(BERT_BASE))
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


def test_a_tuple_is_a_bound_of_each_budget():
    budgets = parse_budgets({"latency_ms": (2.0, 1.0), "flops_fraction": 0.5})
    assert budgets == (
        Budget(latency_ms=2.0, flops_fraction=0.5),
        Budget(latency_ms=1.0, flops_fraction=0.5),
    )
    assert loosest_budget(budgets) == budgets[0]
    # Where one has no bound, whatever meets some budget needs none.
    budgets = parse_budgets({"params": (0.0, 3e6), "flops": (1e6, 2e6)})
    assert loosest_budget(budgets) == Budget(flops=2e6)
    for settings in ({"flops": (1.0, 2.0), "params": (1.0,)}, {"flops": ()}):
        with pytest.raises(UserError, match="give each as many"):
            parse_budgets(settings)


def test_parse():
    text = "layers=3,hidden=192,ffn=768,heads=6"
    assert parse_arch(text, 32) == Arch(3, 192, 6, 768, 32)
    assert parse_arch(f" head_size=16, {text}", 32) == Arch(3, 192, 6, 768, 16)


@pytest.mark.parametrize(
    "text",
    [
        "layers=3",
        "layers=3,hidden=x,ffn=1,heads=1",
        "layer=3",
        "layers=0,hidden=1,ffn=1,heads=1",
        "layers=-1,hidden=1,ffn=1,heads=1",
        "layers=1.5,hidden=1,ffn=1,heads=1",
        "layers=²,hidden=1,ffn=1,heads=1",
        "layers=1,layers=2,hidden=1,ffn=1,heads=1",
        "layers=1,hidden=99999999,ffn=1,heads=1",
        "",
    ],
)
def test_parse_refuses(text):
    with pytest.raises(UserError, match="layers=3,hidden=192"):
        parse_arch(text, 32)


def test_front_is_what_nothing_beats():
    points = [(1, 5), (2, 3), (3, 3), (4, 1), (4, 1), (5, 2)]
    assert pareto_indices(points) == [0, 1, 3]
