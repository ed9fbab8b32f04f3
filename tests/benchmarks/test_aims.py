from dataclasses import fields

import pytest

from benchmarks import aims, crowd, entries
from benchmarks.aims import AIMS, Aim
from benchmarks.cases import FULL
from benchmarks.measurement import Measurement
from benchmarks.peers import PEERS

FASTER = Aim("one blob", "MB/s, ratio", 2.0, ("blob", "a", "mb"), ("blob", "b", "mb"))
SMALLER = Aim("memory", "MB", 300.0, ("slow", "a", "mb"), at_most=True)


@pytest.mark.parametrize(
    ("aim", "facts", "verdict"),
    [
        (FASTER, {("blob", "a", "mb"): 900.0, ("blob", "b", "mb"): 300.0}, "met, 1.50 times"),
        (FASTER, {("blob", "a", "mb"): 600.0, ("blob", "b", "mb"): 300.0}, "met, 1.00 times"),
        (FASTER, {("blob", "a", "mb"): 450.0, ("blob", "b", "mb"): 300.0}, "missed by 25%"),
        (SMALLER, {("slow", "a", "mb"): 150.0}, "met, 2.00 times"),
        (SMALLER, {("slow", "a", "mb"): 450.0}, "missed by 50%"),
    ],
)
def test_an_aim_says_by_how_much_it_is_met_or_missed(
    aim: Aim, facts: dict[tuple[str, str, str], float], verdict: str
) -> None:
    measured = aim.measured(facts)
    assert measured is not None
    assert aim.verdict(measured) == verdict


def test_an_aim_of_which_one_side_was_not_measured_has_no_row() -> None:
    assert FASTER.measured({("blob", "a", "mb"): 900.0}) is None
    assert aims.table({("blob", "storage proxy", "mb_per_second"): 900.0}, markdown=False) == ""


def test_every_aim_is_about_something_that_is_measured() -> None:
    cases = {case.name for case in FULL}
    figures = {field.name for field in fields(Measurement)}
    for aim in AIMS:
        for subject, who, figure in filter(None, (aim.of, aim.over)):
            assert subject in {crowd.SUBJECT, entries.SUBJECT} or (
                subject in cases and who in PEERS and figure in figures
            ), aim
