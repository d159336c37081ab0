"""Does a study go on whatever befalls its trials, and train nothing that is too slow?"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.search import bayes, study_loop
from autodistill_jax.search.study_storage import open_study, redacted_url

SPACE = Space(
    layers=(1, 2),
    hidden=(8, 16),
    bottleneck=(4, 8),
    heads=(1, 2),
    ffn=(4,),
    stacks=(1,),
)
SPACES = {"main": SPACE}


@pytest.fixture
def study(tmp_path):
    new_study = open_study(tmp_path, SPACES, "test", "", "latency_ms")
    new_study.sampler = study_loop.make_sampler("bayes", SPACE, 0, lambda arch: True)
    return new_study


def latency(arch):
    return float(arch.layers * arch.hidden)


def proxy(arch):
    return {"proxy": 1 / (arch.layers * arch.bottleneck), "params": 7}


def states(study):
    return [trial.state.name for trial in study_loop.counted_trials(study)]


def test_what_is_too_slow_is_never_evaluated(study):
    evaluated = []

    def evaluate(arch):
        evaluated.append(arch)
        return proxy(arch)

    study_loop.run_study(
        study, SPACE, 12, latency=latency, evaluate=evaluate, bound=16.0
    )
    assert evaluated and all(latency(arch) <= 16 for arch in evaluated)
    assert len(evaluated) == len(set(evaluated))  # No Arch twice.
    # Those over the bound are none of the twelve.
    assert len(evaluated) == len(study_loop.counted_trials(study)) == 12
    for trial in study.trials:
        slow = trial.user_attrs["latency_ms"] > 16
        assert trial.state == (TrialState.PRUNED if slow else TrialState.COMPLETE)
        assert trial.constraints["latency_ms"] == trial.user_attrs["latency_ms"] - 16
    assert study.metric_names == ["proxy", "latency_ms"]
    # The same call goes on from what is there: it has all its trials.
    study_loop.run_study(study, SPACE, 12, latency=latency, evaluate=None, bound=16.0)
    # And ends where the space does.
    study_loop.run_study(study, SPACE, 99, latency=latency, evaluate=proxy, bound=16.0)
    assert (
        len({tuple(trial.params.items()) for trial in study.trials if trial.params})
        == 16
    )


def test_a_bound_that_excludes_nearly_all_ends_the_study(study, monkeypatch):
    monkeypatch.setattr(study_loop, "_MAX_REFUSED", 2)
    study_loop.run_study(
        study, SPACE, 3, latency=latency, evaluate=proxy, bound=1.0, stage="s"
    )
    assert not study_loop.counted_trials(study) and len(study.trials) == 6


def test_the_model_sees_through_a_lucky_measurement(study):
    archs = list(SPACE)
    truth = np.asarray([1 / (a.layers * a.hidden * a.bottleneck) ** 0.3 for a in archs])
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(archs))
    values = truth + noise
    lucky = int(truth.argmax())
    values[lucky] = values.min() - 0.01
    params = [SPACE.encode(arch) for arch in archs]
    medians = study.sampler.posterior_medians(params, values)
    assert values.argmin() == lucky and medians.argmin() != lucky
    assert truth[medians.argmin()] < np.quantile(truth, 0.2)


def test_known_bounds_filter_before_anything(study):
    def allowed(arch):
        return arch.hidden == 8

    study.sampler = study_loop.make_sampler("bayes", SPACE, 0, allowed)
    study_loop.run_study(
        study, SPACE, 20, latency=latency, evaluate=proxy, allowed=allowed
    )
    tried = [SPACE.decode(trial.params) for trial in study.trials if trial.params]
    assert len(tried) == 8 and all(arch.hidden == 8 for arch in tried)


def test_a_failure_is_kept_and_the_study_goes_on(study):
    def evaluate(arch):
        if arch.bottleneck == 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")
        if arch.heads == 2:
            raise study_loop.TrialPruned("too far off")
        return proxy(arch)

    study_loop.run_study(study, SPACE, 16, latency=latency, evaluate=evaluate)
    assert sorted(states(study)) == ["COMPLETE"] * 4 + ["FAIL"] * 8 + ["PRUNED"] * 4
    failed = next(trial for trial in study.trials if trial.state == TrialState.FAIL)
    assert failed.user_attrs["error"] == "RESOURCE_EXHAUSTED: out of memory"


@pytest.mark.parametrize("name", ["random", "nsga2", "tpe"])
def test_other_samplers_repeat_themselves_for_nothing(study, name):
    study.sampler = study_loop.make_sampler(name, SPACE, 0, None)
    evaluated = []

    def evaluate(arch):
        evaluated.append(arch)
        return proxy(arch)

    study_loop.run_study(study, SPACE, 30, latency=latency, evaluate=evaluate)
    assert (
        len(study_loop.finished_trials(study)) == 30
        and len(evaluated) == len(set(evaluated)) <= 16
    )
    # A repeat tells all that its first trial told.
    assert all(trial.user_attrs["params"] == 7 for trial in study.trials)
    # Going on in a new process is not to say the same again.
    sampler = study_loop.make_sampler(name, SPACE, 0, None, num_trials=30)
    study.sampler, evaluated_before = sampler, len(evaluated)
    study_loop.run_study(study, SPACE, 33, latency=latency, evaluate=evaluate)
    last = [tuple(trial.params.items()) for trial in study.trials]
    assert last[30:] != last[:3] and len(evaluated) >= evaluated_before


def test_a_stop_hands_its_trial_on(study):
    def stop(arch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_loop.run_study(study, SPACE, 3, latency=latency, evaluate=stop)
    (lost,) = study.get_trials(states=(TrialState.FAIL,))
    assert lost.user_attrs[bayes.ABANDONED] and not study_loop.counted_trials(study)
    study_loop.run_study(study, SPACE, 3, latency=latency, evaluate=proxy)
    assert states(study) == ["COMPLETE"] * 3
    assert study.trials[1].params == lost.params


def test_another_budget_starts_from_what_is_known(study, tmp_path):
    """Trials under other bounds are data, and do not count among the study's own."""
    assert study_loop.warm_start(study, "a family", SPACE, lambda arch: True, None) == 0
    study_loop.run_study(study, SPACE, 8, latency=latency, evaluate=proxy)
    tight = open_study(tmp_path, SPACES, "tight", "", "latency_ms")
    tight.sampler = study_loop.make_sampler("bayes", SPACE, 0, lambda arch: True)
    fit = [trial for trial in study.trials if trial.values[1] <= 16]
    assert study_loop.warm_start(
        tight, "a family", SPACE, lambda arch: True, 16.0
    ) == len(fit)
    unrelated = open_study(tmp_path, SPACES, "other", "", "latency_ms")
    assert (
        study_loop.warm_start(unrelated, "no family", SPACE, lambda arch: True, None)
        == 0
    )
    assert not study_loop.counted_trials(tight) and len(
        study_loop.finished_trials(tight)
    ) == len(fit)
    study_loop.run_study(tight, SPACE, 3, latency=latency, evaluate=proxy, bound=16.0)
    assert len(study_loop.counted_trials(tight)) == 3
    tried = [tuple(trial.params.items()) for trial in tight.trials]
    slow = [trial for trial in tight.trials if trial.state == TrialState.PRUNED]
    assert len(set(tried)) == len(tried) == len(fit) + 3 + len(slow)
    # A sampler that repeats what is inherited comes to an end all the same.
    study.set_user_attr(study_loop._STUDY_FAMILY, "a family")
    repeating = open_study(tmp_path, SPACES, "again", "", "latency_ms")
    repeating.sampler = study_loop.make_sampler("random", SPACE, 0, None)
    study_loop.warm_start(repeating, "a family", SPACE, lambda arch: True, None)
    study_loop.run_study(repeating, SPACE, 20, latency=latency, evaluate=proxy)
    assert len(study_loop.counted_trials(repeating)) == 20


