"""Platforms other than this machine: the exact commands, and what is refused before anything starts."""

import importlib.util
import json
import os
import shlex
import stat
import subprocess

import pytest

from jtok.errors import UserError
from jtok.launch.commands import Cloud, gke_job, gke_script, tpu_vm_script, tpu_vm_steps, vertex_command
from jtok.launch.tpus import find_tpu
from jtok.launch.units import Unit, make_units, override_flags

WORDS = ("jtok", "train", "--config=configs/a.py:x", "--config.keeps=(0.5, 0.25)", "--workdir=/gcs/b/runs/exp/one")
UNIT = Unit("one_0.5", "/gcs/b/runs/exp/one", WORDS)
INNER = f"-m jtok.launch.unit /gcs/b/runs/exp/one -- {shlex.join(WORDS)}"
needs_xmanager = pytest.mark.skipif(
    importlib.util.find_spec("xmanager") is None, reason="XManager is not installed (pip install jtok[launch])"
)


def cloud(tpu="v5e-8", platform="tpu_vm", **fields):
    return Cloud("p", "us-west4-a", "gs://b/runs", find_tpu(tpu, platform), **fields)


def test_a_tpu_vm_is_created_used_and_deleted_by_these_commands():
    steps = tpu_vm_steps("exp", UNIT, cloud(spot=True))
    assert shlex.join(steps["create"]) == (
        "gcloud compute tpus tpu-vm create jtok-exp-one-0-5 --project=p --zone=us-west4-a "
        "--accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite --spot"
    )
    assert steps["run"] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "jtok-exp-one-0-5", "--project=p", "--zone=us-west4-a"),
        "--worker=all",
        f"--command=cd $HOME/jtok && until $HOME/env/bin/python {INNER}; do [ $? -eq 75 ] || exit 1; done",
    ]
    assert shlex.join(steps["delete"]).endswith("tpu-vm delete jtok-exp-one-0-5 --project=p --zone=us-west4-a --quiet")
    install = steps["install"][-1]
    for part in ("gcsfuse --implicit-dirs b /gcs/b", "tar -xzf /gcs/b/runs/code.tar.gz", "-e $HOME/jtok[tpu]"):
        assert part in install


@pytest.mark.parametrize(
    ("name", "accelerator", "version", "topology", "chips", "hosts"),
    [
        ("v4-8", "v4-8", "tpu-ubuntu2204-base", "2x2x1", 4, 1),
        ("v5e-8", "v5litepod-8", "v2-alpha-tpuv5-lite", "2x4", 8, 1),
        ("v5e-256", "v5litepod-256", "v2-alpha-tpuv5-lite", "16x16", 256, 64),
        ("v5p-32", "v5p-32", "v2-alpha-tpuv5", "2x2x4", 16, 4),
        ("v6e-16", "v6e-16", "v2-alpha-tpuv6e", "4x4", 16, 4),
    ],
)
def test_tpus_by_the_names_of_gcloud_and_gke(name, accelerator, version, topology, chips, hosts):
    tpu = find_tpu(name, "gke")
    assert (tpu.accelerator, tpu.version, tpu.topology) == (accelerator, version, topology)
    assert (tpu.chips, tpu.hosts) == (chips, hosts)


@pytest.mark.parametrize(
    ("name", "platform", "sentence"),
    [
        ("v5e-8", "vertex", "Vertex, as XManager knows it, has v2 and v3 only, not v5e-8"),
        ("v9-8", "tpu_vm", "there is no TPU 'v9-8'"),
        ("v5e", "tpu_vm", "there is no TPU 'v5e'"),
        ("v5e-7", "tpu_vm", "there is no v5e of size 7: choose 1, 4, 8"),
        ("v3-8", "gke", "GKE has no v3"),
    ],
)
def test_tpus_that_a_platform_lacks(name, platform, sentence):
    with pytest.raises(UserError, match=sentence):
        find_tpu(name, platform)


def test_a_job_of_gke_asks_for_its_topology_and_goes_on_after_75():
    one = gke_job("exp", UNIT, cloud("v5e-8", "gke", image="i"))["items"]
    (job,) = one
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python", *UNIT.arguments()]
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onExitCodes": {"containerName": "unit", "operator": "In", "values": [75]}}

    service, job = gke_job("exp", UNIT, cloud("v6e-16", "gke", image="i", spot=True))["items"]
    assert service["spec"] == {"clusterIP": "None", "selector": {"job-name": "jtok-exp-one-0-5"}}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_vertex_gets_arguments_with_commas_whole():
    words = vertex_command("exp", UNIT, cloud("v3-8", "vertex", image="i"))
    assert words[:4] == ["gcloud", "ai", "custom-jobs", "create"] and "--region=us-west4" in words
    pool = "machine-type=cloud-tpu,accelerator-type=TPU_V3,accelerator-count=8,replica-count=1,container-image-uri=i"
    assert f"--worker-pool-spec={pool}" in words
    assert words[-1].removeprefix("--args=^;^").split(";") == UNIT.arguments()


