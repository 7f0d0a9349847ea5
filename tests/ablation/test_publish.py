import json

import pytest

from handmim.ablation.files import read_json
from handmim.ablation.publish import publish, without_places


def published(word, stage="pretrain"):
    (cell,) = without_places([{"overrides": {stage: [word]}}])
    return cell["overrides"][stage][0]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.root='/home/me/photos/images'", "data.root='.../images'"),
        ("probe.root=/data/x/y", "probe.root=.../y"),
        ("data.root=/home/me/my photos/of hands/", "data.root=.../of hands"),
        ("data.root='/home/my name/a, b=c/photos'", "data.root='.../photos'"),
        ('data.root="/home/me/photos"', 'data.root=".../photos"'),
        ("data.roots=[/home/me/a,'/home/me/b c', d/e]", "data.roots=[.../a,'.../b c', d/e]"),
        ("data.roots=[ /home/me=x/a ]", "data.roots=[ .../a]"),
        ("data={root:/home/me/a, n: 1}", "data={root:.../a, n: 1}"),
        ("data.root=~/photos", "data.root=.../photos"),
        ("data.root='~me/photos'", "data.root='.../photos'"),
        (r"data.root='C:\Users\me\photos'", "data.root='.../photos'"),
        ("data.root=D:/me/photos", "data.root=.../photos"),
        (r"data.root=\\box\share\photos", "data.root=.../photos"),
        ("""pretrain=["data.root='/home/me/a b'"]""", """pretrain=["data.root='.../a b'"]"""),
    ],
)
def test_paths_keep_their_last_part(word, said):
    assert published(word) == said


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=1/2", "~task.losses.pixel_recon", "loss=[patch_distill,pixel_recon]",
        "data.root=photos/images", "init=timm:vit_tiny", "setting.annotations='c=d.json'", "x=null",
    ],
)  # fmt: skip
def test_other_words_stay_as_they_are(word):
    assert published(word) == word


def test_weights_that_a_row_starts_from_are_paths_as_a_whole():
    assert published("/home/me/a, b=c/backbone.safetensors", "start") == ".../backbone.safetensors"
    assert published("~/backbone.safetensors", "start") == ".../backbone.safetensors"
    assert published("random", "start") == "random"


def test_published_cells_name_no_host_and_keep_their_figures(tmp_path):
    cell = {"overrides": {"pretrain": ["data.root=/a/b"]}, "host": "box", "figures": {"probe/x": 6}}
    for name in ("table.md", "table.csv", "plot.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "cells.json").write_text(json.dumps([cell]))
    publish("t", tmp_path, tmp_path / "out")
    said = [{"overrides": {"pretrain": ["data.root=.../b"]}, "figures": {"probe/x": 6}}]
    assert read_json(tmp_path / "out" / "t.json") == said
