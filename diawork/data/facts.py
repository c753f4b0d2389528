"""The facts a manifest may state: names, sizes, splits and rules, each strictly typed."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from diawork.data.phantom import PhantomSpec
from diawork.data.strictyaml import StrictModel, wrong

Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)


def printable_text(text: str) -> str:
    """Refuse control characters and spaces around a text."""
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text without control characters or spaces around it")
    return text


def inside_root(path: str) -> str:
    """Refuse what could lead out of the data root on any system; symlinks are checked on opening."""
    if re.search(r'[\\:~$%*?"<>|]', path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("must be a plain path inside the data root (no '..', no absolute path, no ~, $ or \\)")
    return path


def plain_pattern(pattern: str) -> str:
    """Refuse patterns that take forever on some name: repeated groups, many repeats, and what is no pattern."""
    if re.search(r"(?<!\\)\)[*+{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > 4:
        raise ValueError("must repeat no group, and hold at most four of *, + and {}")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if not groups:
        raise ValueError("needs a group in parentheses around what names the patient")
    return pattern


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(printable_text)]
FileName = Annotated[str, Field(max_length=200), AfterValidator(printable_text), AfterValidator(inside_root)]
Url = Annotated[str, Field(max_length=500, pattern=r"^https://[^\s\\<>\"'`]+$"), AfterValidator(printable_text)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Label = Annotated[int, Field(ge=0, le=65_535)]
Step = Annotated[int, Field(ge=0, le=1_000_000)]
Role = Literal["normal", "anomalous", "unused"]  # images of an unused class are left out
Level = Literal["split", "class", "patient", "any"]


class ImageFacts(StrictModel):
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

    def share(self, split: str, class_name: str) -> float:
        """Return the share of a class's train images that goes to ``split``."""
        shares = getattr(self, split)
        return shares.get(class_name, 0.0) if isinstance(shares, dict) else shares


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


def refuse_other_names(by_class: dict[str, Any], classes: list[str], *at: str) -> None:
    """Refuse a mapping whose keys are not exactly the class names."""
    for name in by_class:
        if name not in classes:
            raise wrong(f"{name!r} is not one of the classes {', '.join(map(repr, classes))}", *at, name)
    for name in classes:
        if name not in by_class:
            raise wrong(f"the class {name!r} is missing", *at)
