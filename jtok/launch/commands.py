"""The exact commands that run a unit in Google Cloud, as lists of words and as scripts.

The bucket is mounted as /gcs/BUCKET wherever a unit runs, so its directory there is an ordinary one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from typing import Any

from jtok.launch.tpus import Tpu
from jtok.launch.unit import DONE, FAILED, PREEMPTED
from jtok.launch.units import Unit

Words = list[str]
ATTEMPTS = 5  # at a unit whose machine goes away before it has ended


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Where units run: bucket is gs://NAME or gs://NAME/FOLDER."""

    project: str
    zone: str
    bucket: str
    tpu: Tpu
    image: str = ""
    spot: bool = False

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def bucket_name(self) -> str:
        return self.bucket.removeprefix("gs://").partition("/")[0]

    @property
    def mounted(self) -> str:
        """The bucket's folder as units see it."""
        return "/gcs/" + self.bucket.removeprefix("gs://").rstrip("/")

    @property
    def code(self) -> str:
        return f"{self.bucket.rstrip('/')}/code.tar.gz"


def remote(path: str) -> str:
    """/gcs/BUCKET/... as gs://BUCKET/..."""
    return "gs://" + path.removeprefix("/gcs/")


def machine_name(experiment: str, unit: Unit) -> str:
    """A name that all of Google Cloud accepts: letters, digits and hyphens, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", f"jtok-{experiment}-{unit.name}".lower()).strip("-")[:60].strip("-")


def upload_code(cloud: Cloud, archive: str) -> list[Words]:
    """Packs the commit that is checked out, and puts it into the bucket."""
    pack = ["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"]
    return [pack, ["gcloud", "storage", "cp", archive, cloud.code, f"--project={cloud.project}"]]


def fetch_results(cloud: Cloud, directory: str, local: str) -> list[Words]:
    """Copies the directory of all units from the bucket."""
    return [["gcloud", "storage", "rsync", "--recursive", remote(directory), local, f"--project={cloud.project}"]]


def tpu_vm_steps(experiment: str, unit: Unit, cloud: Cloud) -> dict[str, Words]:
    """{"create", "install", "run", "delete"}: the commands that run a unit on a separate TPU VM, on all its hosts."""
    name, tpu_vm = machine_name(experiment, unit), ["gcloud", "compute", "tpus", "tpu-vm"]
    where = [f"--project={cloud.project}", f"--zone={cloud.zone}"]
    kind = [f"--accelerator-type={cloud.tpu.accelerator}", f"--version={cloud.tpu.version}"]
    spot = ["--spot"] if cloud.spot else []

    def on_all(command: str) -> Words:
        return [*tpu_vm, "ssh", name, *where, "--worker=all", f"--command={command}"]

    run = f"$HOME/env/bin/python {shlex.join(unit.arguments())}"
    return {
        "create": [*tpu_vm, "create", name, *where, *kind, *spot],
        "install": on_all(_install(cloud)),
        "run": on_all(f"cd $HOME/jtok && until {run}; do [ $? -eq {PREEMPTED} ] || exit 1; done"),
        "delete": [*tpu_vm, "delete", name, *where, "--quiet"],
    }


def _install(cloud: Cloud) -> str:
    """What a fresh TPU VM needs, one step after another: the bucket, the code, and Python with jtok."""
    bucket, point = cloud.bucket_name, f"/gcs/{cloud.bucket_name}"
    code = "/gcs/" + cloud.code.removeprefix("gs://")
    steps = [
        "(command -v gcsfuse > /dev/null || sudo apt-get install -q -y gcsfuse)",
        f"sudo mkdir -p {point}",
        f"sudo chown $USER {point}",
        f"(mountpoint -q {point} || gcsfuse --implicit-dirs {bucket} {point})",
        "mkdir -p $HOME/jtok",
        f"tar -xzf {code} -C $HOME/jtok",
        "python3 -m pip install -q --user uv",
        "$HOME/.local/bin/uv venv -q --allow-existing --python=3.12 $HOME/env",
        "$HOME/.local/bin/uv pip install -q --python=$HOME/env/bin/python -e $HOME/jtok[tpu]",
    ]
    return " && ".join(steps)


def tpu_vm_script(experiment: str, unit: Unit, cloud: Cloud) -> str:
    """The steps as one script: the VM is deleted whatever happens, and recreated if it went away before the unit had
    said how it ended."""
    steps = {name: shlex.join(words) for name, words in tpu_vm_steps(experiment, unit, cloud).items()}
    done, failed = (f"gcloud storage ls {shlex.quote(remote(f'{unit.workdir}/{file}'))}" for file in (DONE, FAILED))
    return f"""trap 'exit 1' INT TERM
