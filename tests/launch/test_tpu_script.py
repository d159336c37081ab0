"""Do the TPU launch scripts refuse, ask, wait and say as they should? See standin.py."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_gcloud import JOB, NASTY, ROOT, SCRIPTS, Cloud, last, on_both_workers

from autodistill_jax.jobs import JOBS

REFUSED = {
    "no command": ([], {}, "usage: NAME="),
    "unknown command": (["start"], {}, "usage: NAME="),
    "arguments": (["create", "more"], {}, "create takes no arguments (more)"),
    "no TPU": (["create"], {"TPU": None}, "TPU is not set; set it to an acc"),
    "no type": (["create"], {"TPU": "v5litepod"}, "TPU=v5litepod is not an acc"),
    "preflight's name": (["create"], {"TPU": "v5e-16"}, "v5e is v5litepod-16"),
    "unknown type": (["create"], {"TPU": "v9-8"}, "v9-8: no runtime version is"),
    "name": (["create"], {"NAME": "My TPU"}, "NAME=My TPU must be small letters"),
    "spot": (["create"], {"SPOT": "yes"}, "SPOT=yes must be 1"),
    "interval": (["create"], {"INTERVAL": "soon"}, "INTERVAL=soon must be whole"),
    "attempts": (["create"], {"ATTEMPTS": "0"}, "ATTEMPTS=0 must be at least 1"),
    "worker": (["logs"], {"WORKER": "all"}, "WORKER=all must be a worker's number"),
    "no project": (["create"], {"PROJECT": None}, "gcloud config set project my-"),
    "no zone": (["delete"], {"ZONE": None}, "gcloud config set compute/zone us-"),
    "no job": (["run"], {}, "run needs a job: run JOB --config=FILE.py"),
    "flag for a job": (["run", "--config=x.py"], {}, "run needs a job"),
    "no such job": (["run", "distil", "--config=x.py"], {}, "run: no job distil;"),
    "no config": (["run", "distill"], {}, "run needs --config=FILE.py"),
    "no such config": (["run", "distill", "--config=x.py:y"], {}, "x.py:y: no such"),
    "a workdir": (["run", *JOB, "--workdir=gs://b/y"], {}, "give the workdir as WORKD"),
    "no workdir": (["run", *JOB], {"WORKDIR": None}, "WORKDIR is not set"),
    "local workdir": (["run", *JOB], {"WORKDIR": "/w"}, "16 has several hosts, which"),
    "relative": (["run", *JOB], {"WORKDIR": "w", "TPU": "v4-8"}, "an absolute path on"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_before_anything_is_asked_for(name, cloud):
    args, env, expected = REFUSED[name]
    code, out, err = cloud.run(*args, **env)
    assert code == 2 and not out
    assert err.count("\n") == 1 and err.startswith("tpu.sh: ") and expected in err
    assert all(call.startswith("config get-value") for call in cloud.calls())


def test_every_job_is_known(cloud):
    for job in JOBS:
        _, _, err = cloud.run("run", job)
        assert "run needs --config=FILE.py" in err, job


def test_without_gcloud(cloud):
    bare = cloud.stub / "bare"
    bare.mkdir()
    for name in ("bash", "dirname"):
        (bare / name).symlink_to(shutil.which(name))
    code, _, err = cloud.run("status", PATH=str(bare))
    assert code == 2 and err.count("\n") == 1
    assert "gcloud is not installed; see https://" in err


def test_create_asks_once_waits_and_goes_on(cloud):
    (cloud.stub / "queue").write_text("GONE\nWAITING_FOR_RESOURCES\nPROVISIONING\n")
    env = {"PROJECT": None, "ZONE": None, "NETWORK": "n", "CREATE_FLAGS": "--a --b=c"}
    env |= {"PROJECT_OF_GCLOUD": "mine", "ZONE_OF_GCLOUD": "eu-a"}
    code, _, err = cloud.run("create", **env)
    assert code == 0, err
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "READY"):
        assert f"slice is {state}" in err
    (request,) = [call for call in cloud.calls() if "queued-resources create" in call]
    assert request == (
        "compute tpus queued-resources create slice --node-id=slice "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--network=n --a --b=c --project=mine --zone=eu-a --quiet"
    )
    code, _, err = cloud.run("create", SPOT="0")
    assert code == 0 and "slice is there already" in err
    assert len(cloud.calls("queued-resources create")) == 1


RUNTIMES = {
    "v2-8": "tpu-ubuntu2204-base",
    "v4-32": "tpu-ubuntu2204-base",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-256": "v2-alpha-tpuv6e",
}


def test_the_runtime_of_each_type(cloud):
    for kind, runtime in RUNTIMES.items():
        _, out, _ = cloud.run("--dry-run", "create", TPU=kind, SPOT="0")
        assert f"--accelerator-type={kind} --runtime-version={runtime} --project" in out
        # Behind the command it means the same.
        assert cloud.run("create", "--dry-run", TPU=kind, SPOT="0")[1] == out
    _, out, _ = cloud.run("--dry-run", "create", TPU="v9-8", RUNTIME="r")
    assert "--runtime-version=r " in out


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_why_there_is_no_slice(state, cloud):
    (cloud.stub / "queue").write_text(f"GONE\nWAITING_FOR_RESOURCES\n{state}\n")
    code, _, err = cloud.run("create")
    assert code == 1
    assert last(err) == (
        f"tpu.sh: slice is {state} (no more capacity SERVICE); run delete, then create"
    )


def test_a_dry_run_prints_exactly_what_runs(cloud):
    code, out, err = cloud.run("--dry-run", "run", *JOB, *NASTY)
    assert code == 0 and not err and not cloud.calls() and not cloud.ran()
    # Pasted into a shell it is what run does; there polls may come several times.
    subprocess.run(
        ["bash"], input=out, text=True, env=cloud.env, cwd=cloud.clone, check=False
    )
    pasted = distinct(cloud.calls())
    second_cloud = Cloud(cloud.stub.parent / "again", cloud.clone)
    code, _, err = second_cloud.run("run", *JOB, *NASTY)
    assert code == 0, err
    folders = str(second_cloud.stub.parent), str(cloud.stub.parent)
    assert pasted == distinct(call.replace(*folders) for call in second_cloud.calls())
    assert cloud.ran() == second_cloud.ran() == on_both_workers(*JOB, *NASTY)


def distinct(calls):
    """Each as often as it comes after another one."""
    return [call for call, _ in itertools.groupby(calls)]


@pytest.mark.parametrize("command", ["create", "setup", "logs", "status", "delete"])
def test_a_dry_run_of_the_others_runs_nothing(command, cloud):
    code, out, err = cloud.run("--dry-run", command, PROJECT=None, ZONE=None)
    assert code == 0 and not err and not cloud.calls()
    lines = out.splitlines()
    assert lines[0] == "PROJECT=$(gcloud config get-value project)"
    assert lines[1] == "ZONE=$(gcloud config get-value compute/zone)"
    suffix = '"--project=$PROJECT" "--zone=$ZONE" --quiet'
    assert all(x.endswith(suffix) for x in lines[2:] if x.startswith("gcloud"))


OTHERS = {
    "create": ("cannot ask about", "gcloud did not create", "cannot ask about"),
    "setup": ("cannot ask", "cannot ask", "cannot reach", "setup fai", "setup fai"),
    "logs": ("no log from worker 0 of slice (see above)",),
    "status": ("cannot ask about", "cannot ask about", "cannot reach its workers"),
    "delete": (
        "cannot ask",
        "cannot ask",
        "gcloud did not delete slice",
        "slice is st",
    ),
}


@pytest.mark.parametrize("command", OTHERS)
def test_every_other_command_tells_which_call_failed(command, cloud):
    for first, expected in enumerate(OTHERS[command], 1):
        fresh = Cloud(cloud.stub.parent / f"{first}", cloud.clone)
        if command != "create":
            assert fresh.run("create")[0] == 0
        if command == "logs":
            assert fresh.run("setup")[0] == 0
        calls_before = len(fresh.calls())
        (fresh.stub / "fail_from").write_text(f"{calls_before + first}\n")
        code, _, err = fresh.run(command)
        assert code == 1 and last(err).startswith(f"tpu.sh: {expected}"), (first, err)
        (fresh.stub / "fail_from").unlink()
        calls_so_far = len(fresh.calls())
        code, _, err = fresh.run(command)
        # Without a job there is no log.
        assert code == (1 if command == "logs" else 0), err
        assert len(fresh.calls()) > calls_so_far


def test_status_and_delete_where_nothing_is(cloud):
    code, out, _ = cloud.run("status")
    assert code == 0 and out == (
        "slice: no such queued resource in us-west4-a of p; nothing costs\n"
    )
    code, _, err = cloud.run("delete")
    assert code == 0 and "nothing to delete" in err
    assert not cloud.calls("resources delete")


def test_delete_waits_for_what_is_being_suspended(cloud):
    assert cloud.run("create")[0] == 0
    at = len(cloud.calls()) + 3
    (cloud.stub / "fail_at").write_text(f"{at}\n")
    code, _, err = cloud.run("delete")
    assert code == 0 and last(err).startswith("tpu.sh: slice is deleted")
    assert len(cloud.calls("resources delete --force")) == 0
    assert not (cloud.stub / "state").exists()


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or (
        shutil.which("shellcheck")
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed; the extra [test] brings it")
    subprocess.run([shellcheck, *SCRIPTS], check=True, cwd=ROOT)
