import numpy as np
import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from dcls.data.order import epoch_order, slot_batches


def test_an_epoch_shows_every_image_once():
    order = epoch_order(seed=3, epoch=7, length=100)
    assert sorted(order[:, 0]) == list(range(100))
    assert not order[:, 1].any()


def test_orders_differ_between_epochs_and_seeds_and_repeat_exactly():
    orders = [epoch_order(seed, epoch, 50)[:, 0].tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(1, 1, 50)[:, 0].tolist() == orders[3]


def test_the_order_never_changes():
    # A run resumed after an upgrade must see the images it has not seen yet.
    assert epoch_order(seed=0, epoch=0, length=8)[:, 0].tolist() == [0, 3, 7, 4, 2, 5, 6, 1]


def test_repeated_augmentation_keeps_the_length_and_shows_a_third_of_the_images():
    order = epoch_order(seed=0, epoch=0, length=100, repeats=3)
    images, counts = np.unique(order[:, 0], return_counts=True)
    assert len(order) == 100
    assert len(images) == 34
    assert sorted(counts) == [1] + [3] * 33
    assert len(np.unique(order, axis=0)) == 100  # no copy twice


@pytest.mark.parametrize("repeats", [1, 3])
def test_slots_cut_the_global_batch_without_rest(repeats):
    order = epoch_order(0, 0, 96, repeats)
    for step in range(4):
        slots = slot_batches(order, global_batch=24, slot=6, step=step)
        assert [len(slot) for slot in slots] == [6] * 4
        batch = order[step * 24 : (step + 1) * 24]
        assert sorted(map(tuple, np.concatenate(slots))) == sorted(map(tuple, batch))


def test_copies_of_an_image_come_into_different_slots():
    order = epoch_order(0, 0, 96, repeats=3)
    for step in range(4):
        for slot in slot_batches(order, global_batch=24, slot=6, step=step):
            assert len(np.unique(slot[:, 0])) == len(slot)


def test_slots_hold_what_timms_sampler_gives_to_as_many_gpus():
    in_file_order = np.stack([np.arange(96) // 3, np.arange(96) % 3], axis=1)
    for gpu in range(4):
        sampler = RepeatAugSampler(range(96), num_replicas=4, rank=gpu, shuffle=False, num_repeats=3)
        ours = [slot_batches(in_file_order, 24, 6, step)[gpu][:, 0] for step in range(4)]
        assert np.concatenate(ours).tolist() == list(sampler)
