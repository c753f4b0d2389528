"""Manifests: what is known of a data set before it is opened, as strictly typed YAML; errors name line and field."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from diawork.base.config import Bridge
from diawork.base.errors import DataError, UsageError, did_you_mean
from diawork.base.files import shipped
from diawork.data.documents import StrictModel, document_bytes, read_document, wrong
from diawork.data.phantom import FINEST, PhantomSpec
from diawork.data.phantom import KINDS as ANATOMIES

Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)
Window = tuple[float, float]  # the stored values of black and white
WINDOWS: dict[str, Window] = {  # of CT, in HU: a choice of what to see, whatever lies outside
    "whole": (-1024, 3071), "lung": (-1350, 150), "soft tissue": (-160, 240), "mediastinum": (-125, 225),
    "bone": (-500, 1300), "brain": (0, 80),
}  # fmt: skip
MOST_CUT = 0.01  # share of a set's values that may lie outside a window that is none of these


def _printable_text(text: str) -> str:
    """Refuse control characters and spaces around a text."""
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text without control characters or spaces around it")
    return text


def inside_root(path: str) -> str:
    """Refuse what could lead out of the data root on any system; symlinks are checked on opening."""
    if re.search(r"[\\\0]|^~|^[A-Za-z]:", path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("must be a plain path inside the data root (no '..', no absolute path, no ~ or \\)")
    return path


def _plain_pattern(pattern: str) -> str:
    """Refuse what is no pattern, or takes forever on some name: repeated groups, many repeats or options."""
    repeats, options = (len(re.findall(f"(?<![\\\\(]){sign}", pattern)) for sign in ("[*+{]", r"\?"))
    if re.search(r"(?<!\\)\)[*+{]|\\[1-9]|\(\?P=", pattern) or repeats > 3 or options > 4:
        raise ValueError("must repeat no group nor refer to one, and hold at most three of *, + and {} and four of ?")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if not groups:
        raise ValueError("needs a group in parentheses around what names the patient")
    return pattern


def _window(value: object) -> object:
    """Return the window of CT that a name means; anything else as it is."""
    if isinstance(value, str) and value not in WINDOWS:
        raise ValueError(f"is none of the windows of CT: {', '.join(WINDOWS)}")
    return WINDOWS[value] if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable_text)]
FileName = Annotated[str, Field(max_length=200), AfterValidator(_printable_text), AfterValidator(inside_root)]
Url = Annotated[str, Field(max_length=500, pattern=r"^https://[^\s\\<>\"'`]+$"), AfterValidator(_printable_text)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Label = Annotated[int, Field(ge=0, le=65_535)]
Step = Annotated[int, Field(ge=0, le=1_000_000)]
Role = Literal["normal", "anomalous", "unused"]  # images of an unused class are left out
Level = Literal["split", "class", "patient", "any"]


class ImageFormat(StrictModel):
    """Size (px, square) and channels of the images as they are opened."""

    size: Annotated[int, Field(ge=8, le=4096)]
    channels: Literal[1, 3]


class Columns(StrictModel):
    """What the columns of a table are called; of a name that the table lacks, only image and label are missed."""

    image: Text = "image_path"
    label: Text = "label"
    split: Text = "split"
    patient: Text = "patient_id"
    mask: Text = "mask"
    suffix: Text | None = None  # of the image files, where the cells lack it


Share = Annotated[float, Field(ge=0, lt=1)]
Shares = Share | Annotated[dict[Text, Share], Field(min_length=1)]  # of every class, or by class


class Recipe(StrictModel):
    """How the splits that a source lacks are made of its train images: seeded, by patient, class by class."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    val: Shares = 0.0
    test: Shares = 0.0

    def makes(self, split: str) -> bool:
        """Say whether any image goes to ``split``."""
        shares = getattr(self, split)
        return any(shares.values() if isinstance(shares, dict) else [shares])

    def share(self, split: str, class_name: str) -> float:
        """Return the share of a class's train images that goes to ``split``."""
        shares = getattr(self, split)
        return shares.get(class_name, 0.0) if isinstance(shares, dict) else shares


