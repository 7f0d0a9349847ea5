"""How time, memory and operations of a pretraining step grow with each of its sizes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmark.ceiling import flops_of
from benchmark.memory import peak_mib
from benchmark.race import Bench, Row, compared
from benchmark.step import our_step


def measure(
    bench: Bench,
    *,
    arch: str,
    drop_path_rate: float,
    precision: str,
    base: Mapping[str, int],
    grow: Mapping[str, Sequence[int]],
) -> Iterator[list[Row]]:
    """A case per size that grows, the others as in the base; speed is relative to its first value,
    per crop.

    Args:
        bench: where and how long.
        arch, drop_path_rate: of the backbone.
        precision: Fabric's.
        base: batch_size, view_px, patch_px, num_prototypes.
        grow: values by the same names.
    Raises: ValueError for a name that is no size.
    """
    unknown = sorted(set(grow) - set(base))
    if unknown:
        raise ValueError(f"sizes that grow are {sorted(base)}, got {unknown} (suites.scaling.grow)")
    for name, values in grow.items():
        steps, more = {}, {}
        for value in values:
            made = {**base, name: value}
            batch = {k: made[k] for k in ("batch_size", "view_px", "patch_px")}
            sizes: dict[str, Any] = {
                "arch": arch,
                "drop_path_rate": drop_path_rate,
                **{k: made[k] for k in ("view_px", "patch_px", "num_prototypes")},
            }
            make, label = partial(our_step, precision=precision), str(value)
            steps[label] = make(bench.device, sizes, batch)
            more[label] = {
                "gflop": flops_of(steps[label]) / 1e9,
                "peak_mib": peak_mib(make, bench.device, sizes, batch, device=bench.device),
            }
        seconds, num = bench.race(steps), base["batch_size"]
        per_crop = {}
        for value, (label, times) in zip(values, seconds.items(), strict=True):
            crops = value if name == "batch_size" else num
            per_crop[label] = [s / crops for s in times]
        first = str(values[0])
        yield compared("scaling", f"{name}, per crop", per_crop, first, unit="crops", more=more)