class Stubs:
    """Stand-ins for the tools of a cloud, which write down what they are asked for."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder / "calls.txt"
        folder.mkdir()

    def add(self, tool, script=""):
        path = self.folder / tool
        path.write_text(f'#!/bin/sh\necho "{tool} $*" >> {self.calls}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def run(self, script):
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin"}
        return subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60)

    def verbs(self):
        return [next(w for w in ("create", "ssh", "delete", "ls") if f" {w} " in c) for c in self.lines()]

    def lines(self):
        return self.calls.read_text().splitlines()


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path / "bin")


def test_a_unit_that_is_done_leaves_no_tpu_vm(stubs):
    stubs.add("gcloud")
    assert stubs.run(tpu_vm_script("exp", UNIT, cloud())).returncode == 0
    assert stubs.verbs() == ["create", "ssh", "ssh", "ls", "delete"]
    assert "gs://b/runs/exp/one/done.json" in stubs.lines()[3]


def test_a_unit_that_failed_is_not_tried_again_and_its_tpu_vm_is_deleted(stubs):
    stubs.add("gcloud", 'case "$*" in *done.json*) exit 1;; esac')
    assert stubs.run(tpu_vm_script("exp", UNIT, cloud())).returncode == 1
    assert stubs.verbs() == ["create", "ssh", "ssh", "ls", "ls", "delete"]


def test_a_tpu_vm_that_went_away_is_made_anew(stubs):
    # Neither file is there after the first attempt, and done.json after the second.
    count = f'$(grep -c " create " {stubs.calls})'
    stubs.add(
        "gcloud", f'case "$*" in *failed.json*) exit 1;; *done.json*) [ {count} -ge 2 ];; *" ssh "*) exit 255;; esac'
    )
    assert stubs.run(tpu_vm_script("exp", UNIT, cloud())).returncode == 0
    assert stubs.verbs() == ["create", "ssh", "ls", "ls", "delete", "create", "ssh", "ls", "delete"]


@pytest.mark.parametrize(("state", "code"), [("Complete", 0), ("SuccessCriteriaMet Complete", 0), ("Failed", 1)])
def test_a_job_of_gke_is_waited_for_and_removed(stubs, state, code):
    stubs.add("kubectl", f'case "$*" in apply*) cat > {stubs.folder}/manifest;; get*) echo {state};; esac')
    script = gke_script("exp", UNIT, cloud("v5e-8", "gke", image="i"))
    assert stubs.run(script).returncode == code
    assert json.loads((stubs.folder / "manifest").read_text()) == gke_job("exp", UNIT, cloud("v5e-8", "gke", image="i"))
    assert stubs.lines()[-1] == "kubectl delete job jtok-exp-one-0-5"


WHERE = ("--project=p", "--zone=us-west4-a", "--bucket=gs://b")


@pytest.mark.parametrize(
    ("flags", "tools", "sentence"),
    [
        (["--platform=mars"], "", "there is no platform 'mars'; choose one of local, xm_local"),
        (["--platform=locall"], "", "there is no platform 'locall'; did you mean local"),
        (["--platform=tpu_vm"], "", "--platform=tpu_vm needs --project, --zone, --bucket"),
        (["--platform=vertex", *WHERE, "--image=i"], "gcloud", "Vertex, as XManager knows it, has v2 and v3 only"),
        (["--platform=tpu_vm", *WHERE, "--tpu=v5e-9"], "gcloud", "there is no v5e of size 9"),
        (["--platform=tpu_vm", *WHERE], "", "needs gcloud, which is not installed"),
        (["--platform=tpu_vm", *WHERE], "gcloud", "gcloud has no active account"),
        (["--platform=gke", *WHERE, "--image=i"], "gcloud", "needs kubectl, which is not installed"),
        (["--platform=gke", *WHERE], "gcloud", "--platform=gke needs --image"),
        (["--platform=vertex", *WHERE, "--tpu=v3-8"], "gcloud", "--platform=vertex needs --image"),
        (["--platform=dry_run", "--of=xm_local"], "", "--of=xm_local has no commands to print"),
        (["--platform=tpu_vm", *WHERE[:2], "--bucket=b"], "gcloud", "--bucket=b is no bucket"),
        (["--max_parallel=0"], "", "it must be at least 1"),
        (["--platfrom=local"], "", "unknown flag --platfrom=local"),
        (["--config=missing.py"], "", "there is no config file missing.py"),
        (["--small"], "", "has no small setting"),
        (["--workdir=/proc/nowhere"], "", "cannot write to the directory /proc/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(toy, stubs, flags, tools, sentence):
    for tool in tools.split():
        stubs.add(tool)
    sweep = toy(a="quick")
    code, out, error = sweep.run(*flags, PATH=str(stubs.folder))
    assert code == 2 and sentence in error, error
    assert len(error.splitlines()) == 1 and not out
    assert not sweep.attempts("a")


@pytest.mark.parametrize(
    ("platform", "kubectl", "sentence"),
    [
        ("gke", "exit 1", "kubectl points to no cluster"),
        ("gke", "echo cluster", "needs XManager"),
        ("tpu_vm", "", "needs XManager"),
    ],
)
def test_what_is_missing_behind_the_login(toy, stubs, platform, kubectl, sentence):
    if sentence == "needs XManager" and importlib.util.find_spec("xmanager"):
        pytest.skip("XManager is installed")
    stubs.add("gcloud", "echo somebody@example.com")
    stubs.add("kubectl", kubectl)
    sweep = toy(a="quick")
    code, out, error = sweep.run(f"--platform={platform}", *WHERE, "--image=i", PATH=str(stubs.folder))
    assert code == 2 and sentence in error and len(error.splitlines()) == 1 and not out, error
    assert not sweep.attempts("a") and not [line for line in stubs.lines() if "create" in line or "apply" in line]


def test_a_job_that_gke_does_not_take_is_not_waited_for(stubs):
    stubs.add("kubectl", "exit 1")
    assert stubs.run(gke_script("exp", UNIT, cloud("v5e-8", "gke", image="i"))).returncode == 1
    assert [line.split()[1] for line in stubs.lines()] == ["apply"]


def test_a_dry_run_prints_commands_and_starts_nothing(toy, stubs):
    sweep = toy(a="quick", b="quick")
    code, out, error = sweep.run("--platform=dry_run", "--tpu=v3-8", "--of=vertex", PATH=str(stubs.folder))
    assert code == 0, error
    assert out.count("gcloud ai custom-jobs create --project=PROJECT") == 2
    code, out, error = sweep.run("--platform=dry_run", *WHERE, PATH=str(stubs.folder))
    assert code == 0, error
    assert out.count("gcloud compute tpus tpu-vm create") == out.count("kubectl apply") == 2
    assert out.count("python -m jtok.launch.unit") >= 4 and "# vertex\n# has no v5e-8" in out
    assert not sweep.attempts("a") and not stubs.calls.exists()


@needs_xmanager
def test_xmanager_runs_four_units_here(toy, tmp_path):
    sweep = toy(a="quick", b="fail", c="preempted", d="quick")
    code, _, error = sweep.run("--platform=xm_local", "--max_parallel=2", HOME=str(tmp_path))
    assert code == 1 and "b: failed; the end of" in error and "the toy broke" in error, error
    assert len(sweep.attempts("c")) == 3
    code, out, error = sweep.run("--platform=xm_local", "--max_parallel=2", HOME=str(tmp_path))
    assert code == 0, error
    assert {unit: len(sweep.attempts(unit)) for unit in "abcd"} == {"a": 1, "b": 2, "c": 3, "d": 1}
    rows = json.loads((sweep.results / "report.json").read_text())["tables"]["values"]
    assert [row["unit"] for row in rows] == list("abcd")


def test_without_xmanager_one_sentence(toy, stubs):
    if importlib.util.find_spec("xmanager"):
        pytest.skip("XManager is installed")
    code, _, error = toy(a="quick").run("--platform=xm_local", PATH=str(stubs.folder))
    assert code == 2 and "needs XManager" in error and "pip install jtok[launch]" in error


def test_overrides_become_flags():
    flags = override_flags({"a.b": 1e-3, "c": {"d": ("x", 2)}, "e": True, "--keep": 0.5})
    assert flags == ["--config.a.b=0.001", "--config.c.d=('x', 2)", "--config.e=true", "--keep=0.5"]
    with pytest.raises(UserError, match="--config.a is set to None"):
        override_flags({"a": None})


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [([("a", {}), ("a", {})], "two units are called 'a'"), ([("a/b", {})], "called 'a/b'"), ([], "has no units")],
)
def test_sweeps_that_cannot_be(sweep, sentence):
    with pytest.raises(UserError, match=sentence):
        make_units(sweep, ("jtok", "train"), "c.py", os.sep)
