"""Manifests: shipped facts, YAML 1.2 scalars, hostile input, and a fuzzer against a second opinion."""

import random
import re
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diawork.base import files
from diawork.base.errors import DataError, UsageError
from diawork.base.files import shipped
from diawork.data.datasets import load
from diawork.data.documents import MAX_BYTES, parse_yaml
from diawork.data.manifests import PHANTOMS, Manifest, check_manifest, list_manifests, load_manifest

TEXT = (shipped("data_manifests") / "pneumoniamnist.yaml").read_text(encoding="utf-8")


def refused(text, *words):
    """Check that ``text`` is refused in one sentence that holds ``words``."""
    with pytest.raises(UsageError) as caught:
        check_manifest(text, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml") and "\n" not in message and message.isprintable()
    for word in words:
        assert word in message, message


def changed(old, new):
    assert old in TEXT
    return TEXT.replace(old, new, 1)


# --- the shipped facts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["breastmnist", "phantom", "pneumoniamnist"])
def test_shipped_manifests_carry_their_own_name_and_a_licence(name):
    manifest = load_manifest(name)
    assert name in list_manifests() and manifest.name == name and manifest.licence


def test_breastmnist_goes_by_name_because_label_0_is_malignant():
    breast = load_manifest("breastmnist")
    assert breast.roles[breast.classes[0]] == "anomalous" and breast.roles[breast.classes[1]] == "normal"
    assert {split: list(c.values()) for split, c in breast.counts.items()} == {
        "train": [147, 399], "val": [21, 57], "test": [42, 114]}  # fmt: skip
    assert breast.md5 == "750601b1f35ba3300ea97c75c52ff8f6"


def test_pneumoniamnist_facts():
    pneumonia = load_manifest("pneumoniamnist")
    assert pneumonia.counts["train"] == {"normal": 1214, "pneumonia": 3494}
    assert pneumonia.t_range == (30, 130) and pneumonia.bridge == "pad"
    assert pneumonia.url == ("https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",)


def test_manifests_inside_an_installed_package_come_first(tmp_path, monkeypatch):
    package = tmp_path / "diawork"
    (package / "_manifests").mkdir(parents=True)
    (package / "_manifests" / "own.yaml").write_text(changed("name: pneumoniamnist", "name: own"))
    monkeypatch.setattr(files, "PACKAGE", package)
    (package / "_manifests" / "numbers.yaml").write_text("schema: 1")
    assert list_manifests() == ["own"] and load_manifest("own").name == "own"


def test_own_manifest_by_path(tmp_path):
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert load_manifest(tmp_path / "mine.yaml") == load_manifest(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("name", "word"),
    [("pneumonia", "Did you mean 'pneumoniamnist'"), ("no/such.yaml", "no such file"), ("../x", "cannot be read"),
     ("a\0.yaml", "cannot be read"), ("/dev/zero.yaml", "cannot be read"), ("", "unknown data set"), (5, "unknown")],
)  # fmt: skip
def test_unknown_names_and_paths(name, word):
    with pytest.raises(UsageError, match=re.escape(word)):
        load_manifest(name)


def test_models_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_manifest("breastmnist").name = "other"


# --- YAML ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scalar", "value"),
    [("1e-4", 1e-4), ("no", "no"), ("yes", "yes"), ("on", "on"), ("0123", 123), ("12:30:45", "12:30:45"),
     ("2001-01-01", "2001-01-01"), ("1_000", "1_000"), ("0o17", 15), ("0x1F", 31), ("true", True), ("~", None),
     ("-7", -7), (".5", 0.5), ("+.inf", float("inf")), ("<<", "<<"), ("=", "="), ('"5"', "5"), ("", None)],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(scalar, value):
    read = parse_yaml(f"a: {scalar}", "x")[0]["a"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("licence:", "licens:", ["line 9", "licens: unknown key", "Did you mean 'licence'"]),
     ("size: 28", "sise: 28", ["image.sise", "Did you mean 'size'"]),
     ("train:", "trian:", ["counts.trian", "Did you mean 'train'"]),
     ("bridge: pad", "", ["bridge: this key is missing"]),
     ("size: 28", "size: 28.5", ["28.5 (float)"]),
     ("size: 28", "size: true", ["True (bool)"]),
     ("size: 28", 'size: "28"', ["'28' (str)"]),
     ("size: 28", "size: " + "9" * 5000, ["more than 20 digits"]),
     ("size: 28", "size: .nan", ["nan (float)"]),
     ("30, 130", "130, 30", ["t_range", "low below high"]),
     ("30, 130", "30", ["t_range"]),
     ("30, 130", "no, 130", ["'no' (str)"]),
     ("  0: normal", "  no: normal", ["classes.no"]),
     ("  0: normal", "  true: normal", ["a key must be text or a whole number"]),
     ("  1: pneumonia", "  1: normal", ["two labels have the same class name"]),
     ("  normal: normal", "  normal: anomalous", ["no class has the role 'normal'"]),
     ("  pneumonia: anomalous", "", ["roles", "the class 'pneumonia' is missing"]),
     ("normal: 1214", "norml: 1214", ["counts.train", "'norml' is not one of the classes"]),
     ("normal: 1214", "normal: -1", ["counts.train.normal"]),
     ("  test:", "  #", ["the split 'test' is missing"]),
     ("28209", "X8209", ["md5"]),
     ("https://", "http://", ["url.0"]),
     ("CC BY 4.0", '"a\\u202eb"', ["printable"]),
     ("CC BY 4.0", '"\\ud800"', ["licence"]),
     ("CC BY 4.0", "a\x1b[31m", ["x1b"]),
     ("CC BY 4.0", '"\\U00110000"', ["not valid YAML"]),
     ("kind: npz", "kind: phantom\nphantom: {kind: oct, lesion: spot, lesion_size: 3, lesion_contrast: 1, seed: 0}",
      ["file: has no meaning"]),
     ("file: pneumoniamnist.npz", "", ["file", "needs it"]),
     ("kind: npz", "kind: phantom", ["phantom: is missing"]),
     ("bridge: pad", "bridge: pad\nbridge: pad", ["line 26", "'bridge' appears twice"]),
     ("  0: normal", "  0: normal\n  0x0: normal", ["appears twice"]),
     ("CC BY 4.0", "&a CC", ["anchors"]),
     ("CC BY 4.0", "*a", ["aliases"]),
     ("CC BY 4.0", "!!python/name:os.system", ["tags"]),
     ("name: p", "<<: {a: b}\nname: p", ["unknown key '<<'"]),
     ("\nt_range", "\n---\nt_range", ["another document"]),
     ("[30, 130]", "[" * 50, ["nested deeper than 20"])],
)  # fmt: skip
def test_one_sentence_with_line_field_and_hint(old, new, words):
    refused(changed(old, new), *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "empty"), ("# only words", "empty"), ("[a]", "a list at the top"), ("a", "a str at the top"),
     (b"a: \0", "line 1"), ("\ufeff" + TEXT, "byte-order mark"), (TEXT.encode("utf-16"), "not UTF-8"),
     ("licence: é".encode("latin-1"), "not UTF-8"), ("x" * (MAX_BYTES + 1), "larger than"), ("é" * 600_000, "larger"),
     ("a: [" * 20_000, "nested"), ("a: b\n" * 90_000, "entries"), ("%YAML 9" + "9" * 6000 + ".1\n--- a", "YAML"),
     ("a: &a [x]\nb: &b [*a, *a]", "anchors"), ("? [a]\n: b", "a key must be"), ("a: 'x", "unexpected end")],
)  # fmt: skip
def test_files_that_are_no_manifests_are_refused_quickly(content, word):
    start = time.process_time()
    refused(content, word)
    assert time.process_time() - start < 1


