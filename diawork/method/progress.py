"""How a long work tells how far it is: a bar of its own, none, or a part of one bar over many stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tqdm.auto import tqdm


class Bar(Protocol):
    """What a stage tells its steps to."""

    def update(self, n: int = 1) -> Any:
        """Count n more steps."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True, **values: Any) -> None:
        """Show values beside the steps."""


Stages = Callable[..., AbstractContextManager[Bar]]  # (total=, initial=, desc=): what watches several stages
Bars = bool | Stages


def stage(progress: Bars, *, total: int, desc: str, initial: int = 0) -> AbstractContextManager[Bar]:
    """Return the bar of a stage of ``total`` steps, ``initial`` of which are done."""
    if callable(progress):
        return progress(total=total, initial=initial, desc=desc)
    return tqdm(total=total, initial=initial, desc=desc, disable=not progress)