class Drawing(StrictModel):
    """What the synthetic images show, and how fine their lesions are."""

    kind: Literal["lung", "fundus", "oct"]
    lesion: Literal["spot", "ring", "twist"]
    lesion_size: float  # px
    lesion_contrast: float  # of the grey range; for a twist, of half a turn
    seed: Annotated[int, Field(ge=0, lt=2**31)]

    def describe(self) -> str:
        """Return type, size and contrast of the lesions in words."""
        unit = "half a turn" if self.lesion == "twist" else "the grey range"
        return f"{self.lesion}, {self.lesion_size:g} px wide, contrast {self.lesion_contrast:g} of {unit}"

    def spec(self, size: int) -> PhantomSpec:
        """Return what to draw for images of ``size`` px."""
        return PhantomSpec(size=size, **self.model_dump(exclude={"seed"}))


class Kind(NamedTuple):
    """A way in which a data set is kept: its reader, the keys that its manifest needs and those that it may have."""

    reader: str  # a module of data.readers
    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()


_OF_FILES = ("root", "aliases", "frame", "patient", "recipe", "intensity", "cut", "drop")
KINDS = {
    "npz": Kind("archives", ("file",), ("url", "md5", "intensity", "cut", "drop", "images", "multilabel")),
    "phantom": Kind("phantom", ("phantom",)),
    "folder": Kind("listing", ("folder", "layout"), _OF_FILES),
    "table": Kind("listing", ("file",), ("folder", "columns", *_OF_FILES)),
    "splitlist": Kind("listing", ("file", "folder"), _OF_FILES),
    "cifar": Kind("archives", ("folder",), ("recipe",)),
}
FILE_KINDS = tuple(name for name, kind in KINDS.items() if kind.reader == "listing")  # their counts may stay open
PHANTOMS = {f"phantom_{kind}_{lesion}": (kind, lesion) for kind in ANATOMIES for lesion in FINEST}
_KEYS_OF_KINDS = sorted({key for kind in KINDS.values() for key in (*kind.needs, *kind.may_have)})