def test_the_last_process_takes_over_where_nothing_else_is_left(study, monkeypatch):
    monkeypatch.setattr(study_loop, "HEARTBEAT_TIMEOUT", 0.5)
    monkeypatch.setattr(study_loop, "HEARTBEAT_SECONDS", 0.1)
    dead = study.ask(study_loop.search_distributions(SPACE))
    study_loop.run_study(study, SPACE, 99, latency=latency, evaluate=proxy)
    done = [trial.params for trial in study_loop.finished_trials(study)]
    assert len(done) == 16 and dead.params in done


def test_a_trial_that_another_took_over_is_let_go(study):
    """As if its process had slept: it was rescued, and wakes up."""

    def evaluate(arch):
        (running,) = study.get_trials(states=(TrialState.RUNNING,))
        if running.number == 0:
            assert study_loop._requeue(study, 0, params=running.params)
        return proxy(arch)

    study_loop.run_study(study, SPACE, 3, latency=latency, evaluate=evaluate)
    assert states(study) == ["COMPLETE"] * 3 and len(study.trials) == 4


# Of this file, and of what it imports.
FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_study_loop import SPACE, SPACES, latency, proxy
from autodistill_jax.search import study_loop
from autodistill_jax.search.study_storage import open_study
study_loop.HEARTBEAT_SECONDS, study_loop.HEARTBEAT_TIMEOUT = 0.1, 1.5
study = open_study(Path(sys.argv[1]), SPACES, "shared", "journal", "latency_ms")
study.sampler = study_loop.make_sampler("bayes", SPACE, 0, lambda arch: True)
def evaluate(arch):
    print("began", flush=True)
    time.sleep(60 if sys.argv[2] == "hangs" else 0.05)
    return proxy(arch)