def test_hostile_file_names_are_escaped():
    with pytest.raises(UsageError) as caught:
        check_manifest("a", "x\x1b[31m\n.yaml")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_every_anatomy_has_every_sort_of_lesions_as_a_data_set_of_its_own():
    made = {name: load_manifest(name) for name in PHANTOMS}
    assert len(made) == 9 and all(manifest.name == name for name, manifest in made.items())
    assert len({load(name).test.identity for name in ("phantom_lung_spot", "phantom_lung_ring", "phantom")}) == 3
    assert load("phantom_oct_twist").test.identity == load("phantom").test.identity


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("lesion_size: ", "lesion_size: 5", ["phantom", "half the image"]), ("size: 32", "size: 8", ["phantom", "size=8"]),
     ("channels: 1", "channels: 3", ["image.channels", "grey"]), ("seed: 0", "sead: 0", ["Did you mean 'seed'"]),
     ("  lesion: anomalous", "  lesion: normal", ["one normal and one anomalous"]), ("kind: oct", "kind: ct", ["'ct'"]),
     ("bridge:", "file: x.npz\nbridge:", ["file: has no meaning"]), ("lesion_contrast: ", "lesion_contrast: 9", ["9"])],
)  # fmt: skip
def test_phantom_facts_are_checked(old, new, words):
    text = (shipped("data_manifests") / "phantom.yaml").read_text(encoding="utf-8")
    assert old in text
    refused(text.replace(old, new, 1), *words)


# --- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../x.npz", "a/../../x", "/etc/passwd", "~/x", "a\\b", "\\\\host\\x", "C:/x", "//host/x",
     "a//b", "./x", "a/./b", "''", ".", "..", "a/", '"a\\0b"', '"a\\nb"', "' a'"],
)  # fmt: skip
def test_paths_out_of_the_data_root_are_refused(path):
    refused(changed("file: pneumoniamnist.npz", f"file: {path}"), "file")


