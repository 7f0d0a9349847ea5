"""A neck from pretraining to the start of fine-tuning, by the tools."""

import torch
from safetensors.torch import load_file

from tests.tools.calls import FINETUNE, PRETRAIN, TINY, call, small_data


def test_finetuning_starts_with_the_teachers_neck_unless_it_is_told_not_to(workdir):
    run, again = workdir / "runs" / "necked", workdir / "runs" / "with_neck"
    overrides = [*PRETRAIN, *TINY, *small_data(workdir), "probe.hook=null", "name=necked"]
    overrides += ["objective=[pyramid_hog]", "task.heads.neck={channels: 16, taps: [1]}"]
    text = call(workdir, "pretrain.py", *overrides)
    neck = load_file(run / "neck.safetensors")
    assert f"exported neck: {run / 'neck.safetensors'}" in text
    last = torch.load(run / "last.pt", weights_only=True)["task"]
    assert all(torch.equal(v, last[f"teacher.net.neck.{k}"]) for k, v in neck.items())

    overrides = [*FINETUNE, *TINY, *small_data(workdir), "name=with_neck", "eval_every=null"]
    overrides += ["task.head.channels=16", "task.head.taps=[1]", "optim.lr=0"]
    overrides += ["optim.weight_decay=0", f"init_from={run / 'backbone.safetensors'}"]
    text = call(workdir, "finetune.py", *overrides)
    assert f"neck: {run / 'neck.safetensors'}, {len(neck)} tensors" in text
    task = torch.load(again / "last.pt", weights_only=True)["task"]
    assert all(torch.equal(v, task[f"head.pyramid.{k}"]) for k, v in neck.items())
    text = call(workdir, "finetune.py", *overrides, "resume=auto", "init_neck=never", fails=True)
    assert "neck_sha256" in text
