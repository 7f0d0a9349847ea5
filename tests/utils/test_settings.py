import hydra
import pytest
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from handmim.utils.config import flatten
from handmim.utils.entry import compose, hydra_overrides, prepare
from handmim.utils.settings import READ, RULES, signature_of
from tests.conftest import REPO

WORDS = {"pretrain": ["data=synthetic", "probe=synthetic"], "finetune": []}


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def composed(configs):
    return {name: hydra.compose(name, overrides) for name, overrides in WORDS.items()}


@pytest.fixture
def changed(composed):
    """(entry, overrides) -> its config with some values changed, checked."""

    def of(entry: str, overrides: list[str]):
        cfg = composed[entry].copy()
        for word in overrides:
            override = OverridesParser.create().parse_override(*hydra_overrides([word]))
            OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
        prepare(cfg)
        return cfg

    return of


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=abc", "seed=abc: a whole number is required"),
        ("trainer.max_steps=2.5", "trainer.max_steps=2.5: a whole number is required"),
        ("trainer.max_steps=-1", "trainer.max_steps=-1: a whole number >= 1"),
        ("trainer.save_every=0", "trainer.save_every=0: a whole number >= 1"),
        ("trainer.num_workers=-1", "trainer.num_workers=-1: a whole number >= 0"),
        ("overwrite=yes", "overwrite=yes: true or false is required"),
        ("data.num_train=many", "data.num_train=many: a whole number is required"),
        ("data.scene.image_px=4.5", "data.scene.image_px=4.5: a whole number"),
        ("data.scene.focal=[0.3,nan]", "data.scene.focal=[0.3, nan]: a list"),
        ("views.scale=[0.1,b]", "views.scale=[0.1, 'b']: a list [...], each a finite number"),
        ("optim.lr.start=inf", "optim.lr.start=inf: a finite number is required"),
        ("optim.weight_decay=no", "optim.weight_decay=no: a finite number or a mapping for Sched"),
        ("+collapse.thresholds.term_dead=on", "collapse.thresholds.term_dead=on: a finite number"),
        ("+trainer.max_step=3", "trainer.max_step: no such setting, did you mean max_steps"),
        ("+data.train.nun=3", "data.train.nun: no such setting, did you mean num"),
        ("machine.compile=1", "machine.compile=1: true or false"),
        ("name=../x", "name='../x': the name of a folder below paths.run_root is required"),
        ("name=/x", "name='/x': the name of a folder"),
        ("name=", "name='': the name of a folder"),
        ("name=~/x", "name='~/x': the name of a folder"),
        ("optim.lr.end=-1", "optim.lr.end=-1: a number >= 0 is required"),
        ("optim.clip_norm=0", "optim.clip_norm=0: a number > 0 is required"),
        ("task.momentum.start=1.5", "task.momentum.start=1.5: a number from 0 to 1 is required"),
        ("data.num_val=0", "data.num_val=0: a whole number >= 1 is required"),
        ("probe.every=0", "probe.every=0: a whole number >= 1 is required"),
        ("machine.num_threads=100000", "machine.num_threads=100000: a whole number >= 1, 1024 at"),
        ("machine=null", "machine=null: a mapping for handmim.utils.run.Run.start is required"),
        ("paths=null", "paths=null: a mapping {...} is required"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_is_required(changed, word, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        changed("pretrain", [word])
    assert str(caught.value).startswith(message)


def test_all_wrong_values_are_named_at_once(changed):
    overrides = ["seed=abc", "trainer.max_steps=x", "eval_every=often", "num_labels=2.5"]
    with pytest.raises(ValueError, match=r"_labels=2\.5.*eval_every=of.*max_steps=x.*seed=abc"):
        changed("finetune", overrides)


def test_whole_numbers_may_be_written_as_powers_and_numbers_as_text(changed):
    overrides = ["trainer.max_steps=1e1", "data.num_train=16.0", "machine.precision=32", "seed=-3"]
    cfg = changed("pretrain", overrides)
    assert repr(cfg.trainer.max_steps) == "10"
    assert repr(cfg.data.train.num) == "16"
    assert cfg.machine.precision == "32"
    assert cfg.seed == -3


@pytest.mark.parametrize(
    ("entry", "overrides"),
    [
        ("pretrain", ["method=mae", "data.root=x"]),
        ("finetune", ["experiment=freihand", "size=vits", "optim.lr=1e-3", "eval_every=null"]),
        ("finetune", ["data=freihand_ho3d", "task.average=0.99"]),
        ("eval", ["data=ho3d_v3", "checkpoint=[a,b]", "tta=rotations"]),
        ("experiments", ["name=t", "table=objectives", "seeds=[0,7]", "variants=random"]),
        ("experiments", ["name=t", "table=label_efficiency", "inits=[random,mae]"]),
        ("benchmark", ["suite=all"]),
        ("synthesize", ["root=x", "format=ho3d_v2"]),
        ("doctor", ["crops=x"]),
    ],
)
def test_what_is_offered_is_accepted(entry, overrides):
    assert compose(entry, overrides) is not None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_images=foo", "num_images=foo: a whole number is required"),
        ("num_images=-3", "num_images=-3: a whole number >= 0 is required"),
    ],
)
def test_the_number_of_drawn_images_is_checked(word, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        compose("eval", ["checkpoint=a.pt", word])


def test_every_checked_key_is_one_of_a_config():
    roots = {path.stem: [] for path in (REPO / "configs").glob("*.yaml")}
    roots["pretrain"] = ["data=folder", "data.root=x", "method=dino"]
    contents = [OmegaConf.to_container(hydra.compose(*root)) for root in roots.items()]
    leaves = [key.split(".") for content in contents for key in flatten(content)]
    paths = {".".join(parts[:n]) for parts in leaves for n in range(1, len(parts) + 1)}
    names = {part for parts in leaves for part in parts}
    assert not READ.keys() - paths
    assert not RULES.keys() - names


def test_signatures_are_read_with_what_is_inherited():
    hand = signature_of("handmim.hand.model.HandModel.from_file")
    schedule = signature_of("handmim.engine.optim.Schedule")
    assert hand is not None
    assert set(hand.parameters) == {"path", "left_shapedirs"}
    assert schedule is not None
    assert "warmup_steps" in schedule.parameters
    assert signature_of("torch.optim.AdamW") is None


def test_a_setting_that_no_yaml_lists_is_taken_where_its_part_takes_it():
    cfg = compose("pretrain", ["data=synthetic", "trainer.keep_best=null"])
    assert "keep_best" in cfg.trainer


@pytest.mark.parametrize("word", ["trainer.max_step=3", "lss=[x]", "paths.no=1"])
def test_a_setting_that_nothing_takes_is_refused(word):
    with pytest.raises(ConfigCompositionException):
        compose("pretrain", ["data=synthetic", word])


@pytest.mark.parametrize("word", ["trainer=null", "optim=adam", "collapse=non"])
def test_a_section_is_not_replaced_by_a_word(word):
    with pytest.raises(ValueError, match=rf"{word}: a mapping .* is required"):
        compose("pretrain", ["data=folder", "data.root=x", word])


@pytest.mark.parametrize(
    ("entry", "word", "options"),
    [
        ("pretrain", "centering=mean", "ema, sinkhorn"),
        ("eval", "tta=scales", "null, rotations"),
        ("synthesize", "format=coco", "freihand, ho3d_v2, ho3d_v3, folder"),
        ("experiments", "budget=tpu", "cpu, cpu_mesh, cpu_photos, smoke, gpu"),
    ],
)
def test_a_choice_among_entries_of_a_mapping_is_checked(entry, word, options):
    more = {"pretrain": ["data=folder", "data.root=x"], "synthesize": ["root=x"]}
    with pytest.raises(ValueError, match=f"{word}: one of {options} is required"):
        compose(entry, [*more.get(entry, []), word])
