import pytest

from handmim.render.cache import render_split
from handmim.render.scene import SceneSettings


def test_more_images_than_the_disk_holds_are_refused_before_the_first(tmp_path, hand_path):
    target = tmp_path / "cache" / "train-1"
    job = {"hand_path": hand_path, "seed": 0, "split": "train", "num": 10**12}
    with pytest.raises(OSError, match=r"need 22544000000 MB in .*cache, \d+ MB are free"):
        render_split(target, SceneSettings(image_px=64), job, 0)
    assert [p for p in target.parent.iterdir() if p.suffix != ".lock"] == []
