import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from handmim.utils.entry import expand_paths, hydra_overrides

FOLDERS = [
    "a=b", "ünï 手", "x,y", "[x]", "{x}", "it's", "100%", "#1", "$X", "a:b", "1e5", "007", "null",
    "true", "a b ", "${Y}", "(p)", 'don\'t "both"', "back\\slash", "end\\", "epoch=3-step=1.ckpt",
    "-dash", "a;b", "@at", "???b",
]  # fmt: skip


def taken(word: str):
    """The value that a config holds in the end."""
    override = OverridesParser.create().parse_override(*hydra_overrides([word]))
    cfg = OmegaConf.create({"paths": {"data_dir": "data"}})
    OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    expand_paths(cfg)
    return OmegaConf.select(cfg, override.key_or_group)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_taken_as_it_is_called(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    for path in (folder, str(tmp_path / folder)):
        assert taken(f"data.root={path}") == path


def test_names_are_text():
    names = ["007", "1e3", "true", "a=b", "ünï"]
    assert [taken(f"name={name}") for name in names] == names


def test_home_and_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PICS", "/p q")
    words = {
        "~/pics": "/home/me/pics", "$PICS/a": "/p q/a", "${PICS}/a": "/p q/a",
        "'~/a b'": "/home/me/a b", "${paths.data_dir}/z": "data/z", "~nobody0/x": "~nobody0/x",
    }  # fmt: skip
    for word, path in words.items():
        assert taken(f"data.root={word}") == path


def test_null_is_null_where_a_path_may_be_left_out():
    assert taken("init=null") is None
    assert taken("name=null") is None  # and no folder of that name is made
    assert taken("paths.run_root=null") is None


def test_a_group_takes_one_of_its_files():
    with pytest.raises(ValueError, match=r"head=null: one of decoder, .* is required"):
        hydra_overrides(["head=null"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed", "'seed': key=value is required"),
        ("objective=[koleo,koleo]", r"objective=\[koleo,koleo\]: one name is there twice"),
    ],
)
def test_a_word_without_a_value_and_a_name_given_twice_are_refused(word, message):
    with pytest.raises(ValueError, match=message):
        hydra_overrides([word])
    assert hydra_overrides(["--cfg", "job", "~probe"]) == ["--cfg", "job", "~probe"]


def test_lists_of_paths_and_of_words_need_no_inner_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert taken("checkpoint=[a.pt,'b, c.pt',~/epoch=3.ckpt]") == [
        "a.pt", "b, c.pt", "/home/me/epoch=3.ckpt",
    ]  # fmt: skip
    assert taken("pretrain=[trainer.max_steps=4,loss=[a,b],data.root=/x y]") == [
        "trainer.max_steps=4", "loss=[a,b]", "data.root=/x y",
    ]  # fmt: skip
    assert taken("finetune=seed=3") == ["seed=3"]


def test_what_cannot_be_read_says_how_to_quote():
    with pytest.raises(ValueError, match=r"'backbone\.arch=a b~c' cannot be read .* quotes"):
        hydra_overrides(["backbone.arch=a b~c"])


def test_several_values_stay_several_in_a_sweep():
    assert hydra_overrides(["data.root=a,b"], is_sweep=True) == ["data.root=a,b"]
    assert hydra_overrides(["--multirun", "data.root=a b"], is_sweep=True)[1] == "data.root='a b'"


def test_bytes_that_are_no_text_are_named():
    with pytest.raises(ValueError, match=r"data\.root='x\\udcff' is no UTF-8"):
        hydra_overrides([f"data.root={os.fsdecode(b'x' + bytes([255]))}"])
