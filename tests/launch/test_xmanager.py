"""What XManager is handed for units in a cloud, by its own mock of an experiment: nothing is packaged or sent."""

import importlib.util

import pytest

from jtok.errors import UserError
from jtok.launch.commands import Cloud
from jtok.launch.tpus import find_tpu
from jtok.launch.units import Unit

if importlib.util.find_spec("xmanager") is None:
    pytest.skip("XManager is not installed (pip install jtok[launch])", allow_module_level=True)

from xmanager import xm, xm_local, xm_mock

from jtok.launch import xmanager_

UNITS = [
    Unit(name, f"/gcs/b/runs/exp/{name}", ("jtok", "train", "--config=c.py:x", f"--config.keeps=({i}, 0.5)"))
    for i, name in enumerate(("one", "two", "three"))
]
CLOUD = Cloud("p", "us-west4-a", "gs://b/runs", find_tpu("v3-8", "vertex"), image="gcr.io/p/jtok:1")


@pytest.fixture
def experiments(monkeypatch):
    """Mocks of the experiments that are made, in place of those that send jobs; `packaged` is what they packaged."""
    made = []

    class Mock(xm_mock.MockExperiment):
        def __init__(self):
            super().__init__()
            self.packaged = []

        def package(self, packageables):
            self.packaged += packageables
            return [xm_mock.MockExecutable() for _ in packageables]

    def create(experiment_title):
        made.append(Mock())
        made[-1].title = experiment_title
        return made[-1]

    monkeypatch.setattr(xm_local, "create_experiment", create)
    return made


def test_vertex_jobs_ask_for_the_tpu_and_run_the_unit(experiments):
    assert xmanager_.run_vertex("exp", UNITS, CLOUD, max_parallel=2) == set()
    (made,) = experiments
    assert made.title == "exp" and made.work_unit_count == 3
    assert [one.executable_spec.image_path for one in made.packaged] == ["gcr.io/p/jtok:1"] * 3
    for unit, job in zip(UNITS, made.launched_jobs, strict=True):
        assert isinstance(job.executor, xm_local.Vertex)
        assert job.executor.requirements.task_requirements == {xm.ResourceType.TPU_V3: 8}
        assert job.args.to_list(str) == unit.arguments()


def test_vertex_is_told_the_project_region_and_bucket(monkeypatch):
    import google.auth
    from google.auth import credentials, exceptions
    from xmanager.cloud import vertex

    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_BUCKET_NAME"):
        monkeypatch.setenv(name, "another")
    monkeypatch.setattr(google.auth, "default", lambda **_: (credentials.AnonymousCredentials(), "another"))
    monkeypatch.setattr(vertex, "_default_client", None)
    xmanager_.prepare_vertex(CLOUD)
    client = vertex.get_default_client()
    assert client.parent == "projects/p/locations/us-west4"
    assert vertex.auth.get_bucket() == "b"

    def missing(**_):
        raise exceptions.DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", missing)
    with pytest.raises(UserError, match="application-default login"):
        xmanager_.prepare_vertex(CLOUD)


def test_scripts_run_by_a_shell_on_this_machine(experiments):
    assert xmanager_.run_scripts("exp", {"one": "echo 'a b'", "two": "exit 3"}, max_parallel=1) == set()
    (made,) = experiments
    assert all(isinstance(job.executor, xm_local.Local) for job in made.launched_jobs)
    assert [(one.executable_spec.path, one.args.to_list(str)) for one in made.packaged] == [
        ("/bin/sh", ["-c", "echo 'a b'"]),
        ("/bin/sh", ["-c", "exit 3"]),
    ]


def test_units_that_fail_are_named_and_their_siblings_run(experiments, monkeypatch):
    async def wait(self):
        if self.work_unit_id == 2:
            raise xm.ExperimentUnitFailedError("it broke")

    monkeypatch.setattr(xm_mock.MockExperimentUnit, "_wait_until_complete", wait)
    assert xmanager_.run_vertex("exp", UNITS, CLOUD, max_parallel=1) == {"two"}
    assert len(experiments[0].launched_jobs) == 3
