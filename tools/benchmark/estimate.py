"""Cost of a config before it starts: a few steps at small batches, extrapolated to its own; and of
pretraining methods relative to each other.

Time and memory of a step are close to straight lines of the batch size once it is not tiny: both
are measured at two sizes, as large as a few seconds allow, and the lines are followed.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from benchmark.core import MIB, Bench, flops_of, peak_mib
from handmim.pipelines.dry_run import dry_run_step
from handmim.utils.timer import Stages

ENOUGH_S = 2.0  # a step this long is measured well
STEPS = 3


class Probe(NamedTuple):
    """Cost of a step at one batch size."""

    samples: int  # of a process and part of its batch
    seconds: float
    mib: float  # above the bare process: weights, optimizer, activations


class Estimate(NamedTuple):
    """Cost of a run on this machine, without loading data, hooks and files."""

    parameters: float  # trainable, millions
    gflop: float  # of a step of one process
    seconds: float  # of a step
    images_per_s: float  # of all processes, if they do not wait for each other
    hours: float  # of all steps
    mib: float  # peak of a process above what it has once its libraries are loaded
    probes: tuple[Probe, ...]


def estimate(cfg: DictConfig) -> Estimate:
    """Measure and extrapolate.

    Args:
        cfg: composed from configs/pretrain.yaml or configs/finetune.yaml; its batch is that of all
            processes.
    Raises: ValueError for a batch that does not divide.
    """
    trainer, machine = cfg.trainer, cfg.machine
    if not isinstance(machine.devices, int) or machine.devices < 1:
        raise ValueError(
            f"machine.devices must be a number of devices here, got {machine.devices!r}"
        )
    processes = machine.num_nodes * machine.devices
    part, rest = divmod(trainer.batch_size, processes * trainer.accumulate)
    if rest or not part:
        raise ValueError(
            f"a batch of {trainer.batch_size} does not divide by {processes} processes and "
            f"{trainer.accumulate} parts (batch_size, accumulate)"
        )
    if machine.num_threads is not None:
        torch.set_num_threads(machine.num_threads)
    probes, parameters, flops = _probed(cfg, part)
    at = extrapolated(probes, part)
    seconds = at.seconds * trainer.accumulate
    return Estimate(
        parameters=parameters,
        gflop=flops * part / probes[-1].samples * trainer.accumulate / 1e9,
        seconds=seconds,
        images_per_s=trainer.batch_size / seconds,
        hours=seconds * trainer.max_steps / 3600,
        mib=at.mib,
        probes=probes,
    )


def extrapolated(probes: tuple[Probe, ...], samples: int) -> Probe:
    """A straight line through the first and the last probe, at another size; never below the
    last where it falls. Of one probe, where more did not fit, a line from zero."""
    first, last = probes[0], probes[-1]
    if last.samples == first.samples:
        first = Probe(0, 0.0, 0.0)
    share = (samples - last.samples) / (last.samples - first.samples)
    seconds, mib = (
        b + max(b - a, 0.0) * share
        for a, b in ((first.seconds, last.seconds), (first.mib, last.mib))
    )
    return Probe(samples, seconds, mib)


def _probed(cfg: DictConfig, part: int) -> tuple[tuple[Probe, ...], float, int]:
    """Probes at two sizes up to that of a part, the parameters, and operations of the larger."""
    content = OmegaConf.to_yaml(cfg)
    size, found = min(2, part), list[Probe]()
    fabric = Fabric(accelerator=cfg.machine.accelerator, devices=1, precision=cfg.machine.precision)
    flops = 0
    while True:
        try:
            seconds, parameters, flops = _timed(content, size, fabric)
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        found.append(Probe(size, seconds, 0.0))
        enough = ENOUGH_S if fabric.device.type == "cpu" else ENOUGH_S / 10
        if size == part or (len(found) > 1 and seconds > enough):  # a line wants two points
            break
        size = min(2 * size, part)
    probes = tuple(p._replace(mib=_mib(content, p.samples, fabric.device)) for p in found[-2:])
    return probes, parameters, flops


def _timed(content: str, samples: int, fabric: Fabric) -> tuple[float, float, int]:
    """Seconds of a step, trainable parameters in millions, operations of a step."""
    step, parameters = dry_run_step(_small(content, samples), fabric)
    step(0)
    watch = Stages(fabric.device)
    for number in range(STEPS):
        with watch.lap(samples):
            step(number + 1)
    return samples * watch.seconds_per_item["all"], parameters, flops_of(partial(step, STEPS + 1))


def _small(content: str, samples: int) -> DictConfig:
    cfg = OmegaConf.create(content)
    assert isinstance(cfg, DictConfig)
    cfg.trainer.batch_size, cfg.trainer.accumulate = samples, 1
    return cfg


def _mib(content: str, samples: int, device: torch.device) -> float:
    """Peak of steps above a process that has loaded its libraries, the networks among it."""
    if device.type != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work = _lazy_step(content, samples)
        for _ in range(STEPS):
            work()
        return float(torch.cuda.max_memory_allocated()) / MIB
    return peak_mib(_lazy_step, content, samples, device=device)


def _lazy_step(content: str, samples: int) -> Callable[[], None]:
    """Work that builds everything in its first call."""
    held: dict[str, Any] = {}

    def work() -> None:
        if not held:
            cfg = _small(content, samples)
            machine = cfg.machine
            kwargs = {"accelerator": machine.accelerator, "precision": machine.precision}
            held["step"], held["number"] = dry_run_step(cfg, Fabric(devices=1, **kwargs))[0], 0
        held["step"](held["number"])
        held["number"] += 1

    return work


def duration(seconds: float) -> str:
    """With its unit."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def estimate_table(found: Estimate) -> Table:
    """The estimate as a table."""
    table = Table("", "", show_header=False, title="cost of a run on this machine")
    table.add_row("trainable parameters", f"{found.parameters:.2f} M")
    table.add_row("operations of a step", f"{found.gflop:.1f} GFLOP")
    table.add_row("time of a step", duration(found.seconds))
    table.add_row("images per second", f"{found.images_per_s:.3g}")
    table.add_row("time of all steps", duration(3600 * found.hours))
    table.add_row("peak memory above a bare process", f"{found.mib / 1024:.2f} GiB")
    sizes = " and ".join(str(probe.samples) for probe in found.probes)
    table.caption = (
        f"measured at {sizes} samples, views made within the step; without reading files "
        "(data.root is not read), collapse detection, probes and validation. A bare "
        "process takes about 1 GiB on a CPU"
    )
    return table


def compare_methods(configs: Mapping[str, DictConfig], num_steps: int) -> Table:
    """Time of a pretraining step of each config, relative to the first; on a CPU with one thread.

    The steps are interleaved, so that a noisy machine disturbs all of them alike.
    """
    reference = next(iter(configs))
    machine = configs[reference].machine
    fabric = Fabric(accelerator=machine.accelerator, devices=1, precision=machine.precision)
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    steps = {name: dry_run_step(cfg, fabric) for name, cfg in configs.items()}

    def work(step: Callable[[int], None]) -> Callable[[], None]:
        numbers = count()
        return lambda: step(next(numbers))

    works = {name: work(step) for name, (step, _) in steps.items()}
    seconds = Bench(fabric.device, num_steps).race(works)
    base = statistics.median(seconds[reference])
    unit = "median CPU-ms" if fabric.device.type == "cpu" else "median ms"
    table = Table("method", unit, "relative", "range", "M parameters")
    for name, times in seconds.items():
        ratios = sorted(s / base for s in times)
        ratio = statistics.median(ratios)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        table.add_row(
            name, f"{1e3 * ratio * base:.0f}", f"{ratio:.2f}", spread, f"{steps[name][1]:.1f}"
        )
    return table
