"""The package as a user gets it: light to import, complete in a wheel, and with no top-level name `kernels`."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import jtok

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("jtok", "kernels", "configs", "experiments", "tests")


def run(*command, cwd) -> str:
    """Standard output of a command that must succeed, started outside the checkout and without its import paths."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel, built from a copy so that the checkout stays clean, without a network."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("jtok", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    run(sys.executable, "-m", "pip", *build, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The Python of an empty environment that holds the wheel and sees the dependencies around this test by a `.pth`.

    A path added by a `.pth` does not have its own `.pth` files read, so an editable jtok outside stays invisible.
    """
    home = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", str(home), cwd=home)
    python = home / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    paths = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    pathlib.Path(site, "outer.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=home,
    )
    return python


def test_wheel_installs_and_imports_outside_the_checkout(installed, tmp_path):
    program = "import jtok, jtok.kernels, sys; print(jtok.__file__, jtok.kernels.__file__, 'kernels' in sys.modules)"
    package, kernels, top_level = run(installed, "-c", program, cwd=tmp_path).split()
    home = str(installed.parents[1])
    assert package.startswith(home) and kernels.startswith(home)
    assert pathlib.Path(kernels).parent == pathlib.Path(package).parent / "kernels"
    assert top_level == "False"


def test_wheel_holds_every_module_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "jtok").rglob("*.py")}
    wanted |= {f"jtok/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "jtok" / "assets").glob("*.safetensors")}
    assert wanted | {"jtok/py.typed"} <= held, sorted(wanted - held)
    assert all(name.startswith("jtok/") for name in held), "a second top-level name would clash with other packages"


def test_wheel_declares_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "jtok = jtok.cli:main" in archive.read(name).decode()


def test_this_checkout_is_what_is_being_tested():
    import jtok.kernels

    assert pathlib.Path(jtok.__file__).parent == ROOT / "jtok"
    assert pathlib.Path(jtok.kernels.__file__).parent == ROOT / "kernels"


def test_nobody_imports_kernels_by_its_folder():
    wrong = re.compile(r"^\s*(?:import\s+kernels\b|from\s+kernels\b)", re.MULTILINE)
    assert wrong.search("x = 1\n  from kernels.gather import gather") and not wrong.search("import jtok.kernels")
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 20
    assert [str(path) for path in sources if wrong.search(path.read_text(encoding="utf-8"))] == []


def test_import_is_light(tmp_path):
    heavy = "{'jax', 'flax', 'numpy', 'grain', 'tensorflow', 'torch'}"
    program = f"import jtok, jtok.flags, sys; print({heavy} & set(sys.modules))"
    assert run(sys.executable, "-c", program, cwd=tmp_path).strip() == "set()"


@pytest.mark.parametrize("name", sorted(jtok.__all__))
def test_public_names_resolve(name):
    assert getattr(jtok, name) is not None and name in dir(jtok)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = jtok.nothing


def test_public_names_are_listed_once():
    assert sorted({*jtok._HOME, "__version__"}) == sorted(jtok.__all__)


def test_version_is_one(wheel):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {jtok.__version__}\n" in citation
    assert wheel.name.startswith(f"jtok-{jtok.__version__}-")
