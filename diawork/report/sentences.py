"""What the rows of a table say, in sentences: who is ahead, by how much, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, DiaworkError
from diawork.data.manifests import load_manifest
from diawork.evaluation.comparison import Comparison
from diawork.evaluation.conformal import FALSE_ALARMS, check_alarm
from diawork.evaluation.diagnostics import CHANCE, Diagnostics, explain, rank_agreement
from diawork.evaluation.ranks import rank_over_sets
from diawork.evaluation.sentences import conclusion, counted, interval, listed, p_said, signed
from diawork.method.operators import OPERATORS
from diawork.report.rows import DDPM_SEED, Measured, Row, compare_all

FOCUS = "dia"  # the method that a page is about, where it ran
CHOSEN_ON_VAL = ("best validation", "best self-check")
SHARED = {"pneumoniamnist": "zhanglab", "chestxray224": "zhanglab", "octmnist": "retinal_oct"}  # images of one source
COARSE = 0.05  # half an interval: above, a set of images is called too small to tell detectors apart
SPLITS = {"test": "test", "val": "validation"}  # in words


def focus_of(rows: Sequence[Row]) -> Row:
    """Return the row that a page is about: DIA, else of DIA's variants, of the trained, of all, the best on val.

    On val, because a variant picked by its test score would be compared with a head start.
    """
    fair = [row for row in rows if not row.oracle]
    variants = [row for row in fair if row.method == FOCUS]
    plain, trained = [row for row in variants if not row.variant], [row for row in fair if not row.control]
    candidates = next(found for found in (plain, variants, trained, fair, list(rows)) if found)
    return max(candidates, key=lambda row: -math.inf if math.isnan(row.val) else row.val)


def rivals_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows worth comparing with the focus on the same images: all but itself and oracles."""
    focus = focus_of(rows)
    return [row for row in rows if not row.oracle and row is not focus]


def question(rows: Sequence[Row]) -> str:
    """Return what the page of these rows answers."""
    rivals = rivals_of(rows)
    controls = sum(row.control for row in rivals)
    kinds = {"other detector": len(rivals) - controls, "control": controls}
    against = " and ".join(counted(n, kind) for kind, n in kinds.items() if n)
    ahead = f", and is it ahead of {against}" if against else ""
    return f"How well does {focus_of(rows).label} rank anomalous images above healthy ones{ahead}?"


def _area(area: Measured) -> str:
    spread = f" ± {area.sd:.3f} over {len(area.seeds)} seeds" if len(area.seeds) > 1 else ""
    return f"{area.value:.3f}{spread} ({ends(area, lead='95 % interval ')})"


def ends(measured: Measured, lead: str = "", sign: bool = False) -> str:
    """Return the interval; where seeds have none of their mean, they themselves."""
    if measured.bounded or len(measured.seeds) < 2:
        return interval(measured.low, measured.high, lead=lead, sign=sign)
    runs = [f"{value:.3f}" for value in sorted(measured.seeds)]
    return f"seeds {' and '.join(runs) if len(runs) == 2 else f'{runs[0]} to {runs[-1]}'}"


def headline(rows: Sequence[Row], rivals: Mapping[Row, Comparison]) -> list[str]:
    """Return the findings on one data set from its rows, best first, and the comparisons of its focus with others."""
    focus, fair = focus_of(rows), [row for row in rows if not row.oracle]
    split = SPLITS[focus.split]
    images = f"{focus.n_normal} healthy and {focus.n_anomalous} anomalous {split} images"
    if not fair:
        return [f"Only oracles were run on these {images}; none of them is a detector."]
    best = fair[0]
    said = [f"On {images}, {best.label} has the highest AUROC, {_area(best.auroc)}."]
    if best.control:
        said.append("It is a trivial control: no trained detector here ranks better than simple image statistics.")
    if best is not focus:
        said.append(f"{focus.label} reaches {_area(focus.auroc)}.")
    if unfinished := [f"{row.label} ({row.unfinished})" for row in fair if row.unfinished]:
        said.append(f"Nothing is said to be ahead of {listed(unfinished)}.")
    if rivals:
        said += conclusion(focus.label, {row.label: test for row, test in rivals.items()})
    control = next((row for row in rivals_of(rows) if row.control and row in rivals), None)
    if control and not focus.control:
        found, one_seed = rivals[control].found == "ahead", rivals[control].verdict == "undecided"
        shown = "clears" if found else "has not shown that it sees more than"
        name = f"This trained {focus.label}" if found and one_seed else focus.label
        said.append(f"{name} {shown} the best label-free control, {control.label}.")
    if bar := next((row for row in rows if row.oracle), None):
        above = [row.label for row in fair if row.auroc.value > bar.auroc.value]
        lies = f"{listed(above)} {'lies' if len(above) == 1 else 'lie'} above it"
        reached = lies if above else "no label-free detector here reaches it"
        has = f"{bar.label} has {bar.auroc.value:.3f}"
        said.append(f"Reference only, chosen with the {split} labels: {has}; {reached}.")
    if not focus.auroc.bounded and focus.seeds == 1:
        single = min(focus.n_normal, focus.n_anomalous) < 2
        why = "a class has a single image" if single else "every resample of these images says the same"
        said.append(f"No interval can be given for the AUROC of {focus.label}: {why}.")
    elif (half := (focus.auroc.high - focus.auroc.low) / 2) > COARSE:
        said.append(f"The {split} set is small: a single AUROC is known to about ±{half:.2f} only.")
    if focus.seeds == 1 and not focus.control:
        said.append("One seed was run, so how much training alone moves these numbers is unknown.")
    return said


