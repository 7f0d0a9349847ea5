import os

import pytest
from hydra import initialize_config_dir

from handmim.utils.entry import compose
from handmim.utils.words import hydra_words
from tests.conftest import REPO

FOLDERS = [
    "a=b", "ünï 手", "x,y", "[x]", "{x}", "it's", "100%", "#1", "$X", "a:b", "1e5", "007", "null",
    "true", "a b ", "${Y}", "(p)", 'don\'t "both"', "back\\slash", "end\\", "epoch=3-step=1.ckpt",
    "-dash", "a;b", "@at", "???b",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_taken_as_it_is_called(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    for path in (folder, str(tmp_path / folder)):
        assert compose("pretrain", [f"data.root={path}"]).data.train.root == path


def test_names_are_text(tmp_path):
    names = ["007", "1e3", "true", "a=b", "ünï"]
    assert [compose("pretrain", ["data.root=x", f"name={n}"]).name for n in names] == names


def test_home_and_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PICS", "/p q")
    words = {
        "~/pics": "/home/me/pics", "$PICS/a": "/p q/a", "${PICS}/a": "/p q/a",
        "'~/a b'": "/home/me/a b", "${paths.data_dir}/z": "data/z", "~nobody0/x": "~nobody0/x",
    }  # fmt: skip
    for word, path in words.items():
        assert compose("pretrain", [f"data.root={word}"]).data.root == path


def test_null_is_null_where_a_path_may_be_left_out():
    assert compose("pretrain", ["data.root=x", "init=null"]).init is None


def test_lists_of_paths_and_of_words_need_no_inner_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = compose("eval", ["checkpoint=[a.pt,'b, c.pt',~/epoch=3.ckpt]"])
    assert list(cfg.checkpoint) == ["a.pt", "b, c.pt", "/home/me/epoch=3.ckpt"]
    words = ["table=objectives", "pretrain=[trainer.max_steps=4,loss=[a,b],data.root=/x y]"]
    assert list(compose("ablate", words).pretrain) == [
        "trainer.max_steps=4", "loss=[a,b]", "data.root=/x y",
    ]  # fmt: skip
    assert list(compose("ablate", ["table=objectives", "finetune=seed=3"]).finetune) == ["seed=3"]


def test_what_cannot_be_read_says_how_to_quote():
    with pytest.raises(ValueError, match=r"'backbone\.arch=a b~c' cannot be read .* quotes"):
        hydra_words(["backbone.arch=a b~c"])


def test_several_values_stay_several_in_a_sweep():
    assert hydra_words(["data.root=a,b"], is_sweep=True) == ["data.root=a,b"]
    assert hydra_words(["--multirun", "data.root=a b"], is_sweep=True)[1] == "data.root='a b'"


def test_bytes_that_are_no_text_are_named():
    with pytest.raises(ValueError, match=r"data\.root='x\\udcff' is no UTF-8"):
        hydra_words([f"data.root={os.fsdecode(b'x' + bytes([255]))}"])
