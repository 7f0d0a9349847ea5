"""Every choice of the keypoint objectives is one override on the command line."""

import inspect
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object, instantiate

from handmim.objectives.base import Setup
from handmim.utils.config import drop_unbuilt
from handmim.utils.entry import compose

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml"))
# What a yaml gives another value than the signature: weights, and sizes of the views.
OTHER = {"weight", "warp_grid"}


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = ["data=folder", "data.root=x", "method=handmim-plain", *overrides]
        task = compose("pretrain", chosen).task
    drop_unbuilt(task)
    return task


def built(*overrides: str):
    """The objective keypoint_align with its heads."""
    task = composed("objective=[keypoint_align]", *overrides)
    setup = Setup(32, heads=instantiate(task.heads))
    objective = instantiate(task.objectives.keypoint_align)
    objective.build(setup)
    return objective, setup


@pytest.mark.parametrize("name", NAMES)
def test_an_objectives_yaml_gives_the_defaults_of_its_signature(name):
    node = composed(f"objective=[{name}]").objectives[name]
    parameters = inspect.signature(get_object(node._target_)).parameters
    given = {k: v for k, v in node.items() if k != "_target_" and k not in OTHER}
    defaults = {k: parameters[k].default for k in given}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()} == given


def test_discrimination_is_one_override_and_brings_its_head():
    key = "task.objectives.keypoint_align.disc"
    assert "disc" not in built(f"{key}=none")[0].weights
    for disc, has_head in (("none", False), ("nce", False), ("proto", True)):
        objective, _ = built(f"{key}={disc}")
        assert hasattr(objective, "keypoint_prototypes") == has_head


def test_keypoint_heads_are_one_override():
    objective, setup = built(
        "keypoint_head=soft_argmax",
        "task.objectives.keypoint_align.predictor=true",
        "task.heads.keypoint.num_keypoints=16",
        "task.heads.keypoint.num_dims=3",
    )
    head = setup.shared("keypoint")
    assert (head.num_keypoints, head.num_dims) == (16, 3)
    assert hasattr(objective, "delta")
    assert not hasattr(built()[0], "delta")


def test_choices_of_an_objective_that_is_off_are_refused():
    with pytest.raises(ConfigCompositionException, match="keypoint_align"):
        composed("objective=[pixel_recon]", "task.objectives.keypoint_align.disc=proto")


def test_peclr_has_its_latents_in_place_of_points():
    task = composed("objective=[peclr]", "method=peclr")
    head = instantiate(task.heads.keypoint)(32)
    assert (head.num_keypoints, head.num_dims) == (64, 2)
