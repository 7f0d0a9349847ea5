import pytest

from handmim.engine.sampler import StepSampler


def test_epochs_are_permutations_and_ranks_share_the_batch():
    whole = [i for batch in StepSampler(11, 4, 0, start_step=0, end_step=11) for i in batch]
    assert len(whole) == 44
    for epoch in range(4):
        assert sorted(whole[11 * epoch : 11 * epoch + 11]) == list(range(11))
    assert whole[:11] != whole[11:22]
    late = [i for batch in StepSampler(11, 4, 0, start_step=5, end_step=11) for i in batch]
    assert late == whole[20:]
    ranks = [
        list(StepSampler(11, 4, 0, start_step=0, end_step=3, rank=r, world_size=2)) for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks, strict=True)] == [whole[i : i + 4] for i in (0, 4, 8)]
    assert next(iter(StepSampler(2, 5, 0, start_step=0, end_step=1))).__len__() == 5
    with pytest.raises(ValueError, match="multiple of the 3"):
        StepSampler(11, 4, 0, start_step=0, end_step=1, world_size=3)


def test_a_batch_larger_than_the_set_is_named(caplog):
    StepSampler(5, 5, 0, start_step=0, end_step=1)
    assert not caplog.text
    StepSampler(4, 5, 0, start_step=0, end_step=1)
    assert "a batch of 5 is larger than the set of 4 samples" in caplog.text
    assert "trainer.batch_size" in caplog.text
