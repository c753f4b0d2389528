"""Manifests: the facts about a data set, as strictly typed YAML; what is wrong is told with line and field."""

import functools
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from diawork.base.config import Bridge
from diawork.base.errors import DataError, UsageError, did_you_mean
from diawork.base.files import shipped
from diawork.data import phantom
from diawork.data.facts import (
    Columns,
    Count,
    FileName,
    ImageFacts,
    Label,
    Level,
    Name,
    PhantomFacts,
    Recipe,
    Role,
    Split,
    Step,
    Text,
    Url,
    plain_pattern,
    printable_text,
    refuse_other_names,
)
from diawork.data.strictyaml import StrictModel, document_bytes, read_document, wrong


class Kind(NamedTuple):
    """A way in which a data set is kept: the keys of its manifest that it needs, and those that it may have."""

    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()


_FILES = (
    "root",
    "aliases",
    "frame",
    "patient",
    "recipe",
    "intensity",
    "drop",
)  # of sets whose images are files of their own
KINDS = {  # each is read by the room of its name in data.readers
    "npz": Kind(needs=("file",), may_have=("url", "md5", "intensity", "drop", "images", "multilabel")),
    "phantom": Kind(needs=("phantom",)),
    "folder": Kind(needs=("folder", "layout"), may_have=_FILES),
    "table": Kind(needs=("file",), may_have=("folder", "columns", *_FILES)),
    "splitlist": Kind(needs=("file", "folder"), may_have=_FILES),
    "cifar": Kind(needs=("folder",), may_have=("recipe",)),
}
UNCOUNTED = ("folder", "table", "splitlist")  # kinds whose manifest may leave the counts open
PHANTOMS = {f"phantom_{kind}_{lesion}": (kind, lesion) for kind in phantom.KINDS for lesion in phantom.FINEST}
_KEYS_OF_KINDS = sorted({key for kind in KINDS.values() for key in (*kind.needs, *kind.may_have)})


