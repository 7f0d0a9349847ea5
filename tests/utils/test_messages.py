import pytest
from hydra import initialize_config_dir

from handmim.utils.config import sentence
from handmim.utils.entry import compose
from tests.conftest import REPO

PAIR = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:12439: "


@pytest.mark.parametrize(
    "said", [f"{PAIR}Connection reset by peer. GLHF!", "Connection closed by peer [10.0.0.2]:99"]
)
def test_a_lost_process_is_one_sentence(said):
    text = sentence(RuntimeError(said))
    assert text.startswith("another process of this run ended")
    assert "resume=auto" in text
    assert sentence(RuntimeError("odd")) == "odd"


@pytest.mark.parametrize(
    ("entry", "word", "said"),
    [
        ("pretrain", "lss=[patch_distill]", "no such setting: lss, did you mean loss?"),
        ("eval", "data.root=X", "no such setting: data.*, unless data= is one of folder, freihand"),
        (
            "pretrain",
            "objective=[koleos]",
            "did you mean koleo?; objective= takes class_distill, class_hog",
        ),
    ],
)
def test_a_misspelt_group_or_option_is_told_what_there_is(entry, word, said):
    with (
        initialize_config_dir(str(REPO / "configs"), version_base="1.3"),
        pytest.raises(Exception, match=r"lss|koleos|data") as refused,
    ):
        compose(entry, [word])
    assert said in sentence(refused.value)
