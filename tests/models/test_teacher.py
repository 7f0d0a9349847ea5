import pytest
import torch
from torch import nn

from handmim.models.teacher import EmaTeacher


def test_update_is_an_exponential_mean():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 0.0)
    teacher = EmaTeacher(student)
    nn.init.constant_(student.weight, 1.0)
    teacher.update(student, momentum=0.9)
    teacher.update(student, momentum=0.9)
    assert teacher.net.weight.item() == pytest.approx(1 - 0.9**2)  # 0 -> 0.1 -> 0.19


def test_small_steps_are_not_rounded_away():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    teacher = EmaTeacher(student)
    nn.init.constant_(student.weight, 1.01)
    for _ in range(1000):
        teacher.update(student, momentum=0.9995)
    want = 1.01 - 0.01 * 0.9995**1000
    assert teacher.net.weight.item() == pytest.approx(want, abs=2e-5)


def test_momentum_1_stands_still_and_0_copies():
    student = nn.Linear(3, 2)
    teacher = EmaTeacher(student)
    old = teacher.net.weight.clone()
    nn.init.normal_(student.weight)
    teacher.update(student, momentum=1.0)
    assert torch.equal(teacher.net.weight, old)
    teacher.update(student, momentum=0.0)
    assert torch.equal(teacher.net.weight, student.weight)


def test_teacher_stays_in_eval_and_gets_no_gradient():
    teacher = EmaTeacher(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_buffers_are_copied():
    student = nn.BatchNorm1d(2)
    teacher = EmaTeacher(student)
    student.running_mean.fill_(3.0)
    teacher.update(student, momentum=0.99)
    assert teacher.net.running_mean.tolist() == [3.0, 3.0]


def test_shared_modules_are_the_same_and_stand_still():
    student = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "linear": nn.Linear(2, 2)})
    teacher = EmaTeacher(student, shared=[student["norm"]])
    assert teacher.net["norm"] is student["norm"]
    assert teacher.net["linear"] is not student["linear"]
    old = teacher.net["linear"].weight.clone()
    nn.init.ones_(student["linear"].weight)
    teacher.update(student, momentum=0.5)
    assert student["norm"].weight.tolist() == [1.0, 1.0]
    torch.testing.assert_close(teacher.net["linear"].weight, 0.5 * old + 0.5)


def test_different_modules_are_refused():
    teacher = EmaTeacher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="bias"):
        teacher.update(nn.Linear(2, 2, bias=False), momentum=0.5)
