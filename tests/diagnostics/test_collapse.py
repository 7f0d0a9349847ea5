import logging
from functools import partial

import pytest
import torch
from torch.utils.data import Dataset

from handmim.data.pixels import ColourJitter
from handmim.data.views import MaskSampler, ViewMaker
from handmim.diagnostics.collapse import CHECKS, CollapseDetection
from handmim.engine.optim import Schedule
from handmim.geometry.crop import from_source, similarity, transform_points
from handmim.objectives.keypoints import SoftArgmaxKeypoints
from handmim.types import CropSample, StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.run import Run
from tests.tasks.test_pretrain_task import HANDMIM, make_task

NUM, K = 24, 6
NOISE = 0.12  # ndc, of points in a view; about that of an untrained head
INFO = StepInfo(20, 100)


class Crops(Dataset):
    """Blobs of random place, size and colour: crops that differ."""

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(index)
        x, y, r, *rgb = torch.rand(6, generator=g).tolist()
        axis = torch.arange(40) / 40
        inside = (axis[:, None] - y).square() + (axis[None] - x).square() < (0.1 + 0.3 * r) ** 2
        colour = torch.tensor(rgb) * 255
        image = torch.where(inside[..., None], colour, 255 - colour).to(torch.uint8)
        return CropSample(image.numpy(), str(index))


MAKER = ViewMaker(
    view_px=32,
    patch_px=8,
    masks=MaskSampler(ratio=(0.3, 0.5), masked_share=1.0),
    colour=ColourJitter(),
)


def detection(**kwargs) -> CollapseDetection:
    settings = {"every": 10, "num": NUM, "batch_size": 12} | kwargs
    return CollapseDetection(Crops(), MAKER, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.start("collapse", tmp_path_factory.mktemp("collapse"), 0, {}, accelerator="cpu")


def test_collapse_detection_passes_over_unreadable_images(run, monkeypatch):
    whole = Crops.__getitem__

    def damaged(self, index):
        if index in (3, 7):
            raise UnreadableSample(f"{index}.jpg", "cut short")
        return whole(self, index)

    monkeypatch.setattr(Crops, "__getitem__", damaged)
    assert len(detection()._views(INFO, run.device).views) == NUM - 2


def plant_logits(task, name, change):
    """Change the teacher's logits, before they are centred and sharpened."""
    normaliser = task.each[name].centering
    normaliser.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))


def plant_cls(task, change):
    """Change the student's class tokens."""
    task.student["backbone"].register_forward_hook(
        lambda m, args, out: out._replace(cls=change(out.cls))
    )


def plant_points(task, make):
    """Points [B, G, K, 2] as a function of the batch; complete collapses."""
    encode = task.encode

    def planted(batch, info):
        ctx = encode(batch, info)
        own = ctx.keypoints  # whose gradient goes on
        ctx.points = make(batch) + own - own.detach()
        return ctx

    task.encode = planted


def live_points(batch):
    """A template that bends differently in every crop, and moves with it."""
    return carried(batch, bend=0.3)


def carried(batch, bend, noise=0.0):
    """A template under a random similarity per crop, perhaps bent, seen from each view, perhaps
    with noise of each view's own."""
    b = len(batch.views)
    g = torch.Generator().manual_seed(1)
    template = torch.rand(K, 2, generator=g) - 0.5
    shapes = template + bend * torch.randn(b, K, 2, generator=g)
    u = torch.rand(b, 4, generator=g) - 0.5
    hand = similarity(1 + 0.5 * u[:, 0], 2 * u[:, 1], 0.4 * u[:, 2:])
    in_source = transform_points(hand, shapes)[:, None].expand(-1, batch.views.shape[1], -1, -1)
    exact = from_source(in_source, batch.source_from_view)
    return exact + noise * torch.randn(exact.shape, generator=g)


def constant(batch, noise=0.0):
    g = torch.Generator().manual_seed(1)
    template = torch.rand(K, 2, generator=g) - 0.5
    shape = (*batch.views.shape[:2], K, 2)
    return template + noise * torch.randn(shape, generator=g)


def fixed_in_source(batch):
    return from_source(constant(batch), batch.source_from_view)


def one_spot(batch):
    return live_points(batch).mean(dim=2, keepdim=True).expand(-1, -1, K, -1)


def one_column(logits):
    out = torch.zeros_like(logits)
    out[..., 3] = 50.0
    return out


def on_a_line(cls):
    along = cls.sum(dim=1, keepdim=True)
    return 3 + along / along.std() * torch.arange(cls.shape[1]).float().cos()


