"""Student's t: how far the mean of a few seeds may lie from the mean of all, and how likely a mean is by chance."""

import math
from collections.abc import Sequence
from statistics import mean, stdev


def within(t: float, freedom: int) -> float:
    """The probability that T lies between -t and t ≥ 0 at so many degrees of freedom.

    Exact, as a finite series in the angle whose tangent is t/√freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def quantile(probability: float, freedom: int) -> float:
    """The t that T stays below with a ``probability`` between one half and 1."""
    low, high = 0.0, 1.0
    while within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """What holds the true mean with this confidence; None of fewer than two values, which tell no spread."""
    if len(values) < 2:
        return None
    reach = quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - reach, mean(values) + reach


def chance_of_so_high(values: Sequence[float], true_mean: float) -> float | None:
    """One-sided: how likely a mean of at least theirs is where the true one is ``true_mean``; None of fewer than two
    values, or of equal ones, which tell no spread."""
    if len(values) < 2 or stdev(values) == 0:
        return None
    t = (mean(values) - true_mean) * math.sqrt(len(values)) / stdev(values)
    beyond = (1 - within(abs(t), len(values) - 1)) / 2
    return beyond if t > 0 else 1 - beyond
