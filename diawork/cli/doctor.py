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
from diawork.base.errors import ResourceError
from diawork.base.files import require_room
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
    compute, limit = Compute.auto(), os.environ.get("OMP_NUM_THREADS")
    cuda = compute.device.type == "cuda"
    where = "GPU" if cuda else f"{find_cores().usable} CPU cores"
    note = "" if cuda else "; the presets smoke, demo and cpu are made for it"
    threads = f"{torch.get_num_threads()} ({f'OMP_NUM_THREADS={limit}' if limit else 'one a core'})"
    machine = [
        Check("device", f"{compute.device} ({where}), {compute.precision}{note}"),
        Check("cores", f"{find_cores()}; threads: {threads}; {describe_waiting()}"),
    ]
    folders = data_roots(data_root or None)
    files = [path.name for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.npz"))]
    found = next((folder for folder in folders if folder.is_dir()), folders[0])
    data = Check("data", f"{found}: {', '.join(files) or 'no downloaded data; the phantom needs none'}")
    home = Path(os.environ.get("IPYTHONDIR") or os.path.expanduser("~"))
    written = [
        _written("output", runs_root(out), "choose another folder with --out or $DIAWORK_HOME", 1),
        _written("home", home, "free some space, or set HOME to another folder: notebooks write there"),
    ]
    return Report([*software, *machine, _kernel(), data, *written])


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


def _written(name: str, folder: Path, way_out: str, least: float = 0) -> Check:
    """Say whether a folder, or the nearest above it that exists, can be written."""
    try:
        require_room(folder)
    except ResourceError as error:
        return Check(name, f"{folder}: {error.what.rstrip('.')}", way_out)
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(nearest).free / 2**30
    return Check(name, f"{folder} (writable, {free:.0f} GiB free)", "" if free > least else way_out)
