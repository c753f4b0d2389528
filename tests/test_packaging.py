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


def test_environment_installs_the_package_and_lists_no_version_of_its_own():
    environment = yaml.safe_load((TOP / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[test]"]}
    assert names(conda) == {"python", "pip"} and f"python{PROJECT['requires-python']}" in conda


def test_required_packages_are_dependencies():
    assert names(PROJECT["dependencies"]) >= REQUIRED


BROUGHT_ALONG = {  # by jupyterlab, papermill, matplotlib and pydantic
    "yaml", "jinja2", "markupsafe", "tqdm", "click", "traitlets", "jupyter_client", "nbclient",
    "pydantic_core", "IPython",
}  # fmt: skip


def test_every_import_is_a_declared_dependency():
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["slurm"]]
    known = {name.replace("-", "_") for name in names(declared)} | BROUGHT_ALONG | {"diawork", "sklearn", "PIL"}
    found = {name.split(".")[0] for path in (TOP / "diawork").rglob("*.py") for name in imports(path)}
    assert found - set(sys.stdlib_module_names) <= known


def test_readme_holds_the_two_commands_and_ci_runs_the_second():
    readme = (TOP / "README.md").read_text("utf-8")
    first_screen = "\n".join(readme.splitlines()[:40])
    assert "diawork demo" in first_screen and "-m pytest" in first_screen
    assert "grep -m 1 -- '-m pytest' README.md" in (TOP / ".ci" / "run").read_text("utf-8")


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
