import pytest

from handmim.utils.messages import sentence

PAIR = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:12439: "


@pytest.mark.parametrize(
    "said", [f"{PAIR}Connection reset by peer. GLHF!", "Connection closed by peer [10.0.0.2]:99"]
)
def test_a_lost_process_is_one_sentence(said):
    text = sentence(RuntimeError(said))
    assert text.startswith("another process of this run ended")
    assert "resume=auto" in text
    assert sentence(RuntimeError("odd")) == "odd"