class Manifest(StrictModel):
    """Everything the house knows about a data set before it opens it."""

    name: Name
    title: Text
    kind: str  # of KINDS
    licence: Text
    citation: Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(printable_text)]
    classes: Annotated[dict[Label, Text], Field(min_length=1, max_length=1000)]  # stored label → class name
    roles: dict[Text, Role]
    counts: dict[Split, dict[Text, Count]] = {}  # images per split and class, as opened
    images: dict[Split, Count] = {}  # npz: images per split, where the counts by class are not known
    image: ImageFacts
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
    patient: Annotated[Text, AfterValidator(plain_pattern)] | None = None  # pattern; its first group names the patient
    recipe: Recipe | None = None
    drop: Annotated[tuple[Text, ...], Field(strict=False, max_length=1000)] = ()  # left out, by file or "train/17"
    url: Annotated[tuple[Url, ...], Field(strict=False, max_length=10)] = ()  # npz: tried in order
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None  # npz: as published
    # npz: stored values shown as black and white; needed for anything but 8-bit images
    intensity: Annotated[tuple[float, float], Field(strict=False)] | None = None
    multilabel: bool = False  # npz: a row of findings an image; class 0 has none, class 1 has any
    phantom: PhantomFacts | None = None
    notes: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what a reader of results must know
    modality: Text | None = None  # what made the pictures
    source: Url | None = None  # the page of the set, where its terms stand and where a person gets it
    uncertain: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what this manifest only believes
    shortcuts: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what gives a class away
    _home: Path | None = PrivateAttr(default=None)  # folder of the manifest's file, of a user's own

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._fits_kind()
        names = list(self.classes.values())
        if len(set(names)) < len(names):
            raise wrong("two labels have the same class name", "classes")
        refuse_other_names(self.roles, names, "roles")
        if "normal" not in self.roles.values():
            raise wrong("no class has the role 'normal'; anomalies are found by knowing the normal", "roles")
        for split, counts in self.counts.items():
            refuse_other_names(counts, names, "counts", split)
        for missing in {"train", "test"} - set(self.counts) if self.counts or not self._may_be_uncounted else ():
            raise wrong(f"the split '{missing}' is missing", "counts")
        if self.t_range[0] > self.t_range[1]:
            raise wrong(f"{list(self.t_range)} must be [low, high] with low below high", "t_range")
        if self.intensity and self.intensity[0] >= self.intensity[1]:
            raise wrong(f"{list(self.intensity)} must be [low, high] with low below high", "intensity")
        return self

    @property
    def _may_be_uncounted(self) -> bool:
        return self.kind in UNCOUNTED or {"train", "test"} <= set(self.images)

    @property
    def sizes(self) -> dict[Split, int]:
        """Images per split, as far as the manifest says."""
        return {split: sum(counts.values()) for split, counts in self.counts.items()} or self.images

    def _fits_kind(self) -> None:
        if self.kind not in KINDS:
            raise wrong(f"{self.kind!r} is not a kind of data set: {', '.join(KINDS)}", "kind")
        kind = KINDS[self.kind]
        for key in kind.needs:
            if getattr(self, key) is None:
                raise wrong(f"is missing; kind: {self.kind} needs it", key)
        for key in _KEYS_OF_KINDS:
            if getattr(self, key) and key not in kind.needs + kind.may_have:
                raise wrong(f"has no meaning with kind: {self.kind}", key)
        if self.phantom:
            self._fits_phantom(self.phantom)
        if self.kind == "cifar" and (self.image.size, self.image.channels) != (32, 3):
            raise wrong("CIFAR has 32 px and 3 channels", "image")
        if self.kind == "folder" and "class" not in (self.layout or ()):
            raise wrong("no level of the folders says the class", "layout")
        for split in ("val", "test") if self.recipe else ():
            if isinstance(shares := getattr(self.recipe, split), dict):
                refuse_other_names(shares, list(self.classes.values()), "recipe", split)

    def _fits_phantom(self, facts: PhantomFacts) -> None:
        if sorted(self.roles.values()) != ["anomalous", "normal"]:
            raise wrong("a phantom has exactly one normal and one anomalous class", "roles")
        if self.image.channels != 1:
            raise wrong("a phantom is grey: 1 channel", "image", "channels")
        try:
            facts.spec(self.image.size)
        except UsageError as error:
            raise wrong(error.what.rstrip("."), "phantom") from None

    def with_lesions(self, *, size: float | None = None, contrast: float | None = None) -> Self:
        """Return the manifest with lesions of another size (px) or contrast; only a phantom has any to dial."""
        wanted = {"lesion_size": size, "lesion_contrast": contrast}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not wanted:
            return self
        if self.phantom is None:
            raise UsageError(f"data.{min(wanted)} dials a phantom's lesions; {self.name!r} has real images.")
        facts = self.phantom.model_copy(update=wanted)
        facts.spec(self.image.size)  # refuses what cannot be drawn
        return self.model_copy(update={"phantom": facts})

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
        if self.root is None:
            return self._home
        return (self._home or Path()) / self.root

    def path_in(self, root: Path | str, place: str = "") -> Path:
        """Return where the data lie in ``root``, links followed; refuse a link that leads out of it."""
        place = place or self.place
        try:
            base = Path(root).resolve()
            path = (base / place).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
            raise DataError(f"the path {place!r} cannot be followed ({error}).", path=str(root)) from None
        if not path.is_relative_to(base):
            hint = "Set DIAWORK_DATA to the folder that really holds the file, or copy it there."
            raise DataError(f"{place!r} is a link to {str(path)!r}, outside the data root.", path=root, hint=hint)
        return path


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
        return _another_phantom(text)
    elif text in list_manifests():
        path = shipped("data_manifests") / f"{text}.yaml"
    else:
        hint = f"{did_you_mean(text, list_manifests())} Your own set: the path of its manifest.yaml."
        raise UsageError(f"unknown data set {text!a}.", hint=hint)
    manifest = _read(document_bytes(path, "manifest", list_manifests()), path).model_copy()
    manifest._home = path.absolute().parent if own else None
    return manifest


def _another_phantom(name: str) -> Manifest:
    """Return the manifest of one anatomy of the phantom with one sort of lesions, at their finest."""
    usual, (kind, lesion) = load_manifest("phantom"), PHANTOMS[name]
    size, contrast = phantom.FINEST[lesion]
    dialled = {"kind": kind, "lesion": lesion, "lesion_size": size, "lesion_contrast": contrast}
    facts = PhantomFacts.model_validate({"seed": 0} | dialled)
    notes = (f"One of {len(PHANTOMS)} anatomies and lesions, made to see where a recipe fails: {facts.describe()}.",)
    title = f"Phantom of {kind} with {lesion} lesions, synthetic"
    return usual.model_copy(update={"name": name, "title": title, "phantom": facts, "notes": notes})
