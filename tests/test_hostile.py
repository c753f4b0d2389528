"""Hostile input: checkpoints, names and texts made by someone who wishes us ill do nothing but an error."""

import contextlib
import io
import json
import os
import pickle
import re
import tarfile
import unicodedata
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import save as serialize

from diawork.base.checkpoints import RECORD, Checkpoint, load_checkpoint, named, optimizer_state, save_checkpoint
from diawork.base.config import DiffusionConfig
from diawork.base.errors import CheckpointError, DiaworkError, printable
from diawork.base.loop import restore
from diawork.cli.main import main
from diawork.data.manifests import load_manifest
from diawork.detectors.dia import CSI
from diawork.method.ddpm import DDPM, build_adam, build_ddpm, denoising_loss, load_ddpm, save_ddpm
from diawork.report import sections
from diawork.report.page import write_html
from diawork.report.pictures import Pictures
from diawork.runs.presets import preset
from tests.builders import make_run
from tests.conftest import make_images
from tests.toys import as_format_1

# --- checkpoints -------------------------------------------------------------------------------------

TINY = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=8, steps=2, batch_size=4)


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def as_zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name.replace('__', '/').replace('_', '.')}", data)
    return buffer.getvalue()


def as_tar(data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(body, data=b"\0" * 64, length=None):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape, start=0, end=64, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


PICKLE = pickle.dumps(Evil())
FILES = {
    "a pickle": PICKLE,
    "a torch zip": as_zip(data_pkl=PICKLE, version=b"3\n"),
    "TorchScript": as_zip(code__evil_py=b"import os", data_pkl=PICKLE, constants_pkl=PICKLE, version=b"3\n"),
    "a legacy tar": as_tar(PICKLE),
    "an endless header": header({"w": entry([16])}, length=2**60),
    "a header beyond the file": header({"w": entry([16])}, length=10_000),
    "a shape of 4 TB": header({"w": entry([10**12])}),
    "a negative shape": header({"w": entry([-4, -4])}),
    "an overflowing shape": header({"w": entry([2**62, 8])}),
    "offsets beyond the file": header({"w": entry([2**20], 0, 2**22)}),
    "two tensors in one place": header({"w": entry([16]), "v": entry([16])}),
    "an unknown dtype": header({"w": entry([16], dtype="PICKLE")}),
    "a header 100,000 deep": header(b'{"w":' * 100_000),
    "not even text": header(b"\xff\xfe" * 50),
    "nothing": b"",
}


def reseal(path, tensors=None, **changes):
    """Do what an attacker can: put ``tensors`` under the name, with a record that vouches for them."""
    found = load_checkpoint(path)
    parts = {"spec": found.spec, "state": found.state} | changes
    tensors = found.tensors if tensors is None else tensors
    save_checkpoint(path, {name: value.clone() for name, value in tensors.items()}, **parts)


@pytest.fixture
def ddpm(tmp_path):
    """A saved model, as a place to put hostile files in; its tensors and its path."""
    data = {"name": "noise", "identity": "x", "bridge": "pad", "images": 4}
    save_ddpm(tmp_path / "model", DDPM(build_ddpm(TINY), build_ddpm(TINY), TINY, data))
    path = tmp_path / "model" / "ddpm"
    return load_checkpoint(path).tensors, path


@pytest.fixture(params=["as it is", "unsafe loading forced"])
def environment(request, monkeypatch):
    if request.param != "as it is":
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def refused(path, words="."):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_ddpm(path.parent, TINY)
    assert path.name in str(caught.value) and not os.path.exists("pwned")


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused_without_side_effect(ddpm, environment, name):
    path = ddpm[1]
    as_format_1(path, FILES[name])  # with a record beside it that vouches for it
    refused(path, "not a safetensors file|belongs to something else")
    path.with_suffix(".json").unlink()
    refused(path, "not a safetensors file|holds no record")


@pytest.mark.parametrize("record", [PICKLE, b"[" * 100_000, b"9" * 10_000, b'{"format": 1}', b'{"format": 1e999}'])
def test_hostile_records_are_refused(ddpm, record):
    tensors, path = ddpm
    path.with_suffix(".safetensors").write_bytes(serialize(tensors, {RECORD: record.decode("latin-1")}))
    refused(path, "none of ours|of format|not a safetensors file")
    path.with_suffix(".safetensors").write_bytes(serialize(tensors))
    path.with_suffix(".json").write_bytes(record)
    refused(path)


TENSORS = {
    "wrong dtype": (lambda t, k: t | {k: t[k].half()}, "wanted 'float32"),
    "wrong shape": (lambda t, k: t | {k: t[k].flatten()}, r"in file 'float32 \(\d+,\)'"),
    "extra tensor": (lambda t, k: t | {"raw.backdoor": t[k]}, "raw.backdoor: in file"),
    "stranger": (lambda t, k: t | {"\x1b[31mred": t[k]}, r"'\\x1b\[31mred' does not belong here"),
    "missing tensor": (lambda t, k: {n: v for n, v in t.items() if n != k}, r"wanted 'float32 \(8, 1, 7, 7\)'"),
    "not a number": (lambda t, k: t | {k: torch.full_like(t[k], torch.nan)}, "not finite"),
    "exotic dtype": (lambda t, k: t | {k: t[k].to(torch.float8_e5m2)}, "safetensors|wanted 'float32"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_resealed_tensors_of_another_kind_are_refused(ddpm, name):
    (tensors, path), (change, words) = ddpm, TENSORS[name]
    reseal(path, change(tensors, "raw.model.init_conv.weight"))
    refused(path, words)


def altered(path, **changes):
    """Return the record's part ``spec`` or ``state`` with changes."""
    found = load_checkpoint(path)
    return {part: getattr(found, part) | new for part, new in changes.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": {"beta_schedule": "linear"}}, "beta_schedule: in file 'linear', wanted 'cosine'"),
        ({"spec": {"value_range": [0, 1]}}, r"value_range: in file \[0, 1\], wanted \[-1, 1\]"),
        ({"state": {"config": {"timesteps": 10**9, "dim": "x"}}}, "its config is not one of ours"),
        ({"state": {"config": TINY.model_dump() | {"timesteps": 10}}}, "timesteps"),
        ({"state": {"losses": "many"}}, "'losses' is str, wanted list"),
        ({"state": {"data": None}}, "'data' is NoneType, wanted dict"),
    ],
)
def test_resealed_records_that_lie_are_refused(ddpm, changes, words):
    reseal(ddpm[1], **altered(ddpm[1], **changes))
    refused(ddpm[1], words)


def test_a_resumed_optimiser_must_fit_its_parameters(tmp_path):
    def parts():
        model = build_ddpm(TINY)
        return {"raw": model}, {"optimizer": build_adam(model, TINY)}

    modules, optimizers = parts()
    denoising_loss(modules["raw"], torch.rand(4, 1, 8, 8), torch.arange(4), torch.rand(4, 1, 8, 8)).backward()
    optimizers["optimizer"].step()
    tensors = named(raw=modules["raw"].state_dict(), optimizer=optimizer_state(optimizers["optimizer"]))
    lies = [
        {"optimizer.0.exp_avg": torch.zeros(1)}, {"optimizer.999.exp_avg": torch.zeros(1)},
        {"optimizer.0.step": torch.tensor(1)}, {"optimizer.0.exp_avg_sq": None}, {"optimizer.x": torch.zeros(1)},
    ]  # fmt: skip
    for lie in [{}, *lies]:
        changed = {k: v for k, v in (tensors | lie).items() if v is not None}
        with pytest.raises(CheckpointError, match=next(iter(lie))) if lie else contextlib.nullcontext():
            restore(Checkpoint(changed, {}, {}, {}, tmp_path), *parts())


def test_a_hostile_detector_is_refused(tmp_path):
    cfg, images = preset("smoke").override({"detector": "csi", "train.epochs": 1}), make_images(8)
    detector = CSI(None, cfg).fit(images, folder=tmp_path, progress=False)
    tensors = load_checkpoint(tmp_path / "detector").tensors
    lies = {
        "bank.axes": torch.rand(4, 8, 3),
        "bank.weight_shift": torch.rand(5),
        "healthy": torch.rand(8),
        "bank.x": 1.0,
        "history": torch.zeros(3, dtype=torch.uint8),
    }
    for name, lie in lies.items():
        reseal(tmp_path / "detector", tensors | {name: torch.as_tensor(lie)})
        with pytest.raises(CheckpointError, match=name):
            CSI.load(tmp_path)
    reseal(tmp_path / "detector", tensors)
    assert np.array_equal(CSI.load(tmp_path).anomaly_scores(images), detector.anomaly_scores(images))
    reseal(tmp_path / "detector", spec=detector.spec | {"config": {"seed": "x"}})
    with pytest.raises(CheckpointError, match="its config is not one of ours"):
        CSI.load(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"(?s)belongs to something else.*config\.detector: in file .*and \d+ more"
    ):
        CSI(None, cfg).fit(images, folder=tmp_path)


# --- the report --------------------------------------------------------------------------------------

PAYLOADS = [
    "<script>alert(1)</script>", "<SCRIPT SRC=//evil.example/x.js></SCRIPT>", "<scr<script>ipt>alert(1)</script>",
    "</title><script>alert(1)</script>", "</style><script>alert(1)</script>", "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<img src='x'\nonerror='alert(1)'>",
    '"><img src=x onerror=alert(1)>', "'><img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='", "` onclick=alert(1) `", "<svg onload=alert(1)>", "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>", "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<math href='javascript:alert(1)'>x</math>", "<body onload=alert(1)>", "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>", "<object data=javascript:alert(1)></object>",
    "<embed src=//evil.example/x.swf>", "<a href='javascript:alert(1)'>x</a>", "<a href='java\tscript:alert(1)'>x</a>",
    "<a href=' &#106;avascript:alert(1)'>x</a>", "<form action=//evil.example><button>x</button></form>",
    "<input onfocus=alert(1) autofocus>", "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<link rel=stylesheet href=//evil.example/x.css>", "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>", "<style>@import '//evil.example/x.css';</style>",
    "<div style='background:url(//evil.example/x.png)'>x</div>", "<img src=//evil.example/x.png>",
    "{{ 7*7 }}{% include '/etc/passwd' %}",
    "{{ ''.__class__.__mro__ }}<noscript><p title='</noscript><img src=x onerror=1>'>",
    "\u202e\x1b]8;;https://evil.example\x07x\x00<marquee onstart=alert(1)>",
]  # fmt: skip


class Danger(HTMLParser):
    """Everything in a page that could run, load or lead outside."""

    FORBIDDEN = {"script", "iframe", "object", "embed", "link", "base", "form", "svg", "math", "video", "source",
                 "audio", "frame", "frameset", "applet", "marquee", "noscript", "template", "portal"}  # fmt: skip
    LEADING = {"src", "href", "srcset", "action", "formaction", "data", "xlink:href", "poster", "background", "srcdoc",
               "ping", "cite", "style", "content"}  # fmt: skip

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.within = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.within = tag
        self.found += [tag] if tag in self.FORBIDDEN else []
        for name, value in attrs:
            value = re.sub(r"[\s\x00-\x20]", "", value or "").lower()
            leads = name in self.LEADING and re.search(r"//|script:|url\(|refresh|;url=", value)
            pictured = name in ("src", "href") and value.startswith(("data:image/png;base64,", "./", "#"))
            if name.startswith("on") or (leads and not pictured) or "javascript:" in value:
                self.found.append(f"{tag} {name}={value[:80]}")

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        self.text += data
        self.found += re.findall(r"@import|url\(|</", data) if self.within == "style" else []


def of_name(root, monkeypatch):
    groups = [" ".join(PAYLOADS[i : i + 8]) for i in range(0, 40, 8)]
    titles = [load_manifest("phantom").model_copy(update={"title": g, "citation": g, "licence": g}) for g in groups]
    titled = dict(zip(groups, titles, strict=True))
    monkeypatch.setattr(sections, "load_manifest", titled.get)
    for i, group in enumerate(groups):
        rename(make_run(root, dataset=f"set{i}"), "result.json", dataset=group)


def of_classes(root, monkeypatch):
    classes, counts = dict(enumerate(PAYLOADS)), {split: dict.fromkeys(PAYLOADS, 1) for split in PAYLOADS}
    facts = load_manifest("phantom").model_copy(
        update={"classes": classes, "counts": counts, "roles": {p: p for p in PAYLOADS}}
    )
    monkeypatch.setattr(sections, "load_manifest", lambda _: facts)
    make_run(root)


def of_files(root, monkeypatch):
    for i, payload in enumerate(PAYLOADS):
        name = payload.replace("/", "∕").replace("\x00", "")
        make_run(root, seed=i % 9, settings={"i": i}).rename(root / f"{i}{name}"[:80])


def of_errors(root, monkeypatch):
    make_run(root)
    for i, payload in enumerate(PAYLOADS):
        (root / f"f{i}").mkdir()
        (root / f"f{i}" / "status.json").write_text(json.dumps({"state": "failed", "error": payload}))


def of_parameters(root, monkeypatch):
    make_run(root, "DIA", settings=dict.fromkeys(PAYLOADS, "x") | {f"p{i}": p for i, p in enumerate(PAYLOADS)})
    for payload in PAYLOADS:  # those that differ become part of a row's name
        make_run(root, "CSI", settings={"loss.mask": payload}, selection=payload)


def of_notes(root, monkeypatch):
    folder = make_run(root)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["notes"], config["versions"] = PAYLOADS, dict(zip(PAYLOADS, PAYLOADS, strict=True))
    (folder / "config.json").write_text(json.dumps(config))


def rename(folder, file, **changes):
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


@pytest.mark.parametrize("place", [of_name, of_classes, of_files, of_errors, of_parameters, of_notes])
def test_forty_payloads_in_a_report_are_text(tmp_path, monkeypatch, place):
    monkeypatch.setattr(
        sections, "draw_pictures", lambda *_: Pictures()
    )  # pixels; drawn with such names in test_report
    monkeypatch.setattr("diawork.report.page.draw_losses", lambda *_: None)
    (tmp_path / "runs").mkdir()
    place(tmp_path / "runs", monkeypatch)
    first = PAYLOADS[0]
    page = write_html(tmp_path / "runs", tmp_path / "report.html", title=first, asked=first).read_text("utf-8")
    found = Danger(page)
    assert found.found == []
    letters = [re.sub(r"\W", "", text) for text in (found.text, *(printable(p, keep="\n") for p in PAYLOADS))]
    shown = sum(payload in letters[0] for payload in letters[1:])
    assert len(PAYLOADS) == 40 and shown >= 38  # they are there, as text; as file names two are cut


def test_the_detector_of_danger_finds_the_payloads_where_they_are_not_escaped():
    caught = sum(bool(Danger(f'<p title="{p}">{p}</p>').found) for p in PAYLOADS)
    assert caught >= 36


# --- the terminal ------------------------------------------------------------------------------------

NAMES = ["\x1b[31mred\x1b[0m", "\x1b]8;;https://evil.example\x07link", "\u202egnp.exe", "a\rb", "bell\x07", "\x9b2J",
         "a\nerror[X] fake", "zero\u200bwidth", "tab\tbed"]  # fmt: skip


def harmless(text):
    """Say whether no character of a text steers a terminal."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@pytest.fixture
def call(capsys):
    def run(*argv):
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "argv",
    [
        ["data", "show", "{}"], ["data", "show", "{}/x.yaml"], ["run", "--dataset", "{}"], ["run", "--preset", "{}"],
        ["run", "--methods", "{}"], ["run", "--set", "{}=1"], ["run", "--set", "loss.mask={}"], ["run", "--{}"],
        ["data", "show", "pneumoniamnist", "--data-root", "{}"], ["report", "{}"], ["notebook", "{}"], ["{}"],
        ["run", "--device", "{}"], ["run", "--precision", "{}"],
    ],
)  # fmt: skip
def test_names_in_errors_do_not_steer_the_terminal(call, argv, name):
    code, said = call(*(word.replace("{}", name) for word in argv))
    assert code in (2, 3, 5) and harmless(said)
    assert not re.search(r"^error\[X\]", said, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_do_not_steer_the_terminal(call, tmp_path, monkeypatch, name):
    monkeypatch.delenv("DIAWORK_DATA", raising=False)
    name = name.replace("/", "")
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.npz").write_bytes(b"")
    (folder / "pneumoniamnist.npz").write_bytes(b"no data")
    assert harmless(call("doctor", "--data-root", folder)[1])
    code, said = call("data", "show", "pneumoniamnist", "--data-root", folder)
    assert code == 3 and harmless(said)
    (folder / "own.yaml").write_text("name: x\nsurprise: 1\n")
    code, said = call("data", "show", folder / "own.yaml")
    assert code == 2 and harmless(said) and "surprise" in said


def test_a_shown_data_set_does_not_steer_the_terminal(call, monkeypatch):
    monkeypatch.setattr("diawork.data.images.describe", lambda _: "".join(NAMES))
    code, said = call("data", "show", "phantom")
    assert code == 0 and harmless(said) and r"\x1b[31mred" in said


def test_a_bug_with_a_hostile_text_is_harmless_too(call, monkeypatch, tmp_path):
    monkeypatch.setattr("diawork.data.manifests.list_manifests", lambda: {}["\x1b[31m\udc80"])
    code, said = call("data", "list")
    assert code == 1 and harmless(said) and "udc80" in next(tmp_path.glob("crash-*")).read_text()


def test_out_of_memory_is_a_resource_error(call, monkeypatch):
    def full():
        raise MemoryError("tried to allocate 3 GB")

    monkeypatch.setattr("diawork.data.manifests.list_manifests", full)
    code, said = call("data", "list")
    assert code == 5 and "out of memory" in said and "batch_size" in said


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_harmless_as_text(name):
    text = str(DiaworkError(f"bad {name}", path=name, field=name, hint=name))
    assert harmless(text) and "\n" not in text.split("bad")[0]
