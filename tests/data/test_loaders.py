import gc
import multiprocessing
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from dcls.data import EvalLoader, FolderSource, TrainLoader, eval_transform, train_transform
from dcls.errors import ConfigError, DataError
from dcls.runtime.randomness import key, seed_all

# Three workers on a machine with two cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Numbers:
    """A source whose image i is the number i."""

    def __init__(self, length):
        self.labels = np.arange(length, dtype=np.int64) % 7
        self.class_names = tuple("abcdefg")

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        return index


def drawn(index):
    """A sample that shows its index and a draw from each of the three generators that timm draws from."""
    return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def train_loader(length=50, transform=drawn, my_slots=(0, 1, 2), **options):
    return TrainLoader(
        Numbers(length), transform, **{"seed": 1, "global_batch": 12, "slot": 4, "my_slots": my_slots, **options}
    )


def collect(batches):
    pairs = list(batches)
    return torch.stack([images for images, _ in pairs]), torch.stack([labels for _, labels in pairs])


@pytest.fixture(scope="module")
def reference():
    """Two epochs, loaded in this process: images [2, 4 steps x 3 slots, 4, 4 values] and labels."""
    loader = train_loader()
    images, labels = zip(*[collect(loader.epoch(epoch)) for epoch in range(2)])
    return torch.stack(images), torch.stack(labels)


def test_an_epoch_has_whole_batches_of_different_images(reference):
    images, labels = reference
    assert train_loader().steps_per_epoch == 4
    assert images.shape == (2, 12, 4, 4)
    for epoch in range(2):
        indices = images[epoch, ..., 0].flatten().long()
        assert len(indices.unique()) == 48
        assert torch.equal(labels[epoch].flatten(), indices % 7)


def test_a_sample_is_a_function_of_its_address(reference):
    images, _ = reference
    for epoch in range(2):
        for sample in images[epoch].flatten(0, 1):
            seed_all(key(1, "augment", epoch, int(sample[0]), 0))
            assert torch.equal(sample, drawn(int(sample[0])))
    assert len(images[..., 1:].flatten().unique()) == images[..., 1:].numel()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit_and_serve_every_epoch(reference, workers):
    loader = train_loader(workers=workers)
    for epoch in (0, 1, 0):
        images, labels = collect(loader.epoch(epoch))
        assert torch.equal(images, reference[0][epoch])
        assert torch.equal(labels, reference[1][epoch])
    loader.close()


@pytest.mark.parametrize("split", [[(0,), (1,), (2,)], [(0, 2), (1,)], [(2, 1, 0)]])
def test_processes_only_share_out_the_slots(reference, split):
    images, labels = reference[0][1].unflatten(0, (4, 3)), reference[1][1].unflatten(0, (4, 3))
    for my_slots in split:
        ours, our_labels = collect(train_loader(my_slots=my_slots).epoch(1))
        assert torch.equal(ours, images[:, list(my_slots)].flatten(0, 1))
        assert torch.equal(our_labels, labels[:, list(my_slots)].flatten(0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_step(reference, workers):
    loader = train_loader(workers=workers)
    for step in range(4):
        images, _ = collect(loader.epoch(1, first_step=step))
        assert torch.equal(images, reference[0][1, 3 * step :])
    assert list(loader.epoch(1, first_step=4)) == []
    with pytest.raises(ValueError, match="first_step=5: an epoch has 4 steps"):
        next(loader.epoch(1, first_step=5))
    loader.close()


def test_repeated_augmentation_shows_copies_in_different_slots():
    images, _ = collect(train_loader(length=36, repeats=3).epoch(0))
    copies = Counter(images[..., 0].flatten().long().tolist())
    assert len(copies) == 12
    assert set(copies.values()) == {3}
    assert len(images[..., 1].flatten().unique()) == 36  # every copy is augmented differently
    for slot in images:
        assert len(slot[:, 0].unique()) == 4


def state_of_generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_workers_leave_the_global_generators_alone():
    train, evaluate = train_loader(workers=1), EvalLoader(Numbers(9), drawn, batch=4, workers=1)
    before = state_of_generators()
    for epoch in range(2):
        list(train.epoch(epoch))
        list(evaluate)
    assert state_of_generators() == before
    train.close(), evaluate.close()


def test_evaluation_in_this_process_draws_nothing():
    before = state_of_generators()
    list(EvalLoader(Numbers(9), torch.tensor, batch=4))
    assert state_of_generators() == before


def test_an_epoch_can_be_left_and_another_begun(reference):
    loader = train_loader(workers=2)
    for epoch in (0, 1, 0):
        batches = loader.epoch(epoch)
        next(batches)
        batches.close()
    images, _ = collect(loader.epoch(1))
    assert torch.equal(images, reference[0][1])
    loader.close()


def test_workers_end_when_the_loader_is_closed_or_dropped():
    loader = train_loader(workers=2)
    next(loader.epoch(0))
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    gc.collect()
    assert not multiprocessing.active_children()
    next(loader.epoch(0))
    del loader
    gc.collect()
    assert not multiprocessing.active_children()


def test_workers_outlive_the_signals_that_a_scheduler_sends_to_all_processes(reference):
    loader = train_loader(workers=2)
    batches = loader.epoch(0)
    first = next(batches)
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, *workers], check=True)
    images, _ = collect([first, *batches])
    assert torch.equal(images, reference[0][0])
    loader.close()


