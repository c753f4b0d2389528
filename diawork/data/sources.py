"""Where the file of a data set lies, and how it gets there."""

import os
import sys
from pathlib import Path

from diawork.base.errors import DataError, printable
from diawork.data.manifests import Manifest


def data_roots(root: Path | str | None = None) -> list[Path]:
    """Return the folders searched for data files, first to last."""
    if root is not None:
        return [Path(root)]
    home = os.environ.get("DIAWORK_HOME")
    named = [os.environ.get("DIAWORK_DATA"), os.path.join(home, "data") if home else None]
    return [Path(folder) for folder in named if folder] + [Path(os.path.expanduser("~/.cache/diawork"))]


def find_file(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Path:
    """Return the data file, downloading it where that was asked for."""
    roots = data_roots(root)
    for path in map(manifest.path_in, roots):
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", path=path) from None
        if path.exists():
            raise DataError("not a file.", path=path)
    if download:
        return _download(manifest, roots[0])
    how = "Please"
    if manifest.url:
        how = f"`diawork data download {manifest.name}` gets it from {manifest.url[0]} ({manifest.licence}), or"
    what = f"{manifest.file} was not found; looked in {', '.join(map(printable, roots))}."
    hint = f"{how} set DIAWORK_DATA to the folder that holds it."
    raise DataError(what, path=manifest.name, hint=hint)


def _download(manifest: Manifest, folder: Path) -> Path:
    """Fetch the file into ``folder``; it gets its name only once its checksum is right."""
    import pooch

    target = manifest.path_in(folder)
    checksum = f"md5:{manifest.md5}" if manifest.md5 else None
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    reason = "the manifest names no url"
    for url in manifest.url:
        try:
            pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=fetch)
            return target
        except Exception as error:  # requests, urllib3, ssl and pooch each raise their own
            reason = f"{url}: {' '.join(str(error).split())[:300]}"
    hint = f"Wanted in {target.parent} with MD5 {manifest.md5}; you may put the file there by hand."
    raise DataError(f"the download failed ({reason}).", path=manifest.name, hint=hint)
