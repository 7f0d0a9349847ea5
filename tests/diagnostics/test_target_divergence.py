import math

import pytest
import torch

from handmim.diagnostics.collapse import measure
from handmim.objectives.distillation import Pair, soft_cross_entropy
from handmim.types import StepInfo
from tests.tasks.test_pretrain_task import make_batch, make_task

INFO = StepInfo(0, 10)


def metrics_of(task, batch_size: int = 4) -> dict[str, float]:
    return measure(task, make_batch(), INFO, batch_size=batch_size, seed=0)


def planted(answer):
    """A task whose student predicts a function of the targets [M, P], as probabilities."""
    task = make_task(("patch_distill",)).eval()
    predict, temp = task.predict, task.each["patch_distill"].student_temp

    def changed(batch, info):
        ctx, predictions = predict(batch, info)
        found = predictions["patch_distill"]
        probs = noisy_targets(len(found.teacher))
        own = found.student  # whose gradient goes on
        logits = temp * answer(probs).log() + own - own.detach()
        return ctx, {"patch_distill": Pair(logits, probs)}

    task.predict = changed
    return task


def noisy_targets(num: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return (2 * torch.randn(num, 16, generator=g)).softmax(dim=-1)


def test_divergence_separates_idle_distillation_from_a_student_that_follows():
    idle = metrics_of(planted(lambda p: p.mean(dim=0).expand_as(p)))
    assert idle["targets/kl_nats"] == pytest.approx(idle["targets/constant_kl_nats"], rel=1e-4)
    assert idle["targets/kl_of_constant"] == pytest.approx(1.0, rel=1e-4)
    assert idle["targets/constant_kl_nats"] > 0.5
    entropies = idle["targets/entropy_of_mean"] - idle["targets/entropy_of_each"]
    assert idle["targets/constant_kl_nats"] == pytest.approx(entropies * math.log(16), rel=1e-4)
    assert idle["targets/kl_share"] == pytest.approx(idle["targets/kl_nats"] / math.log(16))
    perfect = metrics_of(planted(lambda p: p))
    assert perfect["targets/kl_nats"] == pytest.approx(0.0, abs=1e-5)
    assert perfect["targets/kl_of_constant"] == pytest.approx(0.0, abs=1e-5)
    wrong = metrics_of(planted(lambda p: p.roll(1, dims=0)))
    assert wrong["targets/kl_of_constant"] > 1


def test_divergence_is_the_loss_without_entropy_in_one_go_or_in_parts():
    task = make_task(("patch_distill",)).eval()
    metrics = metrics_of(task)
    assert metrics["targets/kl_nats"] > 0
    assert metrics_of(task, 2)["targets/kl_nats"] == pytest.approx(
        metrics["targets/kl_nats"], rel=1e-4
    )
    with torch.no_grad():
        _, predictions = task.predict(make_batch(), INFO)
    p, temp = predictions["patch_distill"], task.each["patch_distill"].student_temp
    cross_entropy = soft_cross_entropy(p.student, p.teacher, temp).mean().item()
    entropy = metrics["targets/entropy_of_each"] * math.log(p.teacher.shape[-1])
    assert metrics["targets/kl_nats"] == pytest.approx(cross_entropy - entropy, rel=1e-4)


def test_tasks_without_patch_distillation_report_none():
    assert not any("kl" in name for name in metrics_of(make_task(("class_distill",)).eval()))
