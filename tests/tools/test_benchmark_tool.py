from tests.tools.calls import TINY, call


def test_methods_are_measured_by_the_first(place):
    words = ["experiment=cpu_base", "trainer.batch_size=2", *TINY]
    text = call(place, "benchmark.py", "--steps=1", "--methods=mae,handmim", *words)
    (mae,), (handmim,) = (
        [r for r in text.splitlines() if f" {m} " in r] for m in ("mae", "handmim")
    )
    assert "1.00" in mae
    assert float(handmim.split("│")[3]) > 1.0


def test_a_suite_prints_and_writes_its_rows(place):
    sizes = ["suites.hand.batch_sizes=[1]", "suites.hand.promised=[0.01]", "rounds=1"]
    text = call(place, "benchmark.py", "suite=[hand]", *sizes, "json=out/rows.json")
    assert "hand: batch 1, forward and backward" in text
    assert (place / "out" / "rows.json").is_file()
