"""Sentences on the theory, one a figure: every claim follows from intervals, or says that it cannot."""

from collections.abc import Mapping

import numpy as np

from anydepth.report.formats import estimate_text, percent, plain
from anydepth.stats.means import Estimate
from anydepth.theory.closeness import Closeness
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS, UNCENTRED, Theory
from anydepth.theory.geometry import Geometry

WALK = "random walk"
_OFF = 0.05  # a cosine further than this from a line's is not on the line


def line(theory: Theory) -> str:
    """Distance of the cosine from that of Theorem 2.1, beside a random walk's."""
    measured, walk = theory.geometry[MEASURED].gap, theory.geometry[WALK].gap
    if not np.isfinite(measured.value):
        return "There is no depth between the ends with a cosine to predict."
    verdict = _verdict(
        measured,
        walk,
        "so these states come closer to a line than chance does" + (", and lie on none" if measured.low > _OFF else ""),
        "so these states are further from a line than chance is",
    )
    return (
        f"If states lay on a straight line between the same ends, as Theorem 2.1 has it, the cosine would differ from "
        f"what is measured by {estimate_text(measured, plain)} on average; for a random walk with the same steps the "
        f"line is off by {estimate_text(walk, plain)}, {verdict}."
    )


def monotone(theory: Theory) -> str:
    """How often similarity does not fall off with distance, beside a random walk."""
    measured, walk = theory.geometry[MEASURED].violations, theory.geometry[WALK].violations
    if not np.isfinite(measured.value):
        return "There are no three depths with a direction."
    verdict = _verdict(
        measured,
        walk,
        "so similarity falls off with distance more strictly than by chance",
        "so similarity falls off with distance less strictly than by chance",
    )
    return (
        f"In {estimate_text(measured, percent)} of all triples of depths the far pair is more alike than one of the "
        f"near pairs; in a random walk, whose steps know nothing of each other, in {estimate_text(walk, percent)}, "
        f"{verdict}."
    )


def straight(theory: Theory) -> str:
    """Straightness of the paths, beside a random walk's."""
    measured, walk = theory.geometry[MEASURED].straightness, theory.geometry[WALK].straightness
    if not np.isfinite(measured.value):
        return "The states do not move."
    verdict = _verdict(measured, walk, "so the way winds more than by chance", "so it is straighter than by chance")
    return (
        f"From first to last depth a state gets {estimate_text(measured, percent)} as far as its path is long, where a "
        f"straight line gives 100%; a random walk with the same steps gets {estimate_text(walk, percent)}, {verdict}."
    )


def turning(theory: Theory) -> str:
    """Angle between successive updates, and where it is largest."""
    angle = theory.geometry[MEASURED].turning.value
    if not np.isfinite(angle).any():
        return "There are no two successive updates to compare."
    at = int(np.nanargmax(angle))
    return (
        f"Successive updates meet at {degrees(float(np.nanmean(angle)))} on average, at most at "
        f"{degrees(float(angle[at]))}, at depth {at + 1}; updates without relation meet at about 90° in many "
        "dimensions, and those on a straight line at 0°."
    )


def growth(theory: Theory) -> str:
    """Growth of the norm over depths."""
    norm = theory.geometry[UNCENTRED].norm.value
    if not norm[0] > 0:
        return f"The states begin at the origin and end {plain(float(norm[-1]))} from it."
    change = np.diff(norm)
    at = int(np.argmax(np.abs(change)))
    way = "grows" if change[at] > 0 else "shrinks"
    return (
        f"The mean norm goes from {plain(float(norm[0]))} at depth 0 to {plain(float(norm[-1]))} at depth "
        f"{theory.depth}, {norm[-1] / norm[0]:.1f} times as long; it {way} most in block {at + 1}. Theorem 2.2 takes "
        "norms to be equal."
    )


def nearer(theory: Theory) -> str:
    """Theorem 2.2: how often the final class becomes more probable where a state comes closer."""
    closeness = theory.closeness["final"]
    closer, farther = closeness.all_closer, closeness.all_farther
    if not np.isfinite(closer.value):
        return "Before the last block no state comes closer to the last one while its probability changes."
    text = (
        f"Before the last block, where a state comes closer to the last one, its final class becomes more probable in "
        f"{estimate_text(closer, percent)} of the cases; Theorem 2.2 has it in all of them."
    )
    if not np.isfinite(farther.value):
        return f"{text} There is no case in which it moves away."
    return f"{text} Where it moves away, it does so in {estimate_text(farther, percent)}: {_compared(closeness)}."


