import json
import re

from tests.tools.calls import METRICS, TINY, call, small_data


def test_quickstart_runs_every_stage_and_reports(workdir):
    overrides = ["--name", "qs", "--seed", "3", *TINY, *small_data(workdir), "num_labels=8"]
    overrides = [w for w in overrides if not w.startswith("num_labels")]
    stages = ["trainer.max_steps=2", "trainer.batch_size=4", "data.num_train=1600"]
    text = call(workdir, "quickstart.py", *overrides, *stages, "data.num_val=8")
    rows = json.loads((workdir / "runs" / "qs" / "summary.json").read_text())
    assert [r["name"] for r in rows] == ["mean_hand", "scratch", "handmim"]
    for row in rows:
        assert set(row) >= METRICS | {"seconds", "total_seconds", "seed"}
        assert row["seed"] == 3
    assert rows[0]["total_seconds"] > rows[2]["seconds"] > rows[1]["seconds"] > 0
    page = (workdir / "runs" / "qs" / "report.html").read_text()
    assert page.count("data:image/") >= 6
    assert "no picture" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert re.findall(r"\[(\d) of 6\]", text) == list("123456")
    assert "not at equal total compute" in text
    assert f"{rows[2]['mpjpe_mm']:.2f}" in page
