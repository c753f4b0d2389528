"""What this machine offers, line by line, each with OK or the fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from diawork.base.compute import Compute
from diawork.data.locations import data_roots
from diawork.runs.cores import describe_waiting, find_cores
from diawork.runs.run import runs_root, versions

_HEADLESS = "this is about JupyterLab alone, headless runs use this interpreter"
_BARE = {"python", f"python{sys.version_info[0]}", "python" + ".".join(map(str, sys.version_info[:2]))}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report; without a fix all is well."""

    name: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{'FIX' if self.fix else 'OK '}  {self.name:<12} {self.text}" + (f"  → {self.fix}" if self.fix else "")


class Report(list[Check]):
    """A list of checks that prints as lines."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__

    @property
    def ok(self) -> bool:
        """Say whether nothing needs fixing."""
        return not any(check.fix for check in self)


def doctor(*, data_root: Path | str | None = None, out: Path | str | None = None) -> Report:
    """Check Python, torch, device, cores, kernel, data folder and output folder."""
    known = versions()
    packages = f"{known['torch']}, torchvision {known['torchvision']}, diawork {known['diawork']}"
    newer = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    software = [Check("Python", known["python"], newer), Check("torch", packages)]
    return Report([*software, _device(), _cores(), _kernel(), _data(data_root), _output(runs_root(out))])


def _device() -> Check:
    compute = Compute.auto()
    cuda = compute.device.type == "cuda"
    where = "GPU" if cuda else f"{find_cores().usable} CPU cores"
    note = "" if cuda else "; the presets smoke, demo and cpu are made for it"
    return Check("device", f"{compute.device} ({where}), {compute.precision}{note}")


def _cores() -> Check:
    threads, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    why = f"OMP_NUM_THREADS={asked}" if asked else "one a core"
    return Check("cores", f"{find_cores()}; threads: {threads} ({why}); {describe_waiting()}")


def _kernel() -> Check:
    """Say which Python JupyterLab starts for the notebooks; a headless run is always this interpreter's."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    install = "run: python -m ipykernel install --sys-prefix --name python3"
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return Check("kernel", f"no 'python3' kernel; {_HEADLESS}", install)
    interpreter, ours = spec.argv[0], Path(sys.prefix, "share", "jupyter")
    if interpreter in _BARE:  # the launcher puts its own interpreter in their place
        return Check("kernel", f"python3 runs this interpreter, {sys.executable}")
    prefix = _prefix_of(interpreter)
    if prefix and Path(prefix).resolve() == Path(sys.prefix).resolve():
        return Check("kernel", f"python3 runs {interpreter}")
    whose = f"of {prefix}, not of {sys.prefix}" if prefix else "which does not answer"
    elsewhere = not Path(spec.resource_dir).is_relative_to(ours) and (ours / "kernels" / "python3").is_dir()
    before = f"start it as JUPYTER_PATH={ours}{os.pathsep}$JUPYTER_PATH jupyter lab" if elsewhere else install
    return Check("kernel", f"python3 in {spec.resource_dir} runs {interpreter} {whose}; {_HEADLESS}", before)


def _prefix_of(interpreter: str) -> str:
    """Return the prefix that an interpreter says it has, or nothing: links and base interpreters look alike."""
    ask = [shutil.which(interpreter) or interpreter, "-c", "import sys; print(sys.prefix)"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def _data(root: Path | str | None) -> Check:
    folders = data_roots(root or None)
    files = [path.name for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.npz"))]
    where = next((folder for folder in folders if folder.is_dir()), folders[0])
    return Check("data", f"{where}: {', '.join(files) or 'no downloaded data; the phantom needs none'}")


def _output(root: Path) -> Check:
    probe = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    writable, free = os.access(probe, os.W_OK), shutil.disk_usage(probe).free / 2**30
    fix = "" if writable and free > 1 else "choose another folder with --out or $DIAWORK_HOME"
    return Check("output", f"{root} ({'writable' if writable else 'not writable'}, {free:.0f} GiB free)", fix)
