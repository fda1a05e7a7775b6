"""The table of stale weights says what the proofs answered."""

from scripts.bench.stale_weights import Verdict, comparison_rate, faults_table, judged


def test_a_verdict_counts_what_came_before_the_first_refusal() -> None:
    found = judged(["unsure", "proved", "refused", "proved"])
    assert found == Verdict(refused_after=3, proved=1, unsure=1)
    assert judged(["unsure"] * 4) == Verdict(unsure=4)


def test_a_fault_that_was_called_proved_is_told_so_even_if_it_is_seen_later() -> None:
    assert str(Verdict(refused_after=3, proved=2)) == "passes 2 as proved, then seen after 3"
    assert str(Verdict(refused_after=1)) == "1"
    assert str(Verdict(unsure=20)) == "cannot tell (20 versions)"


def test_the_table_has_a_row_for_each_fault_and_proof() -> None:
    row = {
        "gap": Verdict(proved=5),
        "change": Verdict(unsure=5),
        "tensors": Verdict(refused_after=1),
    }
    table = faults_table({"nothing is loaded": {"float32, 1e-06": row}})
    assert table.splitlines()[2:] == [
        "| nothing is loaded | before | passes 5 as proved |",
        "| nothing is loaded | probe | cannot tell (5 versions) |",
        "| nothing is loaded | tensors | 1 |",
    ]


def test_tensors_are_compared_at_a_rate_that_a_load_can_afford() -> None:
    assert comparison_rate(megabytes=64) > 0.05, "GB/s; a busy machine compares more than this"
