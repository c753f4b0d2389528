"""What every section of a config is made of: frozen values, their ranges, and knobs that joined later.

Nothing is turned into another type on the way: ``true`` is no 1, ``"0.1"`` no number and ``no`` no false.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from diawork.base.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def _whole(value: Any) -> Any:
    """Return a whole number written as 1e4, or made by numpy, as an int; everything else as it is."""
    whole = isinstance(value, Real) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole else value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _increasing(low: float, high: float, unit: str) -> AfterValidator:
    """Return the rule low ≤ bounds[0] ≤ bounds[1] ≤ high."""

    def rule(bounds: tuple) -> tuple:
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(f"must hold {low} ≤ low ≤ high ≤ {high} {unit}")
        return bounds

    return AfterValidator(rule)


Listed = Field(strict=False)  # a list will do for a tuple; its numbers stay strict
Whole = Annotated[int, BeforeValidator(_whole)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_no_truth)]
Count = Annotated[Whole, Field(ge=1)]
Factor = Annotated[Whole, Field(ge=1, le=64)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Area = Annotated[tuple[float, float], Listed, _increasing(0.01, 1, "of the area")]
Aspect = Annotated[tuple[float, float], Listed, _increasing(0.01, 100, "(width / height)")]
Shares = Annotated[tuple[float, float], Listed, _increasing(0, 1, "of the side")]
Strides = Annotated[tuple[Count, ...], Listed, Field(min_length=1, max_length=6)]  # of a network's stages
Stages = Annotated[tuple[Count, ...], Listed, Field(max_length=6)]  # strides of a network's stages; (): its head
Weight = Annotated[float, Field(ge=0)]
Steps = Annotated[tuple[Whole, Whole], Listed, _increasing(0, 10**6, "steps")]
LATER: dict[str, Any] = {"later": True}  # the mark of a knob that joined after runs had been made


def later(default: Any, **limits: Any) -> Any:
    """Return a knob that joined after runs had been made: at its default it is no part of a run's identity."""
    return Field(default, json_schema_extra=LATER, **limits)


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Build ``model`` from plain values; the first thing wrong becomes one ``UsageError``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and isinstance(first["input"], dict):  # of several keys, which it names
            raise UsageError(f"{first['msg'].removeprefix('Value error, ')}.") from None
        field = ".".join(str(part) for part in first["loc"])
        value = f" (given: {first['input']!r:.80})"
        raise UsageError(f"{first['msg'].removeprefix('Value error, ')}{value}.", field=field) from None


class Frozen(BaseModel):
    """A section of a config, or a whole one."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings")

    def identity(self) -> dict[str, Any]:
        """Return the plain values that tell one piece of work from another; no new knob orphans a finished run."""
        plain = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.json_schema_extra == LATER and value == field.default:
                del plain[name]
            elif isinstance(value, Frozen):
                plain[name] = value.identity()
        return plain

    def but(self, **changes: Any) -> Self:
        """Return a validated copy with other values."""
        return validated(type(self), dict(iter(self)) | changes)
