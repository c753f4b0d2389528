"""What this machine offers, line by line, each with OK or the fix."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from diawork.base.compute import Compute
from diawork.data.sources import data_roots
from diawork.runs.cores import describe_waiting, find_cores
from diawork.runs.run import runs_root, versions

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
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = "run: python -m ipykernel install --sys-prefix --name python3"
    try:
        interpreter = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("kernel", "no 'python3' kernel", fix)
    if interpreter in _BARE:  # the launcher puts its own interpreter in their place
        return Check("kernel", f"python3 runs this interpreter, {sys.executable}")
    path = shutil.which(interpreter)
    same = path is not None and Path(path).samefile(sys.executable)
    return Check("kernel", f"python3 runs {interpreter}", "" if same else fix)


def _data(root: Path | str | None) -> Check:
    folders = data_roots(root)
    files = [path.name for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.npz"))]
    where = next((folder for folder in folders if folder.is_dir()), folders[0])
    return Check("data", f"{where}: {', '.join(files) or 'no downloaded data; the phantom needs none'}")


def _output(root: Path) -> Check:
    probe = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    writable, free = os.access(probe, os.W_OK), shutil.disk_usage(probe).free / 2**30
    fix = "" if writable and free > 1 else "choose another folder with --out or $DIAWORK_HOME"
    return Check("output", f"{root} ({'writable' if writable else 'not writable'}, {free:.0f} GiB free)", fix)