def dissolving(rows: Sequence[Row]) -> list[str]:
    """Say whether DIA's dissolving made a difference to nothing (CSI) or to a plain operation in its place."""
    focus = focus_of(rows)
    others = [row for row in rows if row.method == "csi" or row.method in OPERATORS]
    if focus.method != FOCUS or not others:
        return []
    tests, _ = compare_all((focus, other) for other in others)
    told = {row.b.label: row.test for row in tests if row.test.verdict in ("ahead", "behind")}
    if told:
        return [f"Does dissolving pay? {conclusion(focus.label, told)[0]}"]
    if all(row.test.verdict == "undecided" for row in tests):
        return ["Does dissolving pay? One seed cannot tell."]
    names = listed([row.label for row in others])
    return [f"Does dissolving pay? At this size no difference between {focus.label} and {names} was found."]


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return what is below chance or collapsed by the labels, and the likely reason."""
    said = []
    for row in rows:
        if not row.oracle:
            facts = row.runs[0].check.facts if row.auroc.high < CHANCE else Diagnostics()
            said.append(" ".join(explain(row.label, row.auroc.low, row.auroc.high, facts)))
    return [sentence for sentence in said if sentence]


def unnoticing(rows: Sequence[Row]) -> list[str]:
    """Return which runs are below chance, blind or collapsed by the self-check, and the likely reason."""
    return [
        f"{row.label}, seed {run.seed}: {' '.join(run.check.findings[:2])}"
        for row in rows for run in row.runs if run.check.verdict not in ("", "notices")
    ]  # fmt: skip


def agreement(rows: Sequence[Row]) -> list[str]:
    """Say how the self-check ranks the rows against their AUROC on labelled images, and which one it would take."""
    checked = [row for row in rows if not row.oracle and row.check.known]
    if len(checked) < 2:
        return []
    split, controls = SPLITS[checked[0].split], sum(row.control for row in checked)
    basis = f"{len(checked)} rows" + (f" ({counted(controls, 'control')} among them)" if controls else "")
    taken, best = (max(checked, key=lambda row: getattr(row, name).value) for name in ("check", "auroc"))
    has = f"{split} AUROC {taken.auroc.value:.3f}; the best has {best.auroc.value:.3f}"
    said = [f"Of {basis} the self-check would take {taken.label} ({has})."]
    try:
        checks, areas = (np.array([getattr(row, name).value for row in checked]) for name in ("check", "auroc"))
        ranks = rank_agreement(checks, areas)
    except DataError:  # too few, or all equal
        return said
    found = "backwards" if ranks.rho < 0 else "as the labels do"
    sure = "" if ranks.p < 0.05 else ", which may be chance"
    known = f"{interval(ranks.low, ranks.high, lead='95 % interval ', sign=True)}, {p_said(ranks.p)}"
    return [*said, f"It ranks them {found}{sure}: rank correlation {signed(ranks.rho, 2)} ({known})."]


class OverSets(NamedTuple):
    """What the ranks of rows over data sets say, and a line a row, the least mean rank first."""

    sentence: str
    critical: float
    p: float
    rows: list[dict[Any, Any]]  # label, mean_rank, worst_rank, lowest AUROC and the data set that has it
    areas: dict[str, list[float]]  # data set → AUROC of each row


def over_sets(rows: Sequence[Row]) -> OverSets | None:
    """Rank the rows that ran on every data set over them; of one set, or of one row, there is nothing to say."""
    lines = [(row.section, (row.label, row.method, row.variant), row.auroc.value) for row in rows if not row.oracle]
    table = pd.DataFrame(lines, columns=["section", "row", "auroc"])
    fair = table.pivot(index="section", columns="row", values="auroc").dropna(axis="columns")
    if min(fair.shape) < 2:
        return None
    clusters = {row.section: _cluster(row.dataset) for row in rows}
    ranking = rank_over_sets(fair.to_numpy(), [clusters[section] for section in fair.index])
    ranked = pd.DataFrame({
        "label": [label for label, *_ in fair.columns], "mean_rank": ranking.mean, "worst_rank": ranking.worst,
        "lowest": fair.min().to_numpy(), "lowest_on": fair.idxmin().to_numpy(),
    })  # fmt: skip
    ordered = ranked.sort_values("mean_rank", kind="stable")
    areas = {str(name): line.iloc[ordered.index].tolist() for name, line in fair.iterrows()}
    return OverSets(ranking.sentence, ranking.critical, ranking.p, ordered.to_dict("records"), areas)


def _cluster(dataset: str) -> str:
    """Return what a set shares its images or its anatomy with."""
    try:
        phantom = load_manifest(dataset).phantom
    except DiaworkError:
        phantom = None
    return f"phantom {phantom.kind}" if phantom else SHARED.get(dataset, dataset)


def features_said(rows: Sequence[Row]) -> list[str]:
    """Say how the features of each trained detector spread and how many shifts it names, means over seeds."""
    spreads, named = [], []
    for row in rows:
        facts = [run.check.facts for run in row.runs]
        if known := [one.features for one in facts if one.features is not None]:
            spreads.append(f"{row.label} {np.mean([one.variance for one in known]):.2f}")
        shifts = [(one.shift_accuracy, one.shifts) for one in facts if one.shift_accuracy is not None and one.shifts]
        if shifts:
            share = np.mean([accuracy for accuracy, _ in shifts])
            named.append(f"{row.label} {share:.0%} (chance {1 / shifts[0][1]:.0%})")
    said = {"Spread of the features (0: all point the same way, 1: in all directions)": spreads,
            "Shifts that the classifier names": named}  # fmt: skip
    return [f"{what}, on healthy validation images: {'; '.join(parts)}." for what, parts in said.items() if parts]


def shifts_said(rows: Sequence[Row]) -> list[str]:
    """Return what was measured of each shift before training, once each."""
    return list(dict.fromkeys(run.shift_probe.sentence for row in rows for run in row.runs if run.shift_probe))


def models_said(rows: Sequence[Row]) -> str:
    """Say how many diffusion models, and of which seeds, stand behind the runs that needed any."""
    needed = [run for row in rows for run in row.runs if "diffusion_images" in run.diffusion]
    pairs = {(run.seed, int(run.settings.get(DDPM_SEED, 0))) for run in needed}
    seeds = sorted({model for _, model in pairs})
    if len({seed for seed, _ in pairs}) < 2:
        return ""
    if len(seeds) == 1:
        return f"One diffusion model (seed {seeds[0]}) serves all seeds, so ± says nothing of its pretraining."
    if all(seed == model for seed, model in pairs):
        return f"Each of the {len(seeds)} seeds has a diffusion model of its own, so ± speaks of its pretraining, too."
    return f"Diffusion models of the seeds {', '.join(map(str, seeds))} serve several seeds of the runs each."


def draws_said(rows: Sequence[Row]) -> str:
    """Say under which scheme the rows were scored, and what other augmented copies would do to each."""
    drawn = [row for row in rows if row.draws is not None]
    if not drawn:
        return ""
    noise = {row.label: row.measured("noise_auroc") for row in drawn}
    measured = [f"{label} ±{area.value:.4f}" for label, area in noise.items() if area.known]
    said = f" With other copies the AUROC would change by about: {', '.join(measured)}." if measured else ""
    schemes = " and ".join(map(str, sorted({row.draws for row in drawn if row.draws is not None})))
    return f"Scores use random copies of the images (scheme {schemes}).{said}"


def alarm_said(row: Row) -> list[str]:
    """Say what an alarm at ``FALSE_ALARMS`` guarantees, and whether it held on the healthy test images (first seed)."""
    first = row.runs[0]
    try:
        alarm, scores = first.run.alarm(FALSE_ALARMS), first.scores
    except DiaworkError as error:
        return [f"No threshold by false alarms: {error}"]
    threshold = f"Alarm above {alarm.threshold:.3f} (first seed)."
    if any(run.selection.startswith(CHOSEN_ON_VAL) for run in row.runs):
        threshold += " The epoch was chosen on these validation images, which the guarantee does not cover."
    if row.split == "val":
        return [threshold, alarm.guarantee]
    healthy = scores.loc[~scores["anomalous"], "score"].to_numpy()
    return [threshold, alarm.guarantee, check_alarm(alarm, healthy).sentence]
