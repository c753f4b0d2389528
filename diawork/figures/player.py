"""A slider over pictures that works in a page without kernel, network or script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from markupsafe import Markup

from diawork.base.errors import UsageError

MAX_FRAMES = 60
# Radio buttons are the slider: arrow keys move it, a screen reader reads it, and the page needs no script.
_LOOK = Markup("""
.player{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));row-gap:.15rem;margin:0}
.player .frames{grid-column:1/-1;grid-row:1}
.player .frames img{display:none;width:100%;height:auto}
.player input{grid-row:2;appearance:none;margin:0;height:1.5rem;width:100%;position:relative;cursor:pointer;
background:linear-gradient(var(--track,#b9c0c8) 0 0) center/100% 3px no-repeat}
.player input::before{content:"";position:absolute;left:50%;top:50%;width:9px;height:9px;border-radius:50%;
transform:translate(-50%,-50%);background:var(--track,#b9c0c8)}
.player input:hover::before{width:13px;height:13px}
.player input:checked::before{width:19px;height:19px;background:var(--accent,#0072b2)}
.player input:focus-visible{outline:2px solid var(--accent,#0072b2);outline-offset:2px;border-radius:4px}
.player label{grid-row:3;text-align:center;font-size:.8rem;font-variant-numeric:tabular-nums;cursor:pointer}
""")


def player_html(frames: Sequence[bytes], labels: Sequence[object], caption: str, *, start: int = 0) -> Markup:
    """Return HTML that shows one of ``frames`` (PNG bytes), chosen on a slider whose stops are ``labels``.

    The fragment is self-contained (images as ``data:`` URLs, its own style) and escapes what it is given.
    """
    if not 0 < len(frames) == len(labels) <= MAX_FRAMES:
        raise UsageError(
            f"a player needs 1 to {MAX_FRAMES} frames and as many labels, not {len(frames)}, {len(labels)}."
        )
    name = "p" + hashlib.sha256(b"".join(frames) + caption.encode()).hexdigest()[:10]
    rules = [f"#{name}-{i}:checked~.frames img:nth-child({i + 1}){{display:block}}" for i in range(len(frames))]
    stops, texts, images = Markup(), Markup(), Markup()
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        checked = Markup(" checked") if i == start else ""
        stop = Markup('<input type="radio" name="{0}" id="{0}-{1}" aria-label="{2}"{3}>')
        stops += stop.format(name, i, label, checked)
        texts += Markup('<label for="{}-{}">{}</label>').format(name, i, label)
        source = base64.b64encode(frame).decode("ascii")
        images += Markup('<img alt="{}: {}" src="data:image/png;base64,{}">').format(caption, label, source)
    whole = Markup(
        '<style>{}{}</style><div class="player" role="radiogroup" aria-label="{}" style="--n:{}">{}{}'
        '<div class="frames">{}</div></div>'
    )
    return whole.format(_LOOK, Markup("\n".join(rules)), caption, len(frames), stops, texts, images)