class Manifest(StrictModel):
    """What is known of a data set before it is opened."""

    name: Name
    title: Text
    kind: str  # of KINDS
    licence: Text
    citation: Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_printable_text)]
    classes: Annotated[dict[Label, Text], Field(min_length=1, max_length=1000)]  # stored label → class name
    roles: dict[Text, Role]
    counts: dict[Split, dict[Text, Count]] = {}  # images per split and class, as opened
    images: dict[Split, Count] = {}  # npz: images per split, where the counts by class are not known
    image: ImageFormat
    resize: Literal["squash", "crop", "pad"] = "squash"  # how other sizes become the wanted one, antialiased
    t_range: Annotated[tuple[Step, Step], Field(strict=False)]  # lowest and highest dissolving step
    bridge: Bridge  # image px ↔ model px
    file: FileName | None = None  # npz, table: inside the data root
    root: Text | None = None  # the data root of this set alone: absolute, or from the manifest's own folder
    folder: FileName | None = None  # folder: the images'; table: where its paths begin, if not beside it
    layout: Annotated[tuple[Level, ...], Field(strict=False, max_length=8)] | None = None  # what each folder level says
    columns: Columns | None = None
    aliases: dict[Text, Text] = {}  # folder or cell → the class or split that it means
    frame: Annotated[int, Field(ge=0)] | Literal["middle"] | None = None  # of files that hold several pictures
    patient: Annotated[Text, AfterValidator(_plain_pattern)] | None = None  # pattern; its first group names the patient
    recipe: Recipe | None = None
    drop: Annotated[tuple[Text, ...], Field(strict=False, max_length=1000)] = ()  # left out, by file or "train/17"
    url: Annotated[tuple[Url, ...], Field(strict=False, max_length=10)] = ()  # npz: tried in order
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None  # npz: as published
    # stored values shown as black and white, or a window of CT by its name; needed for anything but 8-bit images
    intensity: Annotated[Window, Field(strict=False), BeforeValidator(_window)] | None = None
    cut: Annotated[float, Field(ge=0, le=1)] | None = None  # share of all values that may lie outside the window
    multilabel: bool = False  # npz: a row of findings an image; class 0 has none, class 1 has any
    phantom: Drawing | None = None
    notes: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what a reader of results must know
    modality: Text | None = None  # what made the pictures
    source: Url | None = None  # the page of the set, where its terms stand and where a person gets it
    uncertain: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what this manifest only believes
    shortcuts: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what gives a class away
    _home: Path | None = PrivateAttr(default=None)  # folder of the manifest's file, of a user's own

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._refuse_other_keys()
        names = list(self.classes.values())
        if len(set(names)) < len(names):
            raise wrong("two labels have the same class name", "classes")
        _refuse_other_names(self.roles, names, "roles")
        if "normal" not in self.roles.values():
            raise wrong("no class has the role 'normal'; anomalies are found by knowing the normal", "roles")
        for split, counts in self.counts.items():
            _refuse_other_names(counts, names, "counts", split)
        open_counts = self.kind in FILE_KINDS or {"train", "test"} <= set(self.images)
        for missing in {"train", "test"} - set(self.counts) if self.counts or not open_counts else ():
            raise wrong(f"the split '{missing}' is missing", "counts")
        for split in ("val", "test") if self.recipe else ():
            if isinstance(shares := getattr(self.recipe, split), dict):
                _refuse_other_names(shares, names, "recipe", split)
        if self.t_range[0] > self.t_range[1]:
            raise wrong(f"{list(self.t_range)} must be [low, high] with low below high", "t_range")
        if self.intensity and self.intensity[0] >= self.intensity[1]:
            raise wrong(f"{list(self.intensity)} must be [low, high] with low below high", "intensity")
        return self

    def _refuse_other_keys(self) -> None:
        """Refuse keys that the kind lacks or has no use for, and what does not fit the kind."""
        if self.kind not in KINDS:
            raise wrong(f"{self.kind!r} is not a kind of data set: {', '.join(KINDS)}", "kind")
        kind = KINDS[self.kind]
        for key in kind.needs:
            if getattr(self, key) is None:
                raise wrong(f"is missing; kind: {self.kind} needs it", key)
        for key in _KEYS_OF_KINDS:
            if getattr(self, key) and key not in kind.needs + kind.may_have:
                raise wrong(f"has no meaning with kind: {self.kind}", key)
        if self.kind == "cifar" and (self.image.size, self.image.channels) != (32, 3):
            raise wrong("CIFAR has 32 px and 3 channels", "image")
        if self.kind == "folder" and "class" not in (self.layout or ()):
            raise wrong("no level of the folders says the class", "layout")
        if self.phantom:
            if sorted(self.roles.values()) != ["anomalous", "normal"]:
                raise wrong("a phantom has exactly one normal and one anomalous class", "roles")
            if self.image.channels != 1:
                raise wrong("a phantom is grey: 1 channel", "image", "channels")
            try:
                self.phantom.spec(self.image.size)
            except UsageError as error:
                raise wrong(error.what.rstrip("."), "phantom") from None

    @property
    def most_cut(self) -> float:
        """The share of all values that may lie outside the intensity window."""
        return MOST_CUT if self.cut is None else self.cut

    @property
    def sizes(self) -> dict[Split, int]:
        """Images per split, as far as the manifest says."""
        return {split: sum(counts.values()) for split, counts in self.counts.items()} or self.images

    def with_lesions(self, *, size: float | None = None, contrast: float | None = None) -> Self:
        """Return the manifest with lesions of another size (px) or contrast; only a phantom has any to dial."""
        wanted = {"lesion_size": size} if size is not None else {}
        wanted |= {"lesion_contrast": contrast} if contrast is not None else {}
        if not wanted:
            return self
        if self.phantom is None:
            raise UsageError(f"data.{min(wanted)} dials a phantom's lesions; {self.name!r} has real images.")
        drawn = self.phantom.model_copy(update=wanted)
        drawn.spec(self.image.size)  # refuses what cannot be drawn
        return self.model_copy(update={"phantom": drawn})

    def at_size(self, size: int | None) -> Self:
        """Return the manifest with images of another size (px)."""
        if size is None or size == self.image.size:
            return self
        return self.model_copy(update={"image": self.image.model_copy(update={"size": size})})

    def against_the_rest(self, normal: str | None) -> Self:
        """Return the manifest in which one class is healthy and every other one that is used anomalous."""
        if normal is None:
            return self
        if self.roles.get(normal, "unused") == "unused":
            hint = did_you_mean(normal, self.classes.values())
            raise UsageError(f"{normal!r} is not a class of {self.name!r}.", field="data.normal_class", hint=hint)
        used = [name for name, role in self.roles.items() if role != "unused"]
        roles = self.roles | {name: "normal" if name == normal else "anomalous" for name in used}
        return self.model_copy(update={"roles": roles})

    @property
    def place(self) -> str:
        """Return the file or folder that holds the data, inside the data root."""
        return str(self.file if self.file is not None else self.folder)

    @property
    def own_root(self) -> Path | None:
        """Return the data root of this set alone: the one it names, or the folder of a user's own manifest."""
        return self._home if self.root is None else (self._home or Path()) / self.root

    @property
    def home(self) -> Path | None:
        """Return the folder of the manifest's file, where it is a user's own."""
        return self._home

    def path_in(self, root: Path | str, place: str = "") -> Path:
        """Return where the data lie in ``root``, links followed; refuse a link that leads out of it."""
        place = place or self.place
        try:
            base = Path(root).resolve()
            path = (base / place).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
            raise DataError(f"the path {place!r} cannot be followed ({error}).", path=str(root)) from None
        if self.root and base == base.parent:
            raise DataError(
                "the data root is the top of a file system; name the folder that holds the data.", path=root
            )
        if not path.is_relative_to(base):
            hint = "Set DIAWORK_DATA to the folder that really holds the file, or copy it there."
            raise DataError(f"{place!r} is a link to {str(path)!r}, outside the data root.", path=root, hint=hint)
        return path


