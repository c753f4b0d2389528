"""Backbones: stages by stride, weights read without executing anything, refused in one sentence where missing."""

import io
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from diawork.base.config import BackboneConfig
from diawork.base.errors import CheckpointError, DataError, UsageError
from diawork.detectors import backbones
from diawork.detectors.backbones import Backbone, read_weights

TINY = BackboneConfig(name="test_resnet", weights="random", image_size=32)


def stored(path, tensors, *, archive=True):
    """Write a torch file as torch does."""
    write = getattr(torch, "save")  # noqa: B009 - the package itself never does
    write(tensors, path, _use_new_zipfile_serialization=archive)
    return path


def test_maps_come_at_the_strides_asked_for_whatever_the_images_size_and_channels():
    backbone = Backbone(TINY, (16, 4)).eval()
    for x in (torch.rand(2, 1, 28, 28), torch.rand(2, 3, 49, 49)):
        assert [tuple(f.shape) for f in backbone(x)] == [
            (2, c, s, s) for c, s in zip(backbone.channels, (8, 2), strict=True)
        ]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "vgg11"])
def test_without_strides_it_yields_what_the_classifier_sees(name):
    import timm

    backbone, x = Backbone(TINY.model_copy(update={"name": name}), (), seed=3).eval(), torch.rand(2, 3, 32, 32)
    whole = timm.create_model(name, pretrained=False).eval()
    whole.load_state_dict(backbone.net.state_dict(), strict=False)
    wanted = whole.forward_head(whole.forward_features(backbone.normalised(x)), pre_logits=True)
    assert torch.allclose(backbone(x)[0][:, :, 0, 0], wanted, atol=1e-5) and backbone.channels == [wanted.shape[1]]
    assert 0 < len(backbone.trainable_after(8)) < len(list(backbone.parameters()))


def test_grey_is_seen_as_colour_of_equal_parts():
    backbone, x = Backbone(TINY, (8,)).eval(), torch.rand(2, 1, 32, 32)
    assert torch.allclose(backbone(x)[0], backbone(x.expand(-1, 3, -1, -1))[0])


def test_random_weights_follow_the_seed_alone():
    one, again, other = (Backbone(TINY, (8,), seed=seed) for seed in (0, 0, 1))
    assert one.sha256 == again.sha256 != other.sha256
    assert other.weights == "test_resnet, random, seed 1"


@pytest.mark.parametrize(
    ("change", "strides", "message"),
    [
        ({"name": "test_resnt"}, (8,), "Did you mean 'test_resnet'"),
        ({}, (8, 64), r"no stages at the strides \[64\]. It has \[2, 4, 8, 16, 32\]"),
        ({"weights": "nowhere.pth"}, (8,), "is no file"),
        ({"weights": "pretrained"}, (8,), r"no pretrained weights of test_resnet on this machine; .*weights=random"),
    ],
)
def test_refuses_what_it_cannot_be(change, strides, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        Backbone(TINY.model_copy(update=change), strides)


@pytest.mark.parametrize(
    ("name", "stride", "first"),
    [
        ("test_resnet", 8, "layer3.0.conv1.weight"),
        ("vgg11", 8, "features_16.weight"),
        ("test_resnet", 1, "conv1.0.weight"),
    ],
)
def test_what_follows_a_stage_starts_behind_its_last_layer(name, stride, first):
    net = Backbone(TINY.model_copy(update={"name": name}), (16,))
    names = [name for name, p in net.net.named_parameters() if any(p is q for q in net.trainable_after(stride))]
    every = [name for name, _ in net.net.named_parameters()]
    assert names == every[every.index(first) :]


def test_refuses_channels_that_no_image_has():
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        Backbone(TINY, (8,))(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize("kind", ["safetensors", "archive", "before 2020"])
def test_loads_a_file_of_the_whole_network(kind, tmp_path):
    import timm

    whole = timm.create_model("test_resnet", pretrained=False).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    save_file(whole, path) if kind == "safetensors" else stored(path, whole, archive=kind == "archive")
    backbone = Backbone(TINY.model_copy(update={"weights": str(path)}), (8,))
    assert torch.equal(backbone.net.state_dict()["layer2.0.conv1.weight"], whole["layer2.0.conv1.weight"])
    assert backbone.weights.startswith(f"test_resnet, {path.name}, SHA-256 ")


def test_layers_of_other_names_are_taken_in_their_order(tmp_path):
    weights = {k: v for k, v in Backbone(TINY, (32,), seed=5).net.state_dict().items() if "tracked" not in k}
    path = stored(tmp_path / "w.pth", {f"layer {i}": v for i, v in enumerate(weights.values())})
    other = Backbone(TINY.model_copy(update={"weights": str(path)}), (32,)).net.state_dict()
    assert all(torch.equal(v, other[k]) for k, v in weights.items())


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"are not those of this backbone: 'conv1.0.weight' does not fit"):
        Backbone(TINY.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), (8,))