trap {shlex.quote(steps["delete"])} EXIT
for attempt in $(seq {ATTEMPTS}); do
  {steps["create"]} &&
  {steps["install"]} &&
  {steps["run"]}
  {done} && exit 0
  {failed} && exit 1
  {steps["delete"]}
done
exit 1
"""


def gke_job(experiment: str, unit: Unit, cloud: Cloud) -> dict[str, Any]:
    """The manifest of a unit's Job and, for several hosts, of the service by which they find each other.

    Pods that exit with 75, or whose node is taken away, are started again and not counted as failures.
    """
    name, tpu = machine_name(experiment, unit), cloud.tpu
    node = {"cloud.google.com/gke-tpu-accelerator": tpu.gke, "cloud.google.com/gke-tpu-topology": tpu.topology}
    chips = {"google.com/tpu": tpu.chips // tpu.hosts}
    container = {
        "name": "unit",
        "image": cloud.image,
        "command": ["python", *unit.arguments()],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": [{"name": "bucket", "mountPath": f"/gcs/{cloud.bucket_name}"}],
    }
    attributes = {"bucketName": cloud.bucket_name, "mountOptions": "implicit-dirs"}
    volume = {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    spot = {"cloud.google.com/gke-spot": "true"} if cloud.spot else {}
    pod = {"restartPolicy": "Never", "nodeSelector": node | spot, "containers": [container], "volumes": [volume]}
    exits = {"containerName": "unit", "operator": "In", "values": [PREEMPTED]}
    ignore = [{"action": "Ignore", "onExitCodes": exits}]
    ignore.append({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})
    spec: dict[str, Any] = {"backoffLimit": 0, "podFailurePolicy": {"rules": ignore}}
    items: list[dict[str, Any]] = []
    if tpu.hosts > 1:
        spec |= {"completionMode": "Indexed", "completions": tpu.hosts, "parallelism": tpu.hosts}
        pod["subdomain"] = name
        service = {"clusterIP": "None", "selector": {"job-name": name}}
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service})
    spec["template"] = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod}
    items.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
    return {"apiVersion": "v1", "kind": "List", "items": items}


def gke_script(experiment: str, unit: Unit, cloud: Cloud) -> str:
    """Applies a unit's Job to the cluster that kubectl points to, waits until it has ended, and removes it."""
    name = machine_name(experiment, unit)
    ended = 'jsonpath={.status.conditions[?(@.status=="True")].type}'
    return f"""kubectl apply --filename=- <<'MANIFEST' || exit 1
{json.dumps(gke_job(experiment, unit, cloud), indent=1)}
MANIFEST
until state=$(kubectl get job {name} --output='{ended}') && echo "$state" | grep -qE 'Complete|Failed'
do sleep 30; done
kubectl logs job/{name} --tail=15
kubectl delete job {name}
case "$state" in *Complete*) exit 0;; *) exit 1;; esac
"""


def vertex_command(experiment: str, unit: Unit, cloud: Cloud) -> Words:
    """The gcloud command that submits what XManager submits to Vertex."""
    pool = f"machine-type=cloud-tpu,accelerator-type={cloud.tpu.vertex},accelerator-count={cloud.tpu.size}"
    pool += f",replica-count=1,container-image-uri={cloud.image}"
    where = [f"--project={cloud.project}", f"--region={cloud.region}"]
    arguments = "^;^" + ";".join(unit.arguments())  # ; and not , between arguments, which hold tuples
    name = machine_name(experiment, unit)
    head = ["gcloud", "ai", "custom-jobs", "create", *where, f"--display-name={name}"]
    return [*head, f"--worker-pool-spec={pool}", "--command=python", f"--args={arguments}"]
