"""Every switch of fine-tuning that concerns tokens, initial weights and unlabeled crops: a few
steps from the command line's words, and it changes what is learned."""

import functools
import itertools
import json
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir

from handmim.engine.checkpoint import load_checkpoint
from handmim.evaluation.predictor import load_model, read_model_checkpoint
from handmim.pipelines.train import Trained, finetune, pretrain
from handmim.utils.config import flatten, resolved
from handmim.utils.entry import compose
from tests.test_configs import CONFIGS, REPO

NUM_STEPS = 3
SHARED = (
    f"paths.data_dir={REPO / 'data'}",
    "backbone=vit_nano_p8",
    "task.backbone.img_px=32",
    "task.backbone.size={embed_dim: 24, depth: 2, num_heads: 2}",
    "machine={accelerator: cpu, num_threads: 1}",
    "trainer.batch_size=4",
    "trainer.num_workers=0",
    "trainer.image_every=null",
)
SMALL = (
    *SHARED,
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.keep_best=null",
    "optim.lr={start: 1.0e-2, warmup_fraction: 0.0}",
    "head=pymaf_small",
    "task.head={num_steps: 2, channels: 8, grid_side: 4, num_points: 16, point_dims: [8, 4],"
    " hidden_dim: 16, cls_dim: 8}",
    "data.num_train=8",
    "data.num_val=4",
    "data.num_workers=0",
    "data.cache_dir=cache",
    "data.scene.image_px=40",
)
PRETRAINED = (
    *SHARED,
    "experiment=cpu_base",
    "data=folder",
    "data.root=photos",
    "data.image_px=40",
    "objective=[pyramid_hog]",
    "task.heads.neck={channels: 8, num_levels: 2}",
    "trainer.max_steps=2",
)
TERM, VIEWS = (f"unlabeled.terms.consensus.{part}" for part in ("term", "views"))
COLOUR = f"{VIEWS}.colour"
PRETEXT = "unlabeled.terms.pretext"
# Baselines: what a switch is added to, so that nothing differs but the switch.
PLAIN: tuple[str, ...] = ()
INITIAL = ("init_from=runs/first/backbone.safetensors",)
PHOTOS = ("unlabeled=folder", "unlabeled.data.root=photos", "unlabeled.data.image_px=40")
NORM = (*PHOTOS, "task.token_norm=patches")
AVERAGED = (*NORM, "task.average=0.5")
CONSENSUS = (
    *AVERAGED,
    "consensus=views",
    f"{TERM}.start=0",
    f"{VIEWS}.num_views=3",
    f"{COLOUR}.jitter_prob=1",
    f"{COLOUR}.grey_prob=0",
    f"{COLOUR}.blur_prob=1",
)
GOES_ON = (*NORM, "pretext=run", f"{PRETEXT}.run=runs/first")
# Name: baseline, and the one override that is the switch; where the baseline has the same key, the
# switch replaces it.
SWITCHES: dict[str, tuple[tuple[str, ...], str]] = {
    # tokens, steps and initial weights
    "patch tokens": (PLAIN, "task.token_norm=patches"),
    "class token too": (NORM, "task.token_norm=all"),
    "head first": (PLAIN, "task.head_first=0.5"),
    "random neck": (INITIAL, "init_neck=never"),
    # unlabeled crops
    "share": (CONSENSUS, "unlabeled.share=1.0"),
    "spectra": (NORM, "unlabeled.spectrum_prob=1.0"),
    "other crops": (CONSENSUS, "unlabeled.data.root=photos/near"),
    "side of crops": (CONSENSUS, "unlabeled.data.image_px=48"),
    "centre square": (CONSENSUS, "unlabeled.data.fit=cover"),
    "wider crops": (CONSENSUS, "unlabeled.data.crop_scale=1.2"),
    "left out": (CONSENSUS, "unlabeled.data.exclude=['far/*']"),
    # consensus
    "consensus": (AVERAGED, "consensus=views"),
    "weight": (CONSENSUS, f"{TERM}.weight=0.1"),
    "start": (CONSENSUS, f"{TERM}.start=0.5"),
    "kept": (CONSENSUS, f"{TERM}.kept=1.0"),
    "two live views": (CONSENSUS, f"{TERM}.student_views=2"),
    "two views": (CONSENSUS, f"{VIEWS}.num_views=2"),
    "teacher sees colours": (CONSENSUS, f"{VIEWS}.keep_clean=false"),
    "scale": (CONSENSUS, f"{VIEWS}.scale=[0.5,0.6]"),
    "rotation": (CONSENSUS, f"{VIEWS}.rotation_deg=0"),
    "full rotation": (CONSENSUS, f"{VIEWS}.full_rotation_prob=1.0"),
    "shift": (CONSENSUS, f"{VIEWS}.shift_ndc=0"),
    "shared rotation": (CONSENSUS, f"{VIEWS}.shared_rotation_deg=30"),
    "shared scale": (CONSENSUS, f"{VIEWS}.shared_scale=0.2"),
    "shared shift": (CONSENSUS, f"{VIEWS}.shared_shift_ndc=0.2"),
    "brightness": (CONSENSUS, f"{COLOUR}.brightness=0"),
    "contrast": (CONSENSUS, f"{COLOUR}.contrast=0"),
    "saturation": (CONSENSUS, f"{COLOUR}.saturation=0"),
    "hue": (CONSENSUS, f"{COLOUR}.hue_deg=0"),
    "no jitter": (CONSENSUS, f"{COLOUR}.jitter_prob=0"),
    "grey": (CONSENSUS, f"{COLOUR}.grey_prob=1"),
    "no blur": (CONSENSUS, f"{COLOUR}.blur_prob=0"),
    "less blur": (CONSENSUS, f"{COLOUR}.blur_sigma_px=0.5"),
    "solarise": (CONSENSUS, f"{COLOUR}.solarise_prob=1"),
    # a pretraining that goes on
    "pretext": (NORM, f"pretext=run {PRETEXT}.run=runs/first"),
    "weight of the pretext": (GOES_ON, f"{PRETEXT}.term.weight=0.1"),
    "fresh weights": (GOES_ON, f"{PRETEXT}.term.method.with_weights=false"),
    "other run": (GOES_ON, f"{PRETEXT}.run=runs/second"),
    "method of another run": (GOES_ON, f"{PRETEXT}.term.method.run=runs/second"),
    "views of another run": (GOES_ON, f"{PRETEXT}.views.run=runs/second"),
}
# Keys beside them, and why no weight shows them.
LEFT_OUT = {
    "unlabeled.moments": "it changes predictions alone: a test of its own",
    "unlabeled.val": "it changes validations alone: in the same test",
    "unlabeled.terms": "consensus= and pretext= fill it",
    f"{VIEWS}.view_px": "the side that the backbone takes",
    f"{VIEWS}.patch_px": "it sizes masks, which consensus does not read",
    f"{VIEWS}.masks.masked_share": "consensus reads no masks",
}


