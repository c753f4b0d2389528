"""Made-up run folders, written through ``Run``, for the tests of tables and pages."""

import os
import time
import zlib

import numpy as np

from diawork.base import locks
from diawork.base.files import write_json
from diawork.evaluation.metrics import auroc
from diawork.report.rows import Finished, Measured, Row
from diawork.runs.run import ORACLE as EPOCHS_FILE
from diawork.runs.run import Run

CONTROL, ORACLE = "5-NN on statistics", "best single statistic (oracle)"
PNG = b"\x89PNG not really"
TRAINED = {"DIA": "dia", "CSI": "csi"}


def numbers(scores, anomalous):
    """What ``metrics.summary`` writes, with cheap intervals."""
    area = auroc(scores, anomalous)
    row = {"auroc": area, "auprc": area, "fpr95": 1 - area}
    ends = (("_low", -0.03), ("_high", 0.03))
    row |= {f"{m}{end}": min(1.0, max(0.0, v + d)) for m, v in list(row.items()) for end, d in ends}
    row |= {"n_normal": int((~anomalous).sum()), "n_anomalous": int(anomalous.sum()), "threshold": 1.6}
    return row | {"f1": 0.5, "accuracy": 0.6, "sensitivity": 0.4, "specificity": 0.95}


def make_run(
    root, detector="DIA", seed=0, *, strength=1.4, dataset="pneumoniamnist", data="abc123", evidence=False,
    settings=None, n=60, summary=numbers, splits=("val", "test"), epochs=None, created=None, **result,
):  # fmt: skip
    """Write one finished run as ``experiment`` does; ``strength`` separates the two groups."""
    run = Run(root / f"{dataset}-{zlib.crc32(repr((detector, data, settings)).encode())}-s{seed}")
    run.folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, zlib.crc32(detector.encode())])
    anomalous = np.arange(n) >= n // 3
    shared = np.random.default_rng(7).standard_normal(n)  # images are hard or easy for every detector
    scores = 0.7 * shared + 0.7 * rng.standard_normal(n) + strength * anomalous
    images = enumerate(zip(anomalous, scores, strict=True))
    run.write_scores([
        {"split": splits[-1], "index": i, "class_name": "x", "anomalous": int(truth), "score": score}
        for i, (truth, score) in images
    ])  # fmt: skip
    created = created or f"2026-01-0{seed + 1}T00:00:00+00:00"
    about = {"name": dataset, "identity": data, "notes": ["val has labels"], "duplicates": "none"}
    made_with = {"versions": {"torch": "2.6", "python": "3.12"}, "created": created}
    write_json(run.folder / "config.json", {"config": {}, "digest": f"d{seed}", "data": about, **made_with})
    write_json(run.folder / "status.json", {"state": "done"})
    whole = {"dataset": dataset, "detector": detector, "oracle": "oracle" in detector, "seed": seed}
    whole |= {"digest": f"d{seed}", "pretrained_weights": False, "cost": {"fit_seconds": 300.0}}
    whole |= {"selection": "fixed epoch 10" if detector in TRAINED else "no training"}
    whole |= {"metrics": {split: summary(scores, anomalous) for split in splits}}
    run.finish(whole | {"settings": {"loss.mask": "naive", "seed": seed, **(settings or {})}, **result})
    if detector in TRAINED:
        run.write_metrics(
            [{"stage": "train", "step": i, "loss": 3 + np.exp(-i / 30) + 0.1 * rng.random()} for i in range(120)]
        )
    if epochs:
        write_json(run.folder / EPOCHS_FILE, epochs)
    if evidence:
        write_evidence(run.folder)
    return run.folder


def write_evidence(folder, ts=(50, 100, 200, 400), **more):
    x = np.random.default_rng(0).random((4, 1, 12, 12), np.float32)
    fade = np.linspace(1, 0.3, len(ts) + 1, dtype=np.float32)[None, :, None, None]
    errors = {"errors_images": x[:, 0], "errors_nearest": x[::-1, 0], "errors_score": np.arange(4.0)}
    strip = {"strip": x * fade, "strip_ts": np.array(ts)}
    Run(folder).write_evidence({**strip, **errors, "errors_label": np.arange(4) > 1, **more})


def make_suite(root):
    """DIA and CSI with three seeds, a control and an oracle with one, on the same 60 images."""
    for seed in range(3):
        make_run(root, "DIA", seed, strength=1.6, evidence=seed == 0)
        make_run(root, "CSI", seed, strength=1.3)
    make_run(root, CONTROL, strength=1.0)
    make_run(root, ORACLE, strength=2.5)
    return root


def read_runs(*folders):
    """The finished runs of these folders, as a row holds them."""
    return [Finished.read(Run(folder)) for folder in folders]


def toy_row(label, auroc=0.8, *, method="", half=0.02, sd=0.01, check=float("nan"), **changes):
    """A row without runs behind it; ``half`` is half its interval."""
    values = {
        "section": "d", "dataset": "d", "method": method or TRAINED.get(label, label), "variant": "", "split": "test",
        "seeds": 3, "control": False, "oracle": False, "n_normal": 234, "n_anomalous": 390, "draws": None,
        "selection": "", "weights": "", "val": 0.9,
    }  # fmt: skip
    area = Measured(auroc, auroc - half, auroc + half, sd)
    return Row(label=label, auroc=area, check=Measured(check), **(values | changes))


def write_lock(folder, pid, host, age=0.0):
    """Leave the lock of another process, as filelock writes it, touched ``age`` seconds ago."""
    folder.mkdir(exist_ok=True)
    record = f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=f00\nduration={locks.STALE}\n"
    (folder / "lock").write_text(record)
    os.utime(folder / "lock", (time.time() - age,) * 2)
