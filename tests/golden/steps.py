"""Losses and weights of five steps of every method, head and loss, kept in steps.json.

When numbers are meant to change, say why in the commit and write the file anew:
python -m tests.golden.steps
On the machine that wrote the file, `--exact` compares every bit and names the first difference.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from handmim.utils.run import Run
from tests.engine.rank_cases import cases
from tests.engine.rank_worker import same_batch

FILE = Path(__file__).with_suffix(".json")
STEPS = 5


def steps_of(run: Run, name: str) -> dict[str, list[float]]:
    """Losses of the steps and two sums over the weights afterwards."""
    return same_batch(run, cases()[name], steps=STEPS)


def alone(folder: Path) -> Run:
    torch.set_num_threads(1)
    return Run.start("alone", folder / "alone", 0, {}, accelerator="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write or compare the kept numbers.")
    parser.add_argument("--exact", action="store_true", help="compare bit for bit, write nothing")
    exact = parser.parse_args().exact
    with tempfile.TemporaryDirectory() as folder:
        run = alone(Path(folder))
        found = {name: steps_of(run, name) for name in cases()}
    if not exact:
        rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
        FILE.write_text("{\n" + rows + "\n}\n")
        return
    kept = json.loads(FILE.read_text())
    changed = sorted({name for name in kept | found if kept.get(name) != found.get(name)})
    if changed:
        raise SystemExit("other numbers than in steps.json: " + ", ".join(changed))


if __name__ == "__main__":
    main()