class Steps(NamedTuple):
    """What a few steps of training came to."""

    trained: Trained
    weights: tuple[float, ...]  # absolute sums of the tensors of backbone and head


def switched(baseline: tuple[str, ...], switch: str) -> tuple[str, ...]:
    """The baseline's overrides with the switch, perhaps of several words, among them."""
    added = switch.split(" ") if switch.startswith(("pretext=", "unlabeled=")) else [switch]
    keys = {word.split("=")[0] for word in added}
    return (*(o for o in baseline if o.split("=")[0] not in keys), *added)


def composed(entry: str, *words: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(entry, list(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of two kinds, with keypoints, and two pretrainings."""
    root = tmp_path_factory.mktemp("switches")
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(8):
        name = f"{'near' if i % 2 else 'far'}/{i}.png"
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 100 + 20 * i, (6, 8, 3)).astype(np.uint8)
        cv2.imwrite(str(root / "photos" / name), cv2.resize(image, (48, 36)))
        images.append({"id": i, "file_name": name, "subject": i // 2})
        joints = rng.normal(0, 0.04, (21, 3))
        points = np.column_stack([[24, 18] + 150 * joints[:, :2], np.full(21, 2)])
        note = {"image_id": i, "keypoints": points.ravel().tolist(), "handedness": "right"}
        notes.append(note | {"keypoints_3d": joints.tolist()})
    (root / "notes.json").write_text(json.dumps({"images": images, "annotations": notes}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pretrain(composed("pretrain", *PRETRAINED, "name=first"))
        other = ("name=second", "seed=1", "views.rotation_deg=180")
        pretrain(composed("pretrain", *PRETRAINED, *other))
    return root


@pytest.fixture(autouse=True)
def _within(folder, monkeypatch):
    monkeypatch.chdir(folder)


numbers = itertools.count()


@functools.cache
def steps_of(words: tuple[str, ...]) -> Steps:
    """Train a few steps by the words of a command line."""
    trained = finetune(composed("finetune", *SMALL, *words, f"name=run{next(numbers)}"))
    state = load_checkpoint(trained.run_dir / "last.pt")["task"]
    sums = {k: float(v.double().abs().sum()) for k, v in state.items()}
    # Not those of the terms: what a term brings with it would differ by itself.
    return Steps(trained, tuple(v for k, v in sums.items() if k.startswith(("backbone.", "head."))))


@pytest.mark.parametrize("name", list(SWITCHES))
def test_every_switch_changes_what_is_learned(name):
    baseline, switch = SWITCHES[name]
    steps = steps_of(switched(baseline, switch))
    assert steps.trained.result.step == NUM_STEPS
    assert torch.isfinite(torch.tensor(steps.weights)).all()
    assert steps.weights != steps_of(baseline).weights, "the switch changes nothing"


@pytest.mark.parametrize(
    ("baseline", "nothing"),
    [
        (INITIAL, "init_neck=auto"),
        (PLAIN, "init_neck=never"),
        (("task.token_norm=patches",), " ".join(PHOTOS)),  # moments alone: no step reads the crops
        (CONSENSUS, "unlabeled.data.exclude=['nowhere/*']"),
        (CONSENSUS, f"{VIEWS}.masks.masked_share=1.0"),
        (GOES_ON, f"{PRETEXT}.views.run=runs/first"),
    ],
)
def test_what_switches_nothing_changes_nothing(baseline, nothing):
    """Else the test above could not fail."""
    again = (*switched(baseline, nothing), "trainer.log_every=1")  # a run of its own
    assert steps_of(again).weights == steps_of(baseline).weights


def test_moments_change_predictions_of_the_same_weights():
    without = switched(NORM, "unlabeled.moments=false")
    without = (*without, "unlabeled.spectrum_prob=0.5")  # something has to read the crops
    runs = [steps_of(w) for w in (switched(NORM, "unlabeled.spectrum_prob=0.5"), without)]
    assert runs[0].weights == runs[1].weights
    found = []
    for steps in runs:
        path = str(steps.trained.run_dir / "last.pt")
        saved = read_model_checkpoint(path)
        task, _ = load_model(saved, saved["config"]["task"]["head"]["hand"], path)
        image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append(task.eval().predict(image).joints_root_m)
    assert (found[0] - found[1]).abs().max() > 1e-6
    # labelled images are validated by their own moments, photos by those of the photos
    assert runs[0].trained.metrics == runs[1].trained.metrics
    words = (*switched(NORM, "unlabeled.spectrum_prob=0.5"), "unlabeled.val=unlabeled")
    by_photos = steps_of(words)
    assert by_photos.weights == runs[0].weights
    assert by_photos.trained.metrics != runs[0].trained.metrics


def test_further_sets_are_validated():
    real = ("data=sim_to_real", "data.root=photos", "data.annotations=notes.json")
    real = (*real, "data.image_px=40", "unlabeled=sim_to_real", "task.token_norm=patches")
    metrics = steps_of(real).trained.metrics
    assert metrics["num_samples"] == 2  # photos of the subjects that are held back
    assert metrics["renders/num_samples"] == 4
    assert metrics["renders/mpjpe_mm"] != metrics["mpjpe_mm"]
    alone = steps_of((*real, "~data.more")).trained.metrics
    assert alone == {k: v for k, v in metrics.items() if not k.startswith("renders/")}


def test_every_key_has_a_case():
    words = (*CONSENSUS, "pretext=run", f"{PRETEXT}.run=x")
    cfg = resolved(composed("finetune", *words))["unlabeled"]
    lists = ("scale", "exclude")  # one value each
    keys = {f"unlabeled.{k}" for k in flatten(cfg)}
    keys = {k.rpartition(".")[0] if k.rsplit(".", 2)[-2] in lists else k for k in keys}
    keys = {k for k in keys if not k.endswith("_target_")}
    cases = {word.split("=")[0] for _, switch in SWITCHES.values() for word in switch.split(" ")}
    assert keys - cases == LEFT_OUT.keys() - {"unlabeled.terms"}
