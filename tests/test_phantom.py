"""Phantom: what an image depends on, its lesioned twin, the dials, the calibration, refusals."""

import time

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from diawork.base.errors import UsageError
from diawork.data.datasets import load
from diawork.data.images import ImageSet
from diawork.data.manifests import PHANTOMS
from diawork.data.phantom import KINDS, LESIONS, PhantomSpec, make_phantom
from diawork.detectors.controls import PixelKNN, StatsKNN, StatsMahalanobis
from diawork.evaluation.metrics import auroc

VISIBLE = 0.03 * 255


def twins(n=12, seed=0, **spec):
    """Healthy and lesioned images as whole numbers, and the masks."""
    spec = PhantomSpec(**spec)
    healthy, _ = make_phantom(spec, n, seed=seed)
    lesioned, masks = make_phantom(spec, n, anomalous=True, seed=seed)
    return healthy.astype(int), lesioned.astype(int), masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 28, 64])
def test_shapes_and_a_used_grey_range(kind, size):
    images, masks = make_phantom(PhantomSpec(kind=kind, size=size, lesion_size=6), 3)
    assert (images.shape, images.dtype, masks.shape, masks.dtype) == ((3, size, size), np.uint8, (3, size, size), bool)
    assert images.std((1, 2)).min() > 5
    assert not masks.any()


