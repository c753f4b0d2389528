"""RD4AD and PatchCore against anomalib's, where it is installed: same weights, same images, same maps."""

import pytest
import torch
import torch.nn.functional as F

from diawork.base.compute import Compute
from diawork.detectors.learned import smoothed
from diawork.detectors.patchcore import PatchCore
from diawork.detectors.rd4ad import RD4AD
from diawork.runs.methods import method_config
from diawork.runs.presets import preset

pytest.importorskip("anomalib", reason="anomalib is not installed")
SIZE = 256  # px, at which a blur of 4/256 of the side is anomalib's of 4 px
CHANGES = {"backbone.name": "resnet50", "backbone.image_size": SIZE}
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def ours(kind, **changes):
    cfg = method_config(preset("smoke"), kind.name).override(CHANGES | changes)
    detector = kind(cfg, compute=Compute())
    detector.shape = [3, SIZE, SIZE]
    detector._prepare()
    return detector


def normalised(detector):
    return (IMAGES - detector.backbone.mean) / detector.backbone.std


def encoder_weights(detector, theirs):
    known = detector.backbone.net.state_dict()
    return {name: known[name.removeprefix("feature_extractor.")] for name in theirs.state_dict()}


def student_weights(net):
    """Return our student's weights under anomalib's names."""
    steps, names = {"0": "conv", "1": "bn", "3": "conv", "4": "bn"}, {}
    for name, value in net.state_dict().items():
        part, *rest = name.split(".")
        if part == "bottleneck" and rest[0] == "fuse":
            which = {("0", "0"): 1, ("0", "1"): 1, ("0", "3"): 2, ("0", "4"): 2, ("1", "0"): 3, ("1", "1"): 3}
            names[f"bottleneck.{steps[rest[2]]}{which[rest[1], rest[2]]}.{rest[3]}"] = value
            continue
        where = "bottleneck.bn_layer" if part == "bottleneck" else f"decoder.layer{int(rest[0]) + 1}"
        block, layer, at, field = rest[1], rest[2], *rest[3:]
        if layer == "body":
            kind = f"{'conv' if int(at) % 3 == 0 else 'bn'}{int(at) // 3 + 1}"
            names[f"{where}.{block}.{kind}.{field}"] = value
        else:
            side = "upsample" if part == "decoder" else "downsample"
            names[f"{where}.{block}.{side}.{at}.{field}"] = value
    return names


def test_rd4ads_map_and_score():
    from anomalib.models.image.reverse_distillation import torch_model
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.components.bottleneck import OCBE, Bottleneck

    detector = ours(RD4AD, **{"rd4ad.strides": (4, 8, 16), "rd4ad.blocks": (3, 4, 6)})
    layers, add = ["layer1", "layer2", "layer3"], AnomalyMapGenerationMode.ADD
    theirs = torch_model.ReverseDistillationModel("wide_resnet50_2", (SIZE, SIZE), layers, add, pre_trained=False)
    theirs.encoder = torch_model.TimmFeatureExtractor("resnet50", layers, pre_trained=False)
    theirs.bottleneck = OCBE(Bottleneck, 3, width_per_group=128)  # the published width
    theirs.encoder.load_state_dict(encoder_weights(detector, theirs.encoder))
    missing, unknown = theirs.load_state_dict(student_weights(detector.net), strict=False)
    assert not unknown and all(name.startswith(("encoder.", "bottleneck.conv4", "bottleneck.bn4")) for name in missing)
    detector.net.eval()
    with torch.no_grad():
        wanted = theirs.eval()(normalised(detector))
    score, heat = detector._scored(IMAGES)
    assert torch.allclose(heat, wanted.anomaly_map[:, 0], atol=1e-4)
    assert torch.allclose(score, wanted.pred_score.flatten(), atol=1e-4)


def test_patchcores_map_and_score():
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    detector = ours(PatchCore, **{"patchcore.neighbours": 9})
    theirs = PatchcoreModel(["layer2", "layer3"], "resnet50", pre_trained=False).eval()
    theirs.feature_extractor.load_state_dict(encoder_weights(detector, theirs.feature_extractor))
    features = detector._features(IMAGES)
    patches = detector._patches(features).flatten(0, 1)
    bank = patches[::7] + 0.1 * torch.rand(len(patches[::7]), 1, generator=torch.Generator().manual_seed(1))
    detector.kept = {"bank": bank}
    theirs.memory_bank = bank
    with torch.no_grad():
        wanted = theirs(normalised(detector))
    score, distance = detector._compared(features)
    heat = smoothed(
        F.interpolate(distance[:, None], (SIZE, SIZE))[:, 0]
    )  # anomalib repeats, we and the paper interpolate
    scale = float(wanted.anomaly_map.max())
    assert torch.allclose(heat / scale, wanted.anomaly_map[:, 0] / scale, atol=1e-4)
    assert torch.allclose(score, wanted.pred_score.flatten(), rtol=1e-4)