@given(st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "~", "C:", "$X", ""])).map("/".join))
@settings(max_examples=100, deadline=None)
def test_no_accepted_path_leaves_the_root(path):
    try:
        manifest = Manifest.model_validate(load_manifest("pneumoniamnist").model_dump() | {"file": path})
    except ValueError:
        return
    assert str(manifest.path_in("/data/folder")).startswith("/data/folder/")


def test_links_out_of_the_root_are_refused_on_opening(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "pneumoniamnist.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(DataError, match="outside the data root"):
        load_manifest("pneumoniamnist").path_in(root)
    (root / "breastmnist.npz").symlink_to(root / "breastmnist.npz")
    with pytest.raises(DataError, match="cannot be followed"):
        load_manifest("breastmnist").path_in(root)


def test_a_link_inside_the_root_and_a_linked_root_are_fine(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert load_manifest("breastmnist").path_in(tmp_path / "link") == tmp_path / "root" / "breastmnist.npz"


# --- fuzzing ---------------------------------------------------------------------------------------------

NASTY = ["&a ", "*a", "!!str ", "!x ", "<<: ", "---\n", "...\n", "\t", "%YAML 1.1\n", "? ", "|", ">-\n", "[", "{",
         "'", '"\\x', "\0", "\r", "1e9", "-1", "no", "null", "~", "../", "0x", "\u2028", ": ", "#", "é", "\n  ",
         "${X}"]  # fmt: skip


def mutated(text, rng):
    """Return ``text`` with one to four random injuries."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, at + rng.choice([1, 2, 8, 40]))
        middle = rng.choice(["", text[at:end] * 2, rng.choice(NASTY), text[at:end][::-1], chr(rng.randrange(1, 300))])
        text = text[:at] + middle + text[end:]
    return text


def generated(rng):
    """Return a manifest in which one to three facts have a random value or name."""
    values = load_manifest(rng.choice(list_manifests())).model_dump(mode="json")
    for _ in range(rng.randint(1, 3)):
        place = rng.choice([values] + [v for v in values.values() if isinstance(v, dict)])
        if place:
            old = rng.choice(list(place))
            new = rng.choice([None, True, -1, 0, 1.5, 10**9, "", "x", "no", [], {}, [1, 2], {"a": 1}, "../x", "npz"])
            place[rng.choice([old, f"{old}x"])] = new
    return yaml.safe_dump(values)


def assert_legal(text, manifest):
    """Judge an accepted manifest by a second opinion that shares no code with the schema."""
    events = list(yaml.parse(text, yaml.BaseLoader))
    assert not any(getattr(e, "anchor", None) or getattr(e, "tag", None) for e in events)
    top = [key.value for key, _ in yaml.compose(text, yaml.BaseLoader).value]
    assert len(top) == len(set(top)) and set(top) <= set(Manifest.model_fields)
    names = set(manifest.classes.values())
    assert set(manifest.roles) == names and set(manifest.roles.values()) <= {"normal", "anomalous", "unused"}
    assert "normal" in manifest.roles.values() and set(manifest.counts) <= {"train", "val", "test"}
    assert {"train", "test"} <= set(manifest.sizes) or manifest.kind in ("folder", "table", "splitlist")
    assert all(set(counts) == names and min(counts.values()) >= 0 for counts in manifest.counts.values())
    assert 0 <= manifest.t_range[0] <= manifest.t_range[1] and manifest.bridge in ("pad", "resize", "none")
    assert all(type(label) is int for label in manifest.classes) and manifest.image.channels in (1, 3)
    places = [place for place in (manifest.file, manifest.folder) if place is not None]
    assert (places or manifest.kind == "phantom") and not {p for s in places for p in s.split("/")} & {"", ".", ".."}
    assert (manifest.title + manifest.licence + manifest.citation + "".join(names)).isprintable()


def fuzz(n, seed):
    """Return how many of ``n`` mutated and generated manifests were accepted."""
    rng, accepted = random.Random(seed), 0
    texts = [(shipped("data_manifests") / f"{name}.yaml").read_text(encoding="utf-8") for name in list_manifests()]
    for i in range(n):
        text = generated(rng) if i % 3 == 0 else mutated(rng.choice(texts), rng)
        try:
            manifest = check_manifest(text, "fuzz")
        except UsageError as error:  # any other type is a failure
            sentence = str(error)
        else:
            sentence = ""
            assert_legal(text, manifest)
            accepted += 1
        assert sentence.isprintable()
    return accepted


def test_fuzzed_manifests_short():
    assert 0 < fuzz(300, 0) < 300


@pytest.mark.slow
def test_fuzzed_manifests_long():
    assert 0 < fuzz(5000, 1) < 5000
