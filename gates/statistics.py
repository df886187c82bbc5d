"""How sure a score or a difference is. The unit is the item: asking one again makes it better known, not more items.

numpy and scipy are imported where they are used, since most commands never need them; of scipy only `special`, because
`stats` takes a second to import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
"""One-sided: 95 of 100 times the true value is not below the interval, and as often not above it."""
POWER = 0.8
"""How often a difference must be found that is called detectable."""
RESAMPLES = 4000

_AT_ONCE = 4_000_000
"""Numbers drawn at a time: 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies, in points. Each end holds with 95 % by itself, so both make a 90 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two scores, in points: what is judged minus what it is held against.

    `p_worse` is the probability of what was seen, or of something worse, if there were no difference; None where the
    items are not known, so that nothing can be said but how wide the interval is.
    """

    mean: float
    interval: Interval
    detectable: float
    """The smallest true difference that `POWER` of such comparisons would tell from none, in points."""
    p_worse: float | None = None


def wilson(share: float, items: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a share of `items` that were solved; Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Args:
        share: 0 to 1; items that were solved in part count in part.
    """
    from scipy.special import ndtri

    z = float(ndtri(confidence))
    centre = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z * sqrt(share * (1 - share) / items + z * z / (4 * items * items)) / (1 + z * z / items)
    return Interval(100 * max(0.0, centre - half), 100 * min(1.0, centre + half))


def exact(solved: int, items: int, confidence: float = CONFIDENCE) -> Interval:
    """As `wilson`, for items that are solved or not: never too narrow (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(solved, items - solved + 1, 1 - confidence)) if solved else 0.0
    high = float(betaincinv(solved + 1, items - solved, confidence)) if solved < items else 1.0
    return Interval(100 * low, 100 * high)


def mcnemar(regressions: int, fixes: int) -> float:
    """The probability of so many regressions or more among the items that changed, if either were as likely.

    The exact test of McNemar 1947, one-sided: only the items that one side alone solved say anything.
    """
    from scipy.special import bdtrc

    return float(bdtrc(regressions - 1, regressions + fixes, 0.5)) if regressions else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that the chance of any false alarm keeps to the level (Holm 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    raised = accumulate((min(1.0, (len(values) - rank) * values[i]) for rank, i in enumerate(order)), max)
    adjusted = dict(zip(order, raised, strict=True))
    return [adjusted[index] for index in range(len(values))]


def paired(strata: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Difference:
    """Compares two candidates on the same items: the bootstrap over items, within each pack.

    A bootstrap of few items knows nothing of what they did not show: where no item changed, its interval is a point.
    So each pack gets one item more that was won and one that was lost, as Bonett and Price add to the counts
    (doi:10.1002/sim.4224). The mean itself is that of the items alone. The same items give the same numbers.

    Args:
        strata: for each pack the difference of each item, -1 to 1: its mean over repeats of points / of. Packs count
            alike, whatever their number of items.
    """
    import numpy as np

    arrays = [np.asarray(items, dtype=np.float64) for items in strata]
    seed = hashlib.sha256(b"".join(items.tobytes() for items in arrays)).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed)))
    padded = [np.concatenate([items, [1.0, -1.0]]) for items in arrays]
    means = 100 * np.mean([_resampled(items, generator) for items in padded], axis=0)
    low, high = np.quantile(means, [1 - confidence, confidence])
    error = 100 * sqrt(sum(items.var() / len(items) for items in padded)) / len(padded)
    return Difference(
        mean=100 * float(np.mean([np.mean(items) for items in arrays])),
        interval=Interval(float(low), float(high)),
        detectable=detectable(error, confidence),
        # what was seen is one of the resamples, so the value is never 0 (Davison and Hinkley 1997, 4.2)
        p_worse=(1 + int(np.count_nonzero(means >= 0))) / (1 + RESAMPLES),
    )


def unpaired(shares: Sequence[tuple[float, float]], items: Sequence[int], confidence: float = CONFIDENCE) -> Difference:
    """Compares scores of which the items are not known, as if they were different ones, which is wider (Newcombe 1998,
    method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).

    Args:
        shares: for each pack what both solved, 0 to 1: first what is judged, then what it is held against.
        items: how many items each pack has.
    """
    mean, below, above, variance = 0.0, 0.0, 0.0, 0.0
    for (ours, theirs), count in zip(shares, items, strict=True):
        mine, other = wilson(ours, count, confidence), wilson(theirs, count, confidence)
        mean += 100 * (ours - theirs)
        below += (100 * ours - mine.low) ** 2 + (other.high - 100 * theirs) ** 2
        above += (mine.high - 100 * ours) ** 2 + (100 * theirs - other.low) ** 2
        variance += sum(_variance(share, count) for share in (ours, theirs))
    packs = len(items)
    return Difference(
        mean=mean / packs,
        interval=Interval((mean - sqrt(below)) / packs, (mean + sqrt(above)) / packs),
        detectable=detectable(100 * sqrt(variance) / packs, confidence),
    )


def _variance(share: float, items: int) -> float:
    """Of a share, with one item more that was solved and one that was not (Agresti and Caffo 2000): never 0."""
    adjusted = (share * items + 1) / (items + 2)
    return adjusted * (1 - adjusted) / (items + 2)


def detectable(error: float, confidence: float = CONFIDENCE) -> float:
    """The smallest true difference that `POWER` of comparisons with this standard error (points) would tell from none.

    (z_confidence + z_power) · error, the usual normal approximation.
    """
    from scipy.special import ndtri

    return float(ndtri(confidence) + ndtri(POWER)) * error


def items_needed(spread: float, margin: float, confidence: float = CONFIDENCE) -> int:
    """How many items show, `POWER` of the time, that a candidate no worse than its baseline is within the margin.

    Args:
        spread: the standard deviation of the items' differences, in points.
    """
    return ceil((detectable(spread, confidence) / margin) ** 2)


def _resampled(items: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """The mean of each resample: `RESAMPLES` times as many items, drawn with replacement."""
    import numpy as np

    count = len(items)
    at_once = max(1, _AT_ONCE // count)
    parts = [
        items[generator.integers(count, size=(min(at_once, RESAMPLES - begun), count), dtype=np.int32)].mean(axis=1)
        for begun in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(parts)
