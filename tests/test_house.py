"""The rules of the house: style, types, layers, small files, and requirements that agree with one another."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LONGEST = 450  # lines of a file; past it, ask what the second idea is
CODE = ("sbp_jax", "tests", "configs", "benchmarks", "launch", ".ci")
EXTRAS = ("dev", "eval", "ray", "tfds", "tpu", "cuda", "seqio", "interop")
MACHINES = [
    {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": system, "platform_machine": chip}
    for python in ("3.11", "3.12", "3.13")
    for system, chip in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-m", "ruff", "check", "."], id="ruff"),
        pytest.param([sys.executable, "-m", "mypy"], id="mypy"),
        pytest.param([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], id="lint-imports"),
    ],
)
def test_checks_pass(command: list[str]) -> None:
    """Guards against style that drifts, types that do not hold and imports that run upwards."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_files_stay_small() -> None:
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 20
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


@pytest.mark.parametrize("name", ["", *EXTRAS])
def test_pins_admit_the_bounds_of_pyproject(name: str) -> None:
    """Guards against a bound raised in pyproject.toml while the tested pins stay behind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = project["optional-dependencies"][name] if name else project["dependencies"]
    for machine in _machines(name):
        versions = _versions("", machine) | (_versions(name, machine) if name else {})
        for bound in map(Requirement, bounds):
            if bound.marker is None or bound.marker.evaluate(machine):
                version = versions.get(canonicalize_name(bound.name))
                assert version is not None, f"{bound} has no pin on {machine}"
                assert bound.specifier.contains(version), f"{bound} is pinned to {version} on {machine}"


@pytest.mark.parametrize("name", EXTRAS)
def test_extras_agree_with_the_base(name: str) -> None:
    """Guards against an extra that moves a package of requirements.txt, or two pins of one package."""
    assert "-r requirements.txt" in _file(name).read_text().splitlines()
    for machine in _machines(name):
        base, extra = _versions("", machine), _versions(name, machine)
        shared = base.keys() & extra.keys()
        assert not {package for package in shared if base[package] != extra[package]}


def test_accelerator_plugins_have_the_version_of_jax() -> None:
    """Guards against a CUDA plugin that jax refuses to load at run time."""
    for machine in _machines("cuda"):
        versions = _versions("cuda", machine)
        assert versions["jax-cuda13-plugin"] == versions["jax-cuda13-pjrt"] == _versions("", machine)["jax"]


def test_running_needs_neither_tensorflow_nor_pytorch_nor_cuda() -> None:
    unwanted = ("tensorflow", "torch", "nvidia-", "jax-cuda", "libtpu", "seqio")
    assert not [pin.name for pin in _pins("") if pin.name.startswith(unwanted)]


@pytest.mark.parametrize("name", ["embedder", "smollm2"])
def test_models_are_pinned_by_their_hash(name: str) -> None:
    """Guards the weights: without a hash another build of the same version would change every embedding."""
    text = _file(name).read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    requirement, _, digest = line.partition("--hash=sha256:")
    assert str(Requirement(requirement.strip()).specifier).startswith("==") and len(digest.strip()) == 64


def _machines(name: str) -> list[dict[str, str]]:
    """The machines a file is for: all of them, or Linux on x86-64 for the accelerators and TensorFlow."""
    everywhere = name in ("", "dev", "eval", "ray", "tfds")
    return [m for m in MACHINES if everywhere or (m["sys_platform"], m["platform_machine"]) == ("linux", "x86_64")]


def _file(name: str) -> Path:
    return ROOT / (f"requirements-{name}.txt" if name else "requirements.txt")


def _pins(name: str) -> Iterator[Requirement]:
    for line in _file(name).read_text().splitlines():
        if line and not line.startswith(("#", "-r ")):
            assert not line.startswith("-") and "://" not in line, f"{_file(name).name} may not name an index: {line}"
            yield Requirement(line)


def _versions(name: str, machine: dict[str, str]) -> dict[str, Version]:
    """Version of each package that a file installs on a machine, by canonical name."""
    versions: dict[str, Version] = {}
    for pin in _pins(name):
        if pin.marker is None or pin.marker.evaluate(machine):
            (specifier,) = pin.specifier
            assert specifier.operator == "==" and pin.name not in versions, f"{pin} in {_file(name).name}"
            versions[canonicalize_name(pin.name)] = Version(specifier.version)
    return versions