def test_no_images_are_an_empty_array():
    images, masks = make_phantom(PhantomSpec(), 0)
    assert images.shape == masks.shape == (0, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_seed_and_position_alone(kind):
    spec = PhantomSpec(kind=kind)
    images, _ = make_phantom(spec, 4, seed=7)
    np.random.seed(0)
    assert np.array_equal(make_phantom(spec, 2, seed=7)[0], images[:2])
    assert len({image.tobytes() for image in images}) == 4
    assert not (make_phantom(spec, 4, seed=8)[0] == images).all((1, 2)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lesion", LESIONS)
def test_a_twin_differs_inside_its_mask_alone(kind, lesion):
    healthy, lesioned, masks = twins(kind=kind, lesion=lesion, lesion_size=8)
    change = np.abs(lesioned - healthy)
    assert (change[~masks] <= VISIBLE + 1).all()
    assert (change[masks] >= VISIBLE - 1).all()
    assert (masks.sum((1, 2)) > 4).mean() > 0.9


def test_one_answer_an_image():
    healthy, lesioned, masks = twins(n=6)
    wanted = np.array([True, False] * 3)
    mixed, mixed_masks = make_phantom(PhantomSpec(), 6, anomalous=wanted)
    assert np.array_equal(mixed, np.where(wanted[:, None, None], lesioned, healthy))
    assert np.array_equal(mixed_masks, masks & wanted[:, None, None])


@pytest.mark.parametrize("lesion", LESIONS)
def test_no_contrast_is_no_lesion(lesion):
    healthy, lesioned, masks = twins(lesion=lesion, lesion_contrast=0)
    assert np.abs(lesioned - healthy).max() <= 1
    assert not masks.any()


@pytest.mark.parametrize("lesion", LESIONS)
def test_size_is_dialled_in_pixels(lesion):
    areas, extents = [], []
    for size in (4, 7, 10):
        masks = twins(n=30, lesion=lesion, lesion_size=size, lesion_contrast=0.9)[2]
        areas.append(masks.sum((1, 2)).mean())
        extents.append(max(np.ptp(np.argwhere(mask), axis=0).max() + 1 for mask in masks))
    assert areas[0] < areas[1] < areas[2]
    reach = 1.5 if lesion == "ring" else 1.2
    assert all(extent <= reach * size + 5 for extent, size in zip(extents, (4, 7, 10), strict=True))


@pytest.mark.parametrize("lesion", ["spot", "ring"])
def test_contrast_is_dialled_with_its_sign(lesion):
    change = []
    for contrast in (-0.4, -0.2, 0.2, 0.4):
        healthy, lesioned, _ = twins(n=30, lesion=lesion, lesion_size=4, lesion_contrast=contrast)
        change.append(np.mean([row.flat[np.abs(row).argmax()] for row in lesioned - healthy]))
    assert np.all(np.diff(change) > 0) if lesion == "spot" else np.abs(change)[[0, 3]].min() > np.abs(change)[1:3].max()


def test_a_spot_brightens_and_a_twist_keeps_the_brightness():
    for lesion, contrast, low, high in (("spot", 0.5, 15, 90), ("spot", -0.5, -90, -15), ("twist", 1.0, -5, 5)):
        healthy, lesioned, masks = twins(n=40, lesion=lesion, lesion_size=8, lesion_contrast=contrast)
        assert low < (lesioned - healthy)[masks].mean() < high, lesion


def test_half_a_turn_is_its_own_inverse():
    turned = twins(n=5, lesion="twist", lesion_contrast=1.0)[1]
    other_way = twins(n=5, lesion="twist", lesion_contrast=-1.0)[1]
    assert np.abs(turned - other_way).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_healthy_images_vary_more_than_a_lesion_changes_them(kind):
    healthy, lesioned, _ = twins(n=100, kind=kind, lesion="spot", lesion_size=5, lesion_contrast=0.3)
    for statistic in (lambda x: x.mean((1, 2)), lambda x: x.std((1, 2)), lambda x: np.abs(np.diff(x)).mean((1, 2))):
        assert np.std(statistic(healthy)) > 3 * np.abs(statistic(lesioned) - statistic(healthy)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy_says_which_way_is_up_but_not_which_side_is_left(kind):
    images = make_phantom(PhantomSpec(kind=kind), 420)[0].astype(float)
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)

    def accuracy(views):
        known, asked = (np.concatenate([v[part] for v in views]) for part in (slice(320), slice(320, None)))
        labels = [np.repeat(range(len(views)), n) for n in (320, 100)]
        model = KNeighborsClassifier(5).fit(known.reshape(len(known), -1), labels[0])
        return model.score(asked.reshape(len(asked), -1), labels[1])

    assert accuracy([np.rot90(images, k, (1, 2)) for k in range(4)]) > 0.8
    assert accuracy([images, images[:, :, ::-1]]) < 0.65


def as_set(pixels, masks):
    anomalous = masks.any((1, 2))
    x = torch.from_numpy(pixels[:, None].astype(np.float32) / 255)
    return ImageSet(x, np.where(anomalous, "lesion", "healthy"), anomalous, np.arange(len(x)), "test", "phantom")


@pytest.mark.parametrize("seed", [0, 100])
def test_no_label_free_control_sees_the_default_lesions(seed):
    spec = PhantomSpec()
    train = as_set(*make_phantom(spec, 480, seed=seed))
    test = as_set(*make_phantom(spec, 240, anomalous=np.arange(240) >= 120, seed=seed + 1))
    for control in (StatsKNN, StatsMahalanobis, PixelKNN):
        assert auroc(control().fit(train).anomaly_scores(test), test.anomalous) < 0.7, control.name


@pytest.mark.slow
@pytest.mark.parametrize("name", PHANTOMS)
def test_no_label_free_control_sees_the_finest_lesions_of_any_anatomy(name):
    splits = load(name)
    for control in (StatsKNN, StatsMahalanobis, PixelKNN):
        scores = control().fit(splits.train).anomaly_scores(splits.test)
        assert auroc(scores, splits.test.anomalous) < 0.71, control.name


def test_a_thousand_images_take_seconds():
    start = time.perf_counter()
    for kind in KINDS:
        make_phantom(PhantomSpec(kind=kind), 50, anomalous=True)
    assert time.perf_counter() - start < 1.5  # 10 ms an image; a quiet core needs about 1.5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "lungs"}, "Did you mean 'lung'"),
        ({"lesion": "blob"}, "Allowed: ring, spot, twist"),
        ({"size": 8}, "size=8 px outside [16, 256]"),
        ({"lesion_size": 17}, "lesion_size=17 px outside [1, 16]"),
        ({"lesion_size": 0.5}, "lesion_size=0.5"),
        ({"lesion_contrast": 1.2}, "lesion_contrast=1.2 outside [-1, 1]"),
        ({"lesion_contrast": float("nan")}, "lesion_contrast=nan"),
    ],
)
def test_refuses_a_spec_that_cannot_be_drawn(values, says):
    with pytest.raises(UsageError) as caught:
        PhantomSpec(**values)
    assert says in str(caught.value)


@pytest.mark.parametrize("values", [{"n": -1}, {"n": 2, "seed": -1}, {"n": 2, "anomalous": np.ones(3, bool)}])
def test_refuses_impossible_requests(values):
    with pytest.raises(UsageError):
        make_phantom(PhantomSpec(), **values)
