import pytest
from omegaconf import OmegaConf

from handmim.utils.config import add_key, build


def config(**node):
    return OmegaConf.create({"data": {"train": node}})


def test_an_error_of_the_target_keeps_its_type_and_names_the_key_of_the_path():
    cfg = config(_target_="handmim.data.datasets.read_ids", path="/nowhere/ids.txt")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/ids\.txt") as caught:
        build(cfg.data.train)
    assert caught.value.__notes__ == ["data.train.path"]


def test_the_argument_of_an_error_is_named_by_its_key():
    inner = {"_target_": "handmim.engine.optim.Schedule", "start": 1.0, "shape": "wavy"}
    cfg = config(_target_="builtins.dict", lr=inner)
    with pytest.raises(ValueError, match=r"shape .*wavy") as caught:
        build(cfg.data.train)
    assert caught.value.__notes__ == ["data.train.lr.shape"]


def test_an_error_about_no_value_is_named_by_its_part():
    error, named = ValueError("nothing to mix"), ValueError("nothing to mix (set=[...])")
    for one in (error, named):
        add_key(one, config(sets={}), "data.train")
    assert error.__notes__ == ["data.train"]
    assert not hasattr(named, "__notes__")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("num must be >= 1, got -1", "data.num"),  # what the set takes it from
        ("scale must be two numbers, got (0.5, 2)", "views.scale"),
        ("scale must be two numbers, got (0.5, 2) (views.scale)", None),  # it says so itself
        ("/photos/own: not found", "data.root"),
        ("no images in '/photos/own/'", "data.root"),
        ("/photos/own/a.png is damaged", "data.root"),
        ("images/a.png is damaged", "probe.root"),
        ("/photos/owner/a.png is damaged", None),
        ("a.json is cut off", "data.annotations"),
        ("/old/photos/own: not found", None),
        ("side must be >= 7, got 6", None),  # a bound is not the value
        ("side must be even, got 5, needs 7", None),
        ("side=7 is odd", "views.side, probe.side"),
        ("tap_layers must be in (0, 1], got [2.0]", "probe.tap_layers"),
        ("the flag must be a number, got 1", None),  # 1 is not true
        ("another run (views.side: 5 there, 7 here), give side=7", None),
        ("this compares images: got 1, needs at least 2", None),
        ("the scale of -1 things", None),
        ("got -1", None),
        ("num_more must be >= 1, got -1", None),
        ("side must be even, got 7", "views.side, probe.side"),
    ],
)
def test_keys_of_an_error_are_found_by_name_and_value(text, note):
    cfg = OmegaConf.create(
        {
            "data": {
                "annotations": "a.json",
                "num": -1,
                "root": "/photos/own",
                "train": {"num": "${data.num}"},
                "x": "???",
            },
            "views": {"scale": [0.5, 2], "side": 7},
            "probe": {"side": 7, "tap_layers": [2], "flag": True, "root": "images"},
        }
    )
    error = ValueError(text)
    add_key(error, cfg)
    assert getattr(error, "__notes__", [None]) == [note]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "handmim.engine.optim.Schedule", "strat": 1}, "unexpected .* 'strat'"),
        ({"_target_": "handmim.engine.optim.Schedule"}, "missing .* 'start'"),
        ({"_target_": "handmim.no.Such", "a": 1}, "handmim.no"),
        ({"_target_": "handmim.models.vit.ViTT"}, "has no attribute .ViTT|ViTT'"),
        ({"_target_": "handmim.models.vit.ViT", "arch": "vit_tinny"}, "Unknown model .vit_tinny"),
    ],
)
def test_what_cannot_be_called_is_one_sentence_with_the_key(node, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(config(**node).data.train)
    assert str(caught.value).startswith("data.train (handmim.")
    assert "\n" not in str(caught.value)


def test_arithmetic_of_a_bad_setting_is_a_refusal_with_the_key():
    cfg = config(_target_="handmim.geometry.camera.cell_centres_ndc", num=0)
    with pytest.raises(ValueError, match=r"^data\.train \(.*\) cannot be built: .*zero"):
        build(cfg.data.train)


def test_null_builds_nothing():
    assert build(None) is None