study_loop.run_study(study, SPACE, 6, latency=latency, evaluate=evaluate)
"""


def test_a_killed_worker_loses_its_trial_to_another(tmp_path):
    def worker(kind):
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), kind, *FOLDERS],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    dead = worker("hangs")
    assert dead.stdout.readline() == "began\n"
    rescuer = worker("works")  # While the first one still holds its trial.
    assert rescuer.stdout.readline() == "began\n"
    time.sleep(0.5)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert rescuer.wait(60) == 0
    study = open_study(tmp_path, SPACES, "shared", "journal", "latency_ms")
    assert states(study) == ["COMPLETE"] * 6
    (lost,) = (trial for trial in study.trials if trial.user_attrs.get(bayes.ABANDONED))
    tried = [tuple(trial.params.items()) for trial in study_loop.counted_trials(study)]
    assert tuple(lost.params.items()) in tried and len(set(tried)) == 6
    dead.stdout.close()
    rescuer.stdout.close()


def test_a_study_of_another_space_is_refused(study, tmp_path):
    spaces = {"main": Space((1, 2), (8, 24), bottleneck=(4, 8), heads=(1, 2), ffn=(4,),
                           stacks=(1,))}  # fmt: skip
    with pytest.raises(
        UserError, match=r"hidden is \[8, 16\] there and \[8, 24\] here"
    ):
        open_study(tmp_path, spaces, "test", "", "latency_ms")


def test_a_storage_that_does_not_answer_keeps_its_password(tmp_path):
    start = time.monotonic()
    url = "postgresql://me:secret@localhost:9/db"
    with pytest.raises(
        UserError, match=r"search.storage=postgresql://me:\*\*\*@"
    ) as error:
        open_study(tmp_path, SPACES, "test", url, "latency_ms")
    assert "secret" not in str(error.value) and time.monotonic() - start < 10
    for url in (
        "postgresql://me:p@secret@host/db",
        "postgresql://host/db?password=secret",
        "postgres:me:secret@host/db",
        "me:secret@host/db",
    ):
        assert "secret" not in redacted_url(url)


@pytest.fixture
def postgres(tmp_path):
    """The URL of a real server, an ordinary process; PostgreSQL refuses to run as root."""
    initdbs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not initdbs:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        data, port = f"{folder}/data", str(20000 + os.getpid() % 20000)
        options = {
            "user": user,
            "cwd": folder,
            "stdout": subprocess.DEVNULL,
        }
        subprocess.run(
            [initdbs[-1], "-D", data, "-A", "trust", "-U", "me"], check=True, **options
        )
        ctl = [initdbs[-1].with_name("pg_ctl"), "-D", data, "-w", "-l", f"{folder}/log"]
        listen = f"-p {port} -k {folder} -c listen_addresses=localhost"
        subprocess.run([*ctl, "-o", listen, "start"], check=True, **options)
        yield f"postgresql://me:secret@localhost:{port}/postgres"
        subprocess.run([*ctl, "-m", "immediate", "stop"], check=True, **options)


def test_postgresql_holds_a_study(postgres, tmp_path):
    for trials in (3, 6):  # The second time it goes on from what is there.
        study = open_study(tmp_path, SPACES, "test", postgres, "latency_ms")
        study.sampler = study_loop.make_sampler("bayes", SPACE, 0, lambda arch: True)
        study_loop.run_study(study, SPACE, trials, latency=latency, evaluate=proxy)
        assert states(study) == ["COMPLETE"] * trials
    study._storage._backend.engine.dispose()


def test_optuna_opens_the_study(study, tmp_path):
    study_loop.run_study(study, SPACE, 4, latency=latency, evaluate=proxy)
    loaded = optuna.load_study(
        study_name="test", storage=f"sqlite:///{tmp_path / 'study.db'}"
    )
    assert len(loaded.best_trials) >= 1
