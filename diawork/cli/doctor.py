"""What this machine offers, line by line, each with OK or the fix."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from diawork.base.compute import Compute
from diawork.data.sources import data_roots
from diawork.runs.run import runs_root, versions

_BARE = {"python", f"python{sys.version_info[0]}", "python" + ".".join(map(str, sys.version_info[:2]))}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    found: str
    ok: bool = True
    fix: str = ""

    def __str__(self) -> str:
        return f"{'OK ' if self.ok else 'FIX'}  {self.name:<12} {self.found}" + (f"  → {self.fix}" if self.fix else "")


class Report(list):
    """A list of checks that prints as lines."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__

    @property
    def ok(self) -> bool:
        """Say whether nothing needs fixing."""
        return all(check.ok for check in self)


def doctor(*, data_root: Path | str | None = None, out: Path | str | None = None) -> Report:
    """Check Python, torch, device, kernel, data folder and output folder."""
    return Report([_python(), _torch(), _device(), _kernel(), _data(data_root), _output(runs_root(out))])


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("Python", sys.version.split()[0], ok, "" if ok else "install Python 3.11 or newer")


def _torch() -> Check:
    found = versions()
    return Check("torch", f"{found['torch']}, torchvision {found['torchvision']}, diawork {found['diawork']}")


def _device() -> Check:
    compute = Compute.auto()
    where = "GPU" if compute.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    note = "" if compute.device.type == "cuda" else "; the presets smoke, demo and cpu are made for it"
    return Check("device", f"{compute.device} ({where}), {compute.precision}{note}")


def _kernel() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = "run: python -m ipykernel install --sys-prefix --name python3"
    try:
        interpreter = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("kernel", "no 'python3' kernel", False, fix)
    if interpreter in _BARE:  # the launcher puts its own interpreter in their place
        return Check("kernel", f"python3 runs this interpreter, {sys.executable}")
    found = shutil.which(interpreter)
    same = bool(found) and Path(found).samefile(sys.executable)
    return Check("kernel", f"python3 runs {interpreter}", same, "" if same else fix)


def _data(root: Path | str | None) -> Check:
    folders = data_roots(root)
    found = [f"{p.name}" for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.npz"))]
    where = next((str(f) for f in folders if f.is_dir()), str(folders[0]))
    text = f"{where}: {', '.join(found) or 'no downloaded data; the phantom needs none'}"
    return Check("data", text)


def _output(root: Path) -> Check:
    probe = next(p for p in (root, *root.absolute().parents) if p.exists())
    writable = os.access(probe, os.W_OK)
    free = shutil.disk_usage(probe).free / 2**30
    ok = writable and free > 1
    fix = "" if ok else "choose another folder with --out or $DIAWORK_HOME"
    return Check("output", f"{root} ({'writable' if writable else 'not writable'}, {free:.0f} GiB free)", ok, fix)
