"""Configs and entries of checkpoints from before objectives held their heads."""

from handmim.utils.renames import new_entry, update_losses


def test_the_temperature_of_all_classes_goes_to_both_of_their_objectives():
    term = {"_target_": "handmim.losses.total.Weighted", "weight": 1.0, "term": {"disc": "proto"}}
    task = {
        "_target_": "handmim.tasks.pretrain.HandMimTask",
        "losses": {"keypoint_align": term, "class_distill": {}},
        "heads": {},
        "class_teacher_temp": 0.02,
    }
    update_losses({"task": task})
    objectives = task["objectives"]
    assert {name: node["teacher_temp"] for name, node in objectives.items()} == {
        "keypoint_align": 0.02,
        "class_distill": 0.02,
    }


def test_entries_of_heads_are_those_of_their_objectives():
    names = {
        "student.pixel.out.weight": "pixel_recon.to_pixels.out.weight",
        "objectives.pixel_recon.head.out.weight": "pixel_recon.to_pixels.out.weight",
        "student.class_hog.mlp.1.weight": "class_hog.mlp.1.weight",
        "objectives.point_hog.head.net.0.bias": "point_hog.net.0.bias",
        "student.keypoint_predictor.mlp.0.bias": "keypoint_align.delta.0.bias",
        "objectives.keypoint_align.predictor.mlp.0.bias": "keypoint_align.delta.0.bias",
    }
    assert {name: new_entry(name) for name in names} == {
        name: f"objectives.{new}" for name, new in names.items()
    }
    assert new_entry("student.backbone.net.norm.weight") == "student.backbone.net.norm.weight"