def _compared(closeness: Closeness) -> str:
    if closeness.all_closer.low > closeness.all_farther.high:
        return "it rises more often where the state comes closer"
    if closeness.all_closer.high < closeness.all_farther.low:
        return "it rises less often where the state comes closer, against the theorem"
    return "these samples do not tell the two apart"


def spread(theory: Theory) -> str:
    """NC1, the spread within classes, from the first depth that has it to the last."""
    nc1, chance = theory.collapse[MEASURED].nc1, theory.collapse[SHUFFLED_LABELS].nc1[-1]
    known = np.flatnonzero(np.isfinite(nc1))
    if not len(known):
        return "It is undefined at every depth."
    first, last = int(known[0]), int(known[-1])
    return (
        f"The spread within classes over that between their means, 0 in full collapse, goes from {_short(nc1[first])} "
        f"at depth {first} to {_short(nc1[last])} at depth {last}; with the labels shuffled it is "
        f"{_short(float(chance))} at depth {theory.depth}, which is what so many rows give by chance."
    )


def simplex(theory: Theory) -> str:
    """NC2 and NC3, the distance from a simplex, at the last depth."""
    collapse = theory.collapse[MEASURED]
    weights = f"the classifier's weights are {plain(float(collapse.nc3[-1]))} from them, of 4 at most"
    if collapse.classes == 2:
        two = "Two class means are a simplex wherever they lie, so NC2 is 0"
        return f"{two}; at the last depth {weights} (NC3)." if np.isfinite(collapse.nc3[-1]) else f"{two}."
    text = (
        f"At the last depth the class means differ in length by {percent(float(collapse.nc2_norm[-1]))} (standard "
        f"deviation over mean), and their cosines are {plain(float(collapse.nc2_angle[-1]))} from a simplex's"
        if np.isfinite(collapse.nc2_norm[-1])
        else "At the last depth the class means have no angles"
    )
    if np.isfinite(collapse.nc3[-1]):
        text += f"; {weights}"
    return f"{text}. All of these are 0 in full collapse."


def updates(theory: Theory) -> str:
    """Shares of the updates along the weights of classes, over all blocks."""
    name = "final" if "final" in theory.updates else "true"
    update = theory.updates[name]
    own, others, outside = (_mean(part.value) for part in (update.own, update.others, update.outside))
    if not np.isfinite(own):
        return "Nothing is written: what enters the classifier is the same at every depth."
    if update.rank == 1:
        return (
            f"On average over the blocks, {percent(own)} of an update's squared length lies along the difference of "
            f"the two classes' weights, and {percent(outside)} past it, where it changes no probability; an update "
            f"without aim would have {percent(1 / update.width)} along it. With two classes there are no others."
        )
    return (
        f"On average over the blocks, {percent(own)} of an update's squared length lies along the weight of the {name} "
        f"class, {percent(others)} along those of others, and {percent(outside)} where no weight reaches; an update "
        f"without aim would have {percent(1 / update.width)}, {percent(max(update.rank - 1, 0) / update.width)} and "
        f"{percent(1 - update.rank / update.width)}. Theorem 2.2 allows none along others."
    )


def sentences(theory: Theory) -> list[str]:
    """All sentences that these data allow, in the order of the figures."""
    parts = [line, monotone, straight, turning, growth]
    parts += [nearer] if "final" in theory.closeness else []
    parts += [spread, simplex] if MEASURED in theory.collapse else []
    parts += [updates] if theory.updates else []
    return [part(theory) for part in parts]


def kinds_of_paths(geometry: Mapping[str, Geometry]) -> list[str]:
    """The kinds of paths that are shown side by side, the measured ones first."""
    return [name for name in (MEASURED, WALK, "shuffled", RANDOM_WEIGHTS) if name in geometry]


def _verdict(measured: Estimate, chance: Estimate, below: str, above: str) -> str:
    """`below` or `above` where the two intervals do not overlap."""
    if measured.high < chance.low:
        return below
    if measured.low > chance.high:
        return above
    return "and these samples do not tell the two apart"


def degrees(value: float) -> str:
    """An angle as text."""
    return f"{value:.0f}°"


def _short(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.3g}"


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
