"""What every section of a config is made of: frozen values, their ranges, and knobs that joined later."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
LATER: dict[str, Any] = {"later": True}  # the mark of a knob that joined after runs had been made


def later(default: Any, **limits: Any) -> Any:
    """Return a knob that joined after runs had been made: at its default it is no part of a run's identity."""
    return Field(default, json_schema_extra=LATER, **limits)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings")

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
