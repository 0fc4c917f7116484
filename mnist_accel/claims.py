"""Documented beside this run: what a published figure says of a result, and when the two cannot be compared."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from mnist_accel.recipe import Claim, Recipe
from mnist_accel.results import ClaimResult, RunResult


def judged(result: RunResult, recipe: Recipe, comparable: bool, device_type: str) -> RunResult:
    """``result`` with every claim of the recipe beside what was measured."""
    claims = [judge(claim, result, comparable and claim.device in (None, device_type)) for claim in recipe.claims]
    return replace(result, claims=claims)


def judge(claim: Claim, result: RunResult, comparable: bool) -> ClaimResult:
    measured = measure(claim, result)
    # A parameter count is the network's own, whatever it was trained on.
    if measured is None or not (comparable or claim.metric == "parameters"):
        return ClaimResult(claim.label, claim.documented, measured, None)
    return ClaimResult(claim.label, claim.documented, measured, holds(measured, claim))


def judged_on_average(results: Sequence[RunResult], recipe: Recipe) -> list[ClaimResult]:
    """Every claim beside the mean of several runs: one lucky seed meets nothing."""
    claims = []
    for index, claim in enumerate(recipe.claims):
        seen = [result.claims[index] for result in results]
        measured = [one.measured for one in seen if one.measured is not None]
        average = mean(measured) if measured else None
        comparable = average is not None and all(one.met is not None for one in seen)
        met = holds(average, claim) if comparable and average is not None else None
        claims.append(ClaimResult(claim.label, claim.documented, average, met))
    return claims


def measure(claim: Claim, result: RunResult) -> float | None:
    if claim.metric == "parameters":
        return result.params
    if claim.metric == "train_seconds":
        return result.train_seconds
    if claim.epoch is None:
        return getattr(result, claim.metric)
    at = next((stats for stats in result.history if stats.epoch == claim.epoch), None)
    return None if at is None else getattr(at, claim.metric)


def holds(measured: float, claim: Claim) -> bool:
    # 9,813 of 10,000 is 98.13, whatever the last bit of the division says.
    measured = round(measured, 6)
    return {
        "=": measured == claim.value,
        "<": measured < claim.value,
        "<=": measured <= claim.value,
        ">": measured > claim.value,
        ">=": measured >= claim.value,
    }[claim.relation]
