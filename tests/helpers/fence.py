"""A fence round a change that must change nothing: what every smoke preset gives, to the bit.

python tests/helpers/fence.py OUT.json [PRESET ...]      runs them and writes what they give
python tests/helpers/fence.py --compare OLD.json NEW.json

A preset is `quickstart`, `minilm`, `baselines`, `autodistill`, or one of autodistil's
(`autodistil:tiny`, ...), each run with ":smoke" behind it. Kept of a run: the losses of
metrics.jsonl but for `time`, front.json, the SHA-256 of every exported tensor, all results
of fine-tuning; then the JSON of `cost` and of one `preflight`. Latencies are a function of
the Arch here, since measured ones differ from run to run; the number of cores must be the
same (`taskset -c 0 python ...`), since sums over threads depend on it. Names of fields are
compared as they are now.
"""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("FENCE_ROOT", Path(__file__).parents[2]))
PRESETS = ("quickstart", "minilm", "baselines", "autodistill") + tuple(
    f"autodistil:{name}"
    for name in ("tiny", "small", "base", "k3", "one", "one:864", "one:11232")
)
# What says how something was asked for: its fields may be renamed, see `_renamed`.
_ASKED = ("asked", "settings")
_OLD_HEADS = "the head of a task, or of words"


def fence_of(preset: str) -> dict:
    """What one preset gives, as JSON; in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["HF_HUB_OFFLINE"] = "1"
    _replace_latencies()
    name, _, variant = preset.partition(":")
    config = (
        f"--config={ROOT / 'configs' / name}.py:{variant + ':' if variant else ''}smoke"
    )
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "w"
        _job("run", config, f"--workdir={workdir}")
        record = {
            "config": _renamed(
                _flat(json.loads((workdir / "config.json").read_text()))
            ),
            "losses": _losses(workdir / "metrics.jsonl"),
            "tensors": _tensors(workdir),
            "json": {
                str(path.relative_to(workdir)): _without(json.loads(path.read_text()))
                for path in sorted(workdir.rglob("*.json"))
                if path != workdir / "config.json"
                and path.parent.name not in ("checkpoints", "default")
                and "checkpoints" not in path.parts
            },
        }
    arch = "layers=3,hidden=256,ffn=1024,heads=8"
    if name == "autodistill":
        arch += ",bottleneck=64,stacks=2"
    record["cost"] = json.loads(_job("cost", config, f"--arch={arch}"))
    if preset in ("quickstart", "autodistill"):
        preflight = json.loads(_job("preflight", config))
        del preflight["compile_seconds"]
        record["preflight"] = preflight
    return record


def _job(job: str, *flags: str) -> str:
    """What a job prints on stdout; stops where it fails."""
    from autodistill_jax.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["autodistill_jax", job, *flags])
    if status:
        raise SystemExit(f"{job} {' '.join(flags)} ended with {status}")
    return out.getvalue()


def _replace_latencies() -> None:
    from autodistill_jax.archs.cost import cost
    from autodistill_jax.latency import measure

    def by_cost(networks, *, batch, length, dtype, runs):
        return {
            name: {
                "arch": str(arch),
                "seconds": batch * cost(arch, sizes, length)["flops"] / 1e11,
                "minimum": 0.0,
                "spread": 0.0,
                "runs": runs,
                **measure.measured_conditions(batch, length, dtype),
            }
            for name, (arch, sizes, *_) in networks.items()
        }

    measure.measure_latency = by_cost


def _losses(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {_loss_name(k): v for k, v in line.items() if k != "time"} for line in lines
    ]


def _with_new_keys(value: Any, inside: str = "") -> Any:
    """Keys of records under the names that they have now."""
    if isinstance(value, list):
        return [_with_new_keys(item, inside) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {"reads": "attention_input", "heads": "reference_heads"}
    renamed = renamed if inside == "sizes" else {}
    renamed |= {"teacher/words.json": "teacher/mlm_head.json"}
    # A sentence of preflight's.
    value = {
        k: ["the head of a task, or of masked LM" if x == _OLD_HEADS else x for x in v]
        if k == "left_out"
        else v
        for k, v in value.items()
    }
    renamed |= {"how": "method", "parts": "metrics", "more": "extra_scores"}
    record = {renamed.get(k, k): _with_new_keys(v, k) for k, v in value.items()}
    if isinstance(record.get("origin"), str):
        # With a hash of names and values of fields behind it.
        record["origin"] = record["origin"].partition("-")[0]
    if isinstance(record.get("reason"), str):  # It may name a field.
        record["reason"] = record["reason"].replace(
            " search.arch ", " search.fixed_arch "
        )
    return record


def _loss_name(key: str) -> str:
    role, _, loss = key.rpartition("/")
    loss = {"words": "mlm", "next": "nsp"}.get(loss, loss)
    return f"{role}/{loss}" if role else loss


def _tensors(workdir: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    return {
        f"{path.relative_to(workdir)}:{name}": hashlib.sha256(
            repr((value.shape, value.dtype)).encode() + value.tobytes()
        ).hexdigest()
        for path in sorted(workdir.rglob("*.safetensors"))
        for name, value in sorted(load_file(path).items())
    }


def _without(value):
    if isinstance(value, list):
        return [_without(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _without(v) for k, v in value.items() if k not in _ASKED}


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _renamed(fields: dict) -> dict:
    """Fields and values under the names that they have now."""
    from autodistill_jax.experiment.base_config import RENAMED_FIELDS, RENAMED_VALUES

    fields = {RENAMED_FIELDS.get(name, name): value for name, value in fields.items()}
    for name, values in RENAMED_VALUES.items():
        if isinstance(fields.get(name), str):
            fields[name] = values.get(fields[name], fields[name])
    return fields


def compare(old: Path, new: Path) -> int:
    """Prints what differs; 0 where nothing does."""
    old_runs, new_runs = json.loads(old.read_text()), json.loads(new.read_text())
    differ = 0
    for preset in sorted(old_runs.keys() ^ new_runs.keys()):
        print(f"{preset}: only in {old if preset in old_runs else new}")
        differ += 1
    for preset in sorted(old_runs.keys() & new_runs.keys()):
        old_runs[preset], new_runs[preset] = (
            _with_new_keys(run) for run in (old_runs[preset], new_runs[preset])
        )
        for run in (old_runs[preset], new_runs[preset]):
            run["config"] = _renamed(run["config"])
            run["losses"] = [
                {_loss_name(k): v for k, v in line.items()} for line in run["losses"]
            ]
        a, b = _flat_all(old_runs[preset]), _flat_all(new_runs[preset])
        lines = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        for key in lines[:12]:
            print(f"{preset}: {key}: {a.get(key)!r} -> {b.get(key)!r}")
        print(f"{preset}: {len(a)} values, {len(lines)} differ")
        differ += len(lines)
    return 1 if differ else 0


def _flat_all(value, prefix: str = "") -> dict:
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    flat = {}
    for key, item in pairs:
        flat |= _flat_all(item, f"{prefix}/{key}")
    return flat


def main(argv: list[str]) -> int:
    if argv[0] == "--compare":
        return compare(Path(argv[1]), Path(argv[2]))
    if argv[0] == "--one":  # In a process of its own, as a user's run is.
        print(json.dumps(fence_of(argv[1])))
        return 0
    runs = {}
    for preset in argv[1:] or PRESETS:
        command = [sys.executable, __file__, "--one", preset]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode:
            print(completed.stderr[-3000:], file=sys.stderr)
            return 1
        runs[preset] = json.loads(completed.stdout.splitlines()[-1])
        print(f"{preset}: {len(_flat_all(runs[preset]))} values", flush=True)
        Path(argv[0]).write_text(json.dumps(runs, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