def test_a_process_may_end_amid_an_epoch_without_a_word_from_its_workers():
    script = (
        "from tests.data.test_loaders import train_loader;"
        "batches = train_loader(workers=2).epoch(0); next(batches); raise SystemExit(7)"
    )
    python = [sys.executable, "-W", "error", "-W", "ignore:This DataLoader:UserWarning"]
    ended = subprocess.run([*python, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (7, "")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tree, workers):
    (tree / "train" / "cat" / "b.jpg").write_text("no image")
    source = FolderSource(str(tree), "train")
    colours = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    train = TrainLoader(
        source,
        train_transform(image_size=8, **colours),
        seed=0,
        global_batch=5,
        slot=5,
        my_slots=[0],
        workers=workers,
    )
    evaluate = EvalLoader(source, eval_transform(image_size=8, **colours), batch=1, workers=workers)
    for loader, batches in ((train, train.epoch(0)), (evaluate, iter(evaluate))):
        with pytest.raises(
            DataError, match=r"^data\.root: cannot read image '.*cat/b\.jpg' \(.*\); repair or remove it$"
        ):
            list(batches)
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_evaluation_covers_every_image_once(workers, world_size):
    seen = []
    for rank in range(world_size):
        loader = EvalLoader(
            Numbers(30 if workers == 0 else 7), torch.tensor, batch=4, rank=rank, world_size=world_size, workers=workers
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        for images, labels in batches:
            assert torch.equal(images % 7, labels)
            seen += images.tolist()
        assert [images.tolist() for images, _ in loader] == [images.tolist() for images, _ in batches]
        loader.close()
    assert sorted(seen) == list(range(30 if workers == 0 else 7))


def test_evaluation_maps_labels():
    label_map = np.array([6, 5, 4, 3, 2, 1, 0])
    labels = torch.cat([labels for _, labels in EvalLoader(Numbers(7), torch.tensor, batch=3, label_map=label_map)])
    assert labels.tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_real_images_come_as_float32(tree):
    source = FolderSource(str(tree), "train")
    transform = train_transform(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = TrainLoader(source, transform, seed=0, global_batch=4, slot=2, my_slots=[0, 1])
    for images, labels in loader.epoch(0):
        assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.float32)
        assert (labels.shape, labels.dtype) == ((2,), torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 10}, r"recipe\.global_batch=10: must be a multiple of recipe\.slot=4"),
        ({"global_batch": 52}, r"recipe\.global_batch=52: larger than the training split of 50 images"),
        ({"slot": 0}, r"recipe\.slot=0"),
        ({"repeats": 0}, r"recipe\.repeats=0"),
        ({"workers": -1}, r"data\.workers=-1"),
    ],
)
def test_numbers_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        train_loader(**options)


def test_an_empty_evaluation_batch_is_refused():
    with pytest.raises(ConfigError, match="batch=0"):
        EvalLoader(Numbers(5), torch.tensor, batch=0)