def _refuse_other_names(by_class: Mapping[str, object], classes: list[str], *at: str) -> None:
    """Refuse a mapping whose keys are not exactly the class names."""
    for name in by_class:
        if name not in classes:
            raise wrong(f"{name!r} is not one of the classes {', '.join(map(repr, classes))}", *at, name)
    for name in classes:
        if name not in by_class:
            raise wrong(f"the class {name!r} is missing", *at)


def check_manifest(text: str | bytes, where: object = "manifest") -> Manifest:
    """Return the manifest written in ``text``; ``where`` names it in the ``UsageError``."""
    return read_document(Manifest, text, where, "manifest")[0]


def list_manifests() -> list[str]:
    """Return the names of the data sets that come with the package."""
    return list(_manifests_in(shipped("data_manifests")))


@functools.cache
def _manifests_in(folder: Path) -> tuple[str, ...]:
    # other facts may lie beside them (published numbers): a data set is what says its kind
    files = sorted(folder.glob("*.yaml"))
    return tuple(path.stem for path in files if re.search(r"^kind:", path.read_text("utf-8"), re.MULTILINE))


@functools.lru_cache(maxsize=64)
def _read(content: bytes, path: Path) -> Manifest:
    """Return the manifest of these bytes; a sweep asks for the same one several times a cell."""
    return check_manifest(content, path)


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Return a shipped manifest by name, one of ``PHANTOMS``, or a user's own by the path of its ``.yaml`` file."""
    text, own = str(name_or_path), False
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        path, own = Path(text), True
    elif text in PHANTOMS:
        kind, lesion = PHANTOMS[text]
        size, contrast = FINEST[lesion]
        drawn = Drawing(kind=kind, lesion=lesion, lesion_size=size, lesion_contrast=contrast, seed=0)  # type: ignore[arg-type]
        lesions = drawn.describe()
        notes = (f"One of {len(PHANTOMS)} anatomies and lesions, made to see where a recipe fails: {lesions}.",)
        title = f"Phantom of {kind} with {lesion} lesions, synthetic"
        changes = {"name": text, "title": title, "phantom": drawn, "notes": notes}
        return load_manifest("phantom").model_copy(update=changes)
    elif text in list_manifests():
        path = shipped("data_manifests") / f"{text}.yaml"
    else:
        hint = f"{did_you_mean(text, list_manifests())} Your own set: the path of its manifest.yaml."
        raise UsageError(f"unknown data set {text!a}.", hint=hint)
    manifest = _read(document_bytes(path, "manifest", list_manifests()), path).model_copy()
    manifest._home = path.absolute().parent if own else None
    return manifest
