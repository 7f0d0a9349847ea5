import pytest
from omegaconf import OmegaConf

from handmim.utils.config import resolved, set_everywhere


def test_everything_that_only_the_user_knows_is_named_at_once():
    cfg = OmegaConf.create(
        {
            "data": {"root": "???", "train": {"root": "${data.root}"}},
            "probe": {"root": ""},
            "n": 1,
        }
    )
    with pytest.raises(ValueError, match=r"data.root, probe.root must be .* data.root=... probe.r"):
        resolved(cfg)
    cfg.data.root, cfg.probe.root = "a", "b"
    assert resolved(cfg) == {
        "data": {"root": "a", "train": {"root": "a"}},
        "probe": {"root": "b"},
        "n": 1,
    }


def test_a_key_is_set_at_any_depth_be_it_a_mapping():
    config = OmegaConf.create({"head": {"hand": {"path": "a"}}, "parts": [{"hand": "b"}, {}]})
    set_everywhere(config, "hand", {"path": "c"})
    assert config == {"head": {"hand": {"path": "c"}}, "parts": [{"hand": {"path": "c"}}, {}]}
