"""Quotas, as a pure rule: what may run beside what runs."""

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from lro.admission import Quota, choose, openings
from lro.lifecycle import Record
from tests.records import record

JOBS = st.sampled_from(["a", "b", "c"])
TARGETS = st.sampled_from(["", "x", "y", "z"])
LIMITS = st.none() | st.integers(1, 4)
QUOTAS = st.dictionaries(JOBS, st.builds(Quota, LIMITS, LIMITS))
RECORDS = st.lists(st.builds(record, job=JOBS, target=TARGETS), max_size=12)


@st.composite
def running(draw: st.DrawFn) -> Mapping[tuple[str, str], int]:
    return draw(st.dictionaries(st.tuples(JOBS, TARGETS), st.integers(1, 5), max_size=6))


def fits(quota: Quota, job: str, target: str, counts: Counter[tuple[str, str]]) -> bool:
    """Return whether one more may run, told again and otherwise."""
    total = sum(count for (one, _), count in counts.items() if one == job)
    if quota.total is not None and total + 1 > quota.total:
        return False
    return not (quota.per_target is not None and target and counts[job, target] + 1 > quota.per_target)


@given(due=RECORDS, quotas=QUOTAS, runs=running())
def test_who_comes_first_is_first_and_nobody_waits_who_may_run(
    due: list[Record], quotas: dict[str, Quota], runs: Mapping[tuple[str, str], int]
) -> None:
    counts = Counter(dict(runs))
    expected: list[Record] = []
    for one in due:
        if fits(quotas.get(one.job, Quota()), one.job, one.target, counts):
            counts[one.job, one.target] += 1
            expected.append(one)

    assert choose(due, quotas, runs) == expected


@given(due=RECORDS, quotas=QUOTAS, runs=running(), limit=st.integers(1, 5))
def test_an_opening_leaves_out_what_may_not_run_and_nothing_else(
    due: list[Record], quotas: dict[str, Quota], runs: Mapping[tuple[str, str], int], limit: int
) -> None:
    """Of what the openings let pass, the first may run: so a claim that finds something takes something."""
    found = {one.job: one for one in openings(["a", "b", "c"], limit, quotas, runs)}
    for one in due:
        opening = found.get(one.job)
        passes = opening is not None and one.target not in opening.full
        assert passes == fits(quotas.get(one.job, Quota()), one.job, one.target, Counter(dict(runs)))
        assert opening is None or 0 < opening.room <= limit
