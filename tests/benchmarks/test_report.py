from benchmarks import report
from benchmarks.cases import SMALL
from benchmarks.figures import Figures
from benchmarks.measurement import Measurement
from benchmarks.peers import NGINX, OURS
from benchmarks.report import Results

BLOB = SMALL[0]


def measured(mb_per_second: float) -> Measurement:
    return Measurement(mb_per_second, 0.5, 100.0, 2.0)


def test_facts_are_the_medians_of_all_rounds() -> None:
    results = Results(3, [BLOB])
    for rate in (900.0, 100.0, 800.0):
        results.add(BLOB, OURS, measured(rate))
    assert results.facts()[BLOB.name, OURS, "mb_per_second"] == 800.0


def test_what_failed_in_one_round_has_no_row_and_no_fact() -> None:
    results = Results(2, [BLOB])
    for peer in (OURS, NGINX):
        results.add(BLOB, peer, measured(900.0))
    results.fail(BLOB, NGINX, "a download broke off")
    assert [row[1] for row in report.rows(results)] == [OURS]
    assert not any(peer == NGINX for _, peer, _ in results.facts())
    assert report.as_json(results)["failures"] == [{"case": BLOB.name, "peer": NGINX, "why": "a download broke off"}]


def test_a_figure_is_shown_as_its_median_between_its_extremes() -> None:
    figures = Figures("slow", 3)
    for value in (99.24, 7.452, 98.1):
        figures.add("clients", "kB/s", value)
    assert figures.facts() == {("slow", "clients", "kB/s"): 98.1}
    header, _, row, *_ = figures.table(markdown=True).splitlines()
    assert header == "| what | figure | median | least | most |"
    assert row == "| clients | kB/s | 98.1 | 7.45 | 99.2 |"
