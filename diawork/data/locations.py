"""Where the file or folder of a data set lies, and how it gets there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from diawork.base.errors import DataError, printable
from diawork.base.files import home_cache, remove_orphans
from diawork.data.manifests import Manifest, load_manifest


def cache_root() -> Path:
    """Return the folder of what is made once and used by many runs: $DIAWORK_HOME, else ~/.cache/diawork."""
    return Path(os.environ.get("DIAWORK_HOME") or home_cache() / "diawork")


def data_roots(root: Path | str | None = None, manifest: Manifest | None = None) -> list[Path]:
    """Return the folders searched for data files, first to last; a user's own manifest adds the one it lies in."""
    if root:
        return [Path(root)]
    own = manifest.own_root if manifest else None
    if manifest and manifest.root is not None and own is not None:
        return [own]
    home = os.environ.get("DIAWORK_HOME")
    named = [own, os.environ.get("DIAWORK_DATA"), os.path.join(home, "data") if home else None]
    return [Path(folder) for folder in named if folder] + [home_cache() / "diawork"]


def find_file(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Path:
    """Return the data file, downloading it where that was asked for; a file that is nowhere is a ``DataError``.

    The table of a user's own manifest may lie beside it, wherever the images are.
    """
    beside = [manifest.home] if manifest.home and manifest.kind == "table" and not root else []
    roots = [*beside, *data_roots(root, manifest)]
    if (path := _found(manifest, roots, manifest.place, Path.is_file, "file")) is not None:
        return path
    if download and (manifest.url or not manifest.source):
        return _download(manifest, roots[0])
    raise _not_found(manifest, roots, manifest.place)


def find_folder(manifest: Manifest, root: Path | str | None = None) -> Path:
    """Return the folder of a set's images; a folder that is nowhere is a ``DataError``."""
    roots, place = data_roots(root, manifest), str(manifest.folder)
    path = _found(manifest, roots, place, Path.is_dir, "folder")
    if path is None:
        raise _not_found(manifest, roots, place)
    return path


def _found(manifest: Manifest, roots: list[Path], place: str, fits: Callable[[Path], bool], what: str) -> Path | None:
    """Return where ``place`` lies in the first root that has it; a link out of a root counts where no root has it."""
    led_out = None
    for root in roots:
        try:
            path = manifest.path_in(root, place)
            if fits(path):
                return path
        except DataError as error:
            led_out = led_out or error
            continue
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", path=root / place) from None
        if path.exists():
            raise DataError(f"not a {what}.", path=path)
    if led_out:
        raise led_out
    return None


def on_disk(name: str, root: Path | str | None) -> bool:
    """Say whether a data set lies on this disk, or is drawn."""
    manifest = load_manifest(name)
    return manifest.kind == "phantom" or any(manifest.path_in(at).exists() for at in data_roots(root, manifest))


def root_of(base: Path, manifest: Manifest) -> Path:
    """Return the data root in which the images of a set were found, whose paths begin at ``base``."""
    if manifest.folder:
        return base.parents[len(Path(manifest.folder).parts) - 1]
    return (base / Path(manifest.place).name).parents[len(Path(manifest.place).parts) - 1]


def _not_found(manifest: Manifest, roots: list[Path], place: str) -> DataError:
    put, how = "set DIAWORK_DATA to the folder that holds it", "Please"
    if manifest.url:
        how = f"`diawork data get {manifest.name}` gets it from {manifest.url[0]} ({manifest.licence}), or"
    elif manifest.source:
        by_hand = f"Get it from {manifest.source}"
        if manifest.source.startswith("https://www.kaggle.com/"):
            joined = "press Join, accept the rules, open Data, " if "/competitions/" in manifest.source else ""
            by_hand = f"On {manifest.source}: sign in, {joined}press Download, unzip"
        how = f"{by_hand} (licence: {manifest.licence}),"
        put += f", and look with `diawork data verify {manifest.name}`"
    what = f"{place} was not found; looked in {', '.join(map(printable, roots))}."
    return DataError(what, path=manifest.name, hint=f"{how} {put}.")


def _download(manifest: Manifest, folder: Path) -> Path:
    """Fetch the file into ``folder``; it gets its name only once its checksum is right."""
    import pooch

    target = manifest.path_in(folder)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    checksum = f"md5:{manifest.md5}" if manifest.md5 else None
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    reason = "the manifest names no url"
    for url in manifest.url:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_orphans(target.parent)  # of a download that was killed
            fetch(url, str(temporary), None)
            pooch.hashes.hash_matches(str(temporary), checksum, strict=True, source=target.name)
            os.replace(temporary, target)
            return target
        except Exception as error:  # requests, urllib3, ssl and pooch each raise their own
            reason = f"{url}: {' '.join(str(error).split())[:300]}"
        finally:
            temporary.unlink(missing_ok=True)
    hint = f"Wanted in {target.parent} with MD5 {manifest.md5}; you may put the file there by hand."
    raise DataError(f"the download failed ({reason}).", path=manifest.name, hint=hint)