def test_the_extras_package_and_the_hubs_cache_are_looked_into(tmp_path, monkeypatch):
    package = tmp_path / "shipped_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    path = stored(package / "models" / "w.pth", Backbone(TINY, (32,), seed=3).net.state_dict())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backbones, "PACKAGED", {"test_resnet": ("shipped_model", "models/w.pth")})
    pretrained = TINY.model_copy(update={"weights": "pretrained"})
    assert Backbone(pretrained, (32,)).sha256 == Backbone(TINY, (32,), seed=3).sha256
    path.unlink()
    snapshot = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_file(Backbone(TINY, (32,), seed=4).net.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert Backbone(pretrained, (32,)).sha256 == Backbone(TINY, (32,), seed=4).sha256


@pytest.mark.parametrize("archive", [True, False])
def test_torch_files_are_read_to_the_bit(archive, tmp_path):
    base = torch.arange(12.0)
    tensors = {
        "turned": base.reshape(3, 4).T, "window": base[3:7], "scalar": torch.tensor(7), "half": base.half(),
        "bytes": torch.arange(5, dtype=torch.uint8), "parameter": torch.nn.Parameter(base), "empty": torch.empty(0, 3),
        "low": base.bfloat16(), "truth": base > 3,
    }  # fmt: skip
    found = read_weights(stored(tmp_path / "w.pth", tensors, archive=archive))
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("nested", ["state_dict", "model"])
def test_a_state_dict_inside_a_checkpoint_is_found(nested, tmp_path):
    path = stored(tmp_path / "w.pth", {nested: {"a": torch.ones(2)}, "epoch": 3})
    assert read_weights(path)["a"].tolist() == [1, 1]


def archive_of(path, stream, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", stream)
        for name, value in members.items():
            archive.writestr(f"w/{name}", value)
    return path


CALL = b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R."
BUILD = b"\x80\x02\x8c\x02os\x8c\x06system\x93X\x05\x00\x00\x00touch\x85R."  # the later protocol's way to a name
DICT_OF = b"\x80\x02}X\x01\x00\x00\x00a%ss."


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (CALL, "not readable as weights"),
        (BUILD, "not readable as weights"),
        (b"\x80\x02ccollections\nOrderedDict\nctorch\nFloatStorage\n\x85R.", "not readable as weights"),
        (DICT_OF % b"K\x07", "does not hold a state dict"),
        (b"\x80\x02K\x07.", "does not hold a state dict"),
        (b"\x80\x02}", "not readable as weights"),
    ],
)
def test_a_file_that_asks_for_more_than_tensors_is_refused_in_one_line(stream, message, tmp_path, monkeypatch):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("the file executed something"))
    path = archive_of(tmp_path / "w.pth", stream, version="3\n", byteorder="little")
    with pytest.raises(CheckpointError, match=message) as refused:
        read_weights(path)
    assert "\n" not in str(refused.value).splitlines()[0] and len(str(refused.value)) < 600


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path):
    whole = stored(tmp_path / "w.pth", {"a": torch.ones(4)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        content = {name: archive.read(name).replace(b"K\x04\x85", b"K\x05\x85") for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    with pytest.raises(CheckpointError, match="not readable as weights"):
        read_weights(tmp_path / "x.pth")


def test_a_tensor_that_repeats_one_number_endlessly_is_refused_before_it_takes_memory(tmp_path):
    weights = Backbone(TINY, (8,)).net.state_dict()
    weights["conv1.0.weight"] = torch.zeros(1).expand(10**12)  # 4 TB, of one stored number
    path = stored(tmp_path / "w.pth", weights)
    with pytest.raises(CheckpointError, match=r"its tensors declare 4,000,\d+,\d+,\d+ bytes"):
        Backbone(TINY.model_copy(update={"weights": str(path)}), (8,))


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "wrong length"])
def test_a_damaged_torch_file_is_refused(damage, tmp_path):
    path = stored(tmp_path / "w.pth", {"a": torch.ones(40)}, archive=False)
    data = path.read_bytes()
    content = {
        "truncated": data[:-50],
        "text": b"hello",
        "wrong length": data.replace(struct.pack("<q", 40), b"\1" * 8),
    }
    path.write_bytes(content.get(damage, data))
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"missing|not readable as weights"):
        read_weights(path)