PLANTS = {
    "targets_uniform": lambda task: plant_logits(task, "patch_distill", torch.zeros_like),
    "targets_one_prototype": lambda task: plant_logits(task, "patch_distill", one_column),
    "class_targets_uniform": lambda task: plant_logits(task, "class_distill", torch.zeros_like),
    "class_targets_one_prototype": lambda task: plant_logits(task, "class_distill", one_column),
    "swav_targets_uniform": lambda task: torch.nn.init.zeros_(
        task.each["swav"].projection.prototypes
    ),
    "features_constant": lambda task: plant_cls(task, lambda c: 0 * c),
    "features_rank_low": lambda task: plant_cls(task, on_a_line),
    "keypoints_bunched": lambda task: plant_points(task, one_spot),
    "keypoints_constant_template": lambda task: plant_points(task, constant),
    "keypoints_fixed_in_source": lambda task: plant_points(task, fixed_in_source),
    "keypoints_rigid": lambda task: plant_points(task, lambda b: carried(b, bend=0.0)),
    # what an untrained head finds: places that each view draws for itself
    "keypoints_unmatched": lambda task: plant_points(task, lambda b: constant(b, NOISE)),
}
# What a collapse cannot help showing besides: one spot and one template have no articulation and
# match any crop, what stands still in the view or is drawn in each view follows nothing in the
# source, constant features have no rank. What it does to the gradients of terms is their own
# affair.
COMES_WITH = {
    "features_constant": {"features_rank_low"},
    "keypoints_bunched": {"keypoints_rigid", "keypoints_unmatched"},
    "keypoints_constant_template": {
        "keypoints_fixed_in_source",
        "keypoints_rigid",
        "keypoints_unmatched",
    },
    "keypoints_fixed_in_source": {"keypoints_rigid", "keypoints_unmatched"},
    "keypoints_unmatched": {"keypoints_fixed_in_source", "keypoints_rigid"},
}


def fresh():
    """A fresh network whose points are live: its own are a constant template until grace ends."""
    task = make_task().eval()
    plant_points(task, live_points)
    return task


def triggered(scalars) -> set[str]:
    return {k.removeprefix("collapse/") for k, v in scalars.items() if k[:9] == "collapse/" and v}


