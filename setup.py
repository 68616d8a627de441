"""Packaging of jtok: the package under `jtok/`, with the Pallas kernels of `kernels/` installed as `jtok.kernels`.

The kernels have a folder of their own at the top, but not an import name of their own, because a popular package is
already called `kernels`.
"""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent


def read_version() -> str:
    """Runs `jtok/version.py` alone, since importing the package would need its dependencies at build time."""
    scope: dict[str, str] = {}
    exec((HERE / "jtok" / "version.py").read_text(encoding="utf-8"), scope)
    return scope["__version__"]


def read_readme() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


KERNELS = ["jtok.kernels"] + [f"jtok.kernels.{name}" for name in find_packages("kernels")]

# jax, jaxlib and flax move together: a flax before 0.12.8 does not import under jax 0.11.
# Tested on jax 0.10.2 with flax 0.12.8.
JAX_RANGE = ">=0.10,<0.12"

INSTALL_REQUIRES = [
    f"jax{JAX_RANGE}",
    f"jaxlib{JAX_RANGE}",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.12",
    "array-record>=0.7.2",
    "absl-py>=2.1",
    "ml-collections>=1.1",
    "jaxtyping>=0.3",
    "numpy>=2.0",
    "safetensors>=0.5",
    "flatbuffers>=24.3",
    "tokenizers>=0.22",
    "jinja2>=3.1.6",
    "pillow>=11.0",
    "pyarrow>=19.0",
    "scipy>=1.14",
    "scikit-learn>=1.6",
    "scikit-image>=0.25",
    "matplotlib>=3.9",
    "rich>=13.9",
    "tensorboard>=2.19",
]

# torch and transformers are oracles for the parity tests and nothing else.
TEST_REQUIRES = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.120",
    "beartype>=0.20",
    "ruff>=0.9",
    "setuptools>=77",
    "wheel>=0.45",
    "torch==2.13.0",
    "transformers==5.23.0",
    "libtpu>=0.0.40; platform_system == 'Linux' and platform_machine == 'x86_64'",
]

setup(
    name="jtok",
    version=read_version(),
    description="Visual token reduction and adaptive image tokenizers in JAX: one contract, one file a paper.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The jtok developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["jtok", "jtok.*"]) + KERNELS,
    package_dir={"jtok": "jtok", "jtok.kernels": "kernels"},
    package_data={"jtok": ["py.typed", "assets/*.safetensors", "assets/*.json", "assets/*/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "test": TEST_REQUIRES,
        "cuda": [f"jax[cuda12]{JAX_RANGE}"],
        "tpu": [f"jax[tpu]{JAX_RANGE}"],
        "launch": ["xmanager>=0.8.5"],
    },
    entry_points={"console_scripts": ["jtok = jtok.cli:main"]},
    zip_safe=False,
)
