"""Packaging: one list of versions, two commands, nothing large or private in the tree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_architecture import imports

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
REQUIRED = {
    "torch", "jupyterlab", "ipywidgets", "matplotlib", "seaborn", "pandas", "scikit-learn",
    "denoising-diffusion-pytorch", "papermill",
}  # fmt: skip


def names(requirements):
    return {re.split(r"[<>=!\[ ]", r)[0].lower() for r in requirements}


def test_environment_names_the_workbench_packages_with_the_versions_of_the_project():
    environment = yaml.safe_load((TOP / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge"]
    *conda, last = environment["dependencies"]
    ours = {re.split(r"[<>=]", d)[0]: d for d in PROJECT["dependencies"]}
    assert last["pip"] == [ours["denoising-diffusion-pytorch"], "-e .[test]"]
    conda = {name.replace("pytorch", "torch") for name in conda} - {"pip"}
    assert {f"python{PROJECT['requires-python']}", ours["torchvision"]} <= conda
    assert REQUIRED - {"denoising-diffusion-pytorch"} <= names(conda)
    assert conda - {f"python{PROJECT['requires-python']}"} <= set(ours.values())


def test_the_package_is_typed_for_its_users():
    assert (TOP / "diawork" / "py.typed").exists()


def test_required_packages_are_dependencies():
    assert names(PROJECT["dependencies"]) >= REQUIRED


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *(d for name, extra in extras.items() if name != "test" for d in extra)]
    known = {name.replace("-", "_") for name in names(declared)} | {
        "diawork",
        "sklearn",
        "IPython",
        "PIL",
        "yaml",
        "pydantic_core",
    }
    found = {name.split(".")[0] for path in (TOP / "diawork").rglob("*.py") for name in imports(path)}
    assert found - set(sys.stdlib_module_names) <= known


def test_readme_holds_the_two_commands_and_ci_runs_the_second():
    readme = (TOP / "README.md").read_text("utf-8")
    first_screen = "\n".join(readme.splitlines()[:40])
    assert "diawork demo" in first_screen and "-m pytest" in first_screen
    assert "grep -m 1 -- '-m pytest' README.md" in (TOP / ".ci" / "run").read_text("utf-8")


def test_readme_is_short_and_first_says_what_it_is():
    lines = (TOP / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120 and any(line.startswith("![") for line in lines[:10])


def test_readme_code_is_the_packages_own_example():
    import diawork

    example = re.search(r"::\n\n(.*)", diawork.__doc__, re.S)[1]
    lines = [line.strip() for line in example.splitlines() if line.strip()]
    assert "\n".join(lines) in re.sub(r"\n\n", "\n", (TOP / "README.md").read_text("utf-8"))
    assert len(lines) <= 6


def test_public_names_exist():
    import diawork

    assert all(getattr(diawork, name) is not None for name in diawork.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = diawork.nonsense


def test_the_tree_is_small_and_holds_no_weights():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [TOP / f for f in listed if (TOP / f).exists()]
    assert not [f for f in files if f.suffix in {".safetensors", ".npz", ".pt", ".pth", ".ckpt"}]
    assert all(f.stat().st_size <= 5 * 2**20 for f in files)