@pytest.fixture
def warned():
    """Warnings of collapse detection, whatever other loggers do."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    listener, logger = Listener(logging.WARNING), logging.getLogger("handmim.diagnostics.collapse")
    logger.addHandler(listener)
    yield messages
    logger.removeHandler(listener)


@torch.no_grad()
def test_a_fresh_task_reports_nothing(run, warned):
    scalars = detection()(fresh(), INFO, run)
    assert triggered(scalars) == set()
    assert warned == []
    prefix = "collapse/"
    checked = {k.removeprefix(prefix).split("/")[0] for k in scalars if k.startswith(prefix)}
    # the others belong to parts that this task does not have
    assert CHECKS.keys() - checked == {
        f"{part}_targets_{kind}"
        for part in ("class", "keypoint")
        for kind in ("uniform", "one_prototype")
    } | {"swav_targets_uniform"}
    assert scalars["diagnostics/features/rank"] > 2
    shares = [v for k, v in scalars.items() if k.endswith("/share")]
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(PLANTS))
@torch.no_grad()
def test_each_collapse_is_reported_by_its_name(name, run, warned):
    more = {"class": ("class_distill",), "swav": ("swav",)}.get(name.split("_")[0], ())
    task = make_task((*HANDMIM, *more)).eval()
    if not name.startswith("keypoints"):
        plant_points(task, live_points)
    PLANTS[name](task)
    found = {n for n in triggered(detection()(task, INFO, run)) if not n.startswith("term_")}
    assert found - COMES_WITH.get(name, set()) == {name}
    mine = [message for message in warned if f"COLLAPSE {name}:" in message]
    assert len(mine) == 1
    assert "step 20" in mine[0]
    assert f"the threshold {CHECKS[name].threshold:.3g}; " in mine[0]


def checked_points(run, points) -> tuple[set[str], dict[str, float]]:
    """Triggered checks of points, and the metrics of points."""
    task = make_task().eval()
    plant_points(task, points)
    scalars = detection()(task, INFO, run)
    metrics = {k.split("/")[-1]: v for k, v in scalars.items() if "/keypoints/" in k}
    return {name for name in triggered(scalars) if name.startswith("keypoints")}, metrics


@torch.no_grad()
def test_noise_of_each_view_does_not_pass_for_articulation(run):
    found, _ = checked_points(run, lambda b: carried(b, bend=0.0, noise=NOISE))
    assert found == {"keypoints_rigid"}
    found, blind = checked_points(run, lambda b: constant(b, NOISE))
    assert "keypoints_unmatched" in found
    assert blind["view_std_ndc"] > 0.1  # which looks alive
    found, _ = checked_points(run, lambda b: carried(b, bend=0.3, noise=NOISE))
    assert found == set()


@torch.no_grad()
def test_points_that_are_not_numbers_trigger(run):
    found, _ = checked_points(run, lambda b: live_points(b) * float("nan"))
    assert {"keypoints_rigid", "keypoints_fixed_in_source", "keypoints_bunched"} <= found


@torch.no_grad()
def test_a_fresh_head_that_seeks_points_among_patches_triggers_after_grace_only(run):
    seeking = partial(SoftArgmaxKeypoints, num_keypoints=K)
    task = make_task(heads={"keypoint": seeking}).eval()
    hook = detection(grace_steps=15)
    assert triggered(hook(task, StepInfo(14, 100), run)) == set()
    found = triggered(hook(task, StepInfo(15, 100), run))
    assert found & {"keypoints_rigid", "keypoints_unmatched"}


@torch.no_grad()
def test_features_that_are_not_numbers_trigger_instead_of_failing(run, warned):
    task = fresh()
    plant_cls(task, lambda cls: cls * float("nan"))
    assert {"features_constant", "features_rank_low"} <= triggered(detection()(task, INFO, run))
    assert any("features/rank is nan" in message for message in warned)


@torch.no_grad()
def test_a_collapse_is_warned_of_once_until_it_ends(run, warned):
    hook, broken, live = detection(), fresh(), fresh()
    PLANTS["features_constant"](broken)
    for task in (broken, broken, live, broken):
        hook(task, INFO, run)
    assert sum("COLLAPSE features_constant:" in message for message in warned) == 2


@pytest.mark.parametrize(
    ("weight", "name"), [(1e-9, "term_dead/pixel_recon"), (1e9, "term_drowns/pixel_recon")]
)
@torch.no_grad()
def test_terms_that_die_or_drown_the_others_are_named(weight, name, run):
    task = fresh()
    task.weights["pixel_recon"] = Schedule(weight)
    found = triggered(detection()(task, INFO, run))
    assert name in found
    if weight < 1:
        assert found == {name}
    task.weights["pixel_recon"] = Schedule(0.0)
    assert not any("pixel_recon" in k for k in detection()(task, INFO, run))


@torch.no_grad()
def test_measuring_changes_nothing_and_repeats_exactly(run):
    task = fresh()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    state = torch.random.get_rng_state()
    hook = detection()
    first, second = hook(task, INFO, run), hook(task, INFO, run)
    assert first == second
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in task.parameters())
    # in one go or in parts
    whole = detection(batch_size=NUM)(task, INFO, run)
    for key in ("diagnostics/features/rank", "diagnostics/targets/entropy_of_mean"):
        assert whole[key] == pytest.approx(first[key], rel=1e-4)


@torch.no_grad()
def test_nothing_triggers_in_grace_and_patience_stops_the_run(run):
    task = fresh()
    PLANTS["keypoints_bunched"](task)
    hook = detection(grace_steps=15, stop_on=["keypoints_bunched"], patience=2)
    early = hook(task, StepInfo(14, 100), run)
    assert not any(k.startswith("collapse/") for k in early)
    assert "diagnostics/keypoints/spread_ndc" in early
    hook(task, StepInfo(15, 100), run)
    assert hook.stop_reason is None
    scalars = hook(task, StepInfo(16, 100), run)
    assert hook.stop_reason == "keypoints_bunched triggered in 2 checks in a row (patience)"
    assert scalars["collapse/keypoints_bunched"] == 1.0
    # a collapse that does not stop never does, nor one that ends in between
    hook = detection(stop_on=["features_constant"], patience=1)
    hook(task, INFO, run)
    assert hook.stop_reason is None
    hook = detection(stop_on=["keypoints_bunched"], patience=2)
    for planted in (task, fresh(), task):
        hook(planted, INFO, run)
        assert hook.stop_reason is None


def test_settings_of_collapse_detection_are_checked():
    with pytest.raises(ValueError, match=r"thresholds names unknown checks \['hands_cold'\]"):
        detection(thresholds={"hands_cold": 1.0})
    with pytest.raises(ValueError, match="stop_on names unknown checks"):
        detection(stop_on=["hands_cold"])
    with pytest.raises(ValueError, match="num=1"):
        detection(num=1)


@torch.no_grad()
def test_images_show_the_same_crops_every_time(run):
    task, hook = make_task().eval(), detection()
    first, second = hook.images(task, run), hook.images(task, run)
    assert set(first) == {"patch_tokens", "crop_keypoints"}
    assert all((first[k] == second[k]).all() for k in first)
    assert all(p.dtype.name == "uint8" and p.std() > 5 for p in first.values())
