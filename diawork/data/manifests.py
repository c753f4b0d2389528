"""Manifests: the facts about a data set, as strictly typed YAML; what is wrong is told with line and field."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from diawork.base.config import Bridge
from diawork.base.errors import DataError, UsageError, did_you_mean
from diawork.base.files import shipped
from diawork.data.phantom import PhantomSpec
from diawork.data.strictyaml import StrictModel, load_document, read_document, wrong

Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)


class Kind(NamedTuple):
    """A way in which a data set is kept: the keys of its manifest that it needs, and those that it may have."""

    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()


KINDS = {  # each is read by the room of its name in data.readers
    "npz": Kind(needs=("file",), may_have=("url", "md5", "intensity")),
    "phantom": Kind(needs=("phantom",)),
}
_KEYS_OF_KINDS = sorted({key for kind in KINDS.values() for key in (*kind.needs, *kind.may_have)})


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text without control characters or spaces around it")
    return text


def _inside_root(path: str) -> str:
    """Refuse what could lead out of the data root on any system; symlinks are checked on opening."""
    if re.search(r'[\\:~$%*?"<>|]', path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("must be a plain path inside the data root (no '..', no absolute path, no ~, $ or \\)")
    return path


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]
FileName = Annotated[str, Field(max_length=200), AfterValidator(_printable), AfterValidator(_inside_root)]
Url = Annotated[str, Field(max_length=500, pattern=r"^https://[^\s\\<>\"'`]+$"), AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Label = Annotated[int, Field(ge=0, le=65_535)]
Step = Annotated[int, Field(ge=0, le=1_000_000)]
Role = Literal["normal", "anomalous"]


class ImageFacts(StrictModel):
    """Size (px, square) and channels of the stored images."""

    size: Annotated[int, Field(ge=8, le=4096)]
    channels: Literal[1, 3]


class PhantomFacts(StrictModel):
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


class Manifest(StrictModel):
    """Everything the house knows about a data set before it opens it."""

    name: Name
    title: Text
    kind: str  # of KINDS
    licence: Text
    citation: Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_printable)]
    classes: Annotated[dict[Label, Text], Field(min_length=1, max_length=1000)]  # stored label → class name
    roles: dict[Text, Role]
    counts: dict[Split, dict[Text, Count]]  # images per split and class
    image: ImageFacts
    t_range: Annotated[tuple[Step, Step], Field(strict=False)]  # lowest and highest dissolving step
    bridge: Bridge  # image px ↔ model px
    file: FileName | None = None  # npz: inside the data root
    url: Annotated[tuple[Url, ...], Field(strict=False, max_length=10)] = ()  # npz: tried in order
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None  # npz: as published
    # npz: stored values shown as black and white; needed for anything but 8-bit images
    intensity: Annotated[tuple[float, float], Field(strict=False)] | None = None
    phantom: PhantomFacts | None = None
    notes: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()  # what a reader of results must know

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._fits_kind()
        names = list(self.classes.values())
        if len(set(names)) < len(names):
            raise wrong("two labels have the same class name", "classes")
        _refuse_other_names(self.roles, names, "roles")
        if "normal" not in self.roles.values():
            raise wrong("no class has the role 'normal'; anomalies are found by knowing the normal", "roles")
        for split, counts in self.counts.items():
            _refuse_other_names(counts, names, "counts", split)
        for missing in {"train", "test"} - set(self.counts):
            raise wrong(f"the split '{missing}' is missing", "counts")
        if self.t_range[0] > self.t_range[1]:
            raise wrong(f"{list(self.t_range)} must be [low, high] with low below high", "t_range")
        if self.intensity and self.intensity[0] >= self.intensity[1]:
            raise wrong(f"{list(self.intensity)} must be [low, high] with low below high", "intensity")
        return self

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

    def path_in(self, root: Path | str) -> Path:
        """Return where the file lies in ``root``, links followed; refuse a link that leads out of it."""
        try:
            base = Path(root).resolve()
            path = (base / str(self.file)).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
            raise DataError(f"the path {self.file!r} cannot be followed ({error}).", path=str(root)) from None
        if not path.is_relative_to(base):
            hint = "Set DIAWORK_DATA to the folder that really holds the file, or copy it there."
            raise DataError(f"{self.file!r} is a link to {str(path)!r}, outside the data root.", path=root, hint=hint)
        return path


def _refuse_other_names(by_class: dict[str, Any], classes: list[str], *at: str) -> None:
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
    # other facts may lie beside them (published numbers): a data set is what says its kind
    files = sorted(shipped("data_manifests").glob("*.yaml"))
    return [path.stem for path in files if re.search(r"^kind:", path.read_text("utf-8"), re.MULTILINE)]


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Return a shipped manifest by name, or a user's own by the path of its ``.yaml`` file."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        path = Path(text)
    elif text in list_manifests():
        path = shipped("data_manifests") / f"{text}.yaml"
    else:
        hint = f"{did_you_mean(text, list_manifests())} Your own set: the path of its manifest.yaml."
        raise UsageError(f"unknown data set {text!a}.", hint=hint)
    return load_document(Manifest, path, "manifest", list_manifests())[0]
