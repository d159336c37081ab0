"""Is every field of a config there once, checked, explained, and are old names told?"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import config_fields
import pytest
from paths import ROOT

from autodistill_jax.cli import main
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import schema
from autodistill_jax.experiment.base_config import (
    RENAMED_FIELDS,
    RENAMED_VALUES,
    base_config,
    smoke,
)
from autodistill_jax.experiment.config_file import load_config
from autodistill_jax.jobs.config import config_lines


def fields(config):
    return schema.flatten(config.to_dict())


def test_the_schema_has_every_field_and_no_other():
    assert set(schema.FIELDS) == set(fields(base_config()))
    schema.check_config(base_config())
    schema.check_config(smoke(base_config()))


def test_every_field_is_explained_and_the_page_says_the_same():
    notes = config_fields.comments()
    assert not {name for name in fields(base_config()) if not notes[name]}
    assert config_fields.page() == config_fields.PAGE.read_text()


def test_old_names_are_refused_with_the_new_one(capfd):
    names = set(fields(base_config()))
    assert not RENAMED_FIELDS.keys() & names and set(RENAMED_FIELDS.values()) <= names
    config = f"--config={ROOT / 'configs' / 'minilm.py'}"
    for flag in ("--config.distill.hide=0.1", "--config.flash.winners=2"):
        assert main(["autodistill_jax", "cost", config, flag, "--arch=minilm"]) == 2
        old = flag.removeprefix("--config.").partition("=")[0]
        assert f"{old} is now {RENAMED_FIELDS[old]}" in capfd.readouterr().err
    # In a file of one's own, written for version 0.2.
    old_config = base_config().unlock()
    old_config.distill.hide = 0.1
    with pytest.raises(UserError, match=r"distill\.hide is now distill\.mlm_prob"):
        schema.check_config(old_config)
    for name, values in RENAMED_VALUES.items():
        for old, new in values.items():
            old_config = base_config()
            section, _, field = name.partition(".")
            old_config[section][field] = old
            with pytest.raises(UserError, match=f"{old!r} is now {new!r}"):
                schema.check_config(old_config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hide": 0.1}, "was made by autodistill_jax 0.2"),
        ({"steps": 60}, r"was made before there was \S+; use another --workdir"),
    ],
)
def test_a_workdir_of_other_fields_is_refused_in_one_line(
    tmp_path, capfd, settings, message
):
    (tmp_path / "config.json").write_text(json.dumps({"distill": settings}))
    flags = [f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"]
    flags.append(f"--workdir={tmp_path}")
    assert main(["autodistill_jax", "distill", *flags]) == 2
    err = capfd.readouterr().err.strip()
    assert re.search(message, err) and "\n" not in err


def test_the_job_config_marks_what_differs(capfd):
    config = f"--config={ROOT / 'configs' / 'minilm.py'}"
    flags = [config, "--config.distill.steps=7", "--config.seed=0"]
    assert main(["autodistill_jax", "config", *flags]) == 0
    lines = capfd.readouterr().out.splitlines()
    default = base_config().distill.steps
    assert f"distill.steps = 7  # base: {default}" in lines and "seed = 0" in lines
    assert len(lines) == len(fields(base_config()))
    assert not [line for line in config_lines(base_config()) if "# base" in line]


def test_a_config_file_loads_from_any_folder_and_needs_no_jax(tmp_path):
    """Also by its path alone, as --config does, from a folder that is not the clone's."""
    code = "import sys; from autodistill_jax import load_config; "
    code += "print(load_config(sys.argv[1]).distill.steps, 'jax' in sys.modules)"
    address = f"{ROOT / 'configs' / 'minilm.py'}:smoke"
    out = subprocess.run(
        [sys.executable, "-c", code, address],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.split() == ["12", "False"]
    with pytest.raises(UserError, match="no config file"):
        load_config(str(tmp_path / "none.py"))


def test_configs_say_only_what_makes_their_experiment():
    lines = 0
    for path in (ROOT / "configs").glob("*.py"):
        lines += len(path.read_text().splitlines())
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        base, preset = fields(base_config()), fields(module.get_config(""))
        differ = {name for name in base if preset[name] != base[name]}
        most = {"quickstart": 5, "minilm": 5, "baselines": 11}.get(path.stem, 50)
        assert len(differ) <= most, (path.stem, sorted(differ))
    assert lines < 700
