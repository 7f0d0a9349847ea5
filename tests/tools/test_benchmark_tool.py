from tests.tools.calls import TINY, call


def test_methods_are_measured_by_the_first(workdir):
    overrides = ["experiment=cpu_base", "trainer.batch_size=2", *TINY]
    text = call(workdir, "benchmark.py", "--steps=1", "--methods=mae,handmim", *overrides)
    (mae,), (handmim,) = (
        [r for r in text.splitlines() if f" {m} " in r] for m in ("mae", "handmim")
    )
    assert "1.00" in mae
    assert float(handmim.split("│")[3]) > 1.0


def test_a_suite_prints_and_writes_its_rows(workdir):
    sizes = ["suites.hand.batch_sizes=[1]", "suites.hand.promised=[0.01]", "rounds=1"]
    text = call(workdir, "benchmark.py", "suite=[hand]", *sizes, "json=out/rows.json")
    assert "hand: batch 1, forward and backward" in text
    assert (workdir / "out" / "rows.json").is_file()
