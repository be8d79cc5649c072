from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcls.data import BundledSource
from dcls.errors import ConfigError

# Small tensors gain nothing from a second thread, and threads of several processes would wait for each other's cores.
torch.set_num_threads(1)

CLASSES, TRAIN, VAL = 4, 16, 5


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory) -> Path:
    """A folder of real images: 4 classes, 16 training and 5 validation PNGs each, 28 x 28 grey."""
    root = tmp_path_factory.mktemp("images")
    for split, name, count in (("train", "train", TRAIN), ("val", "test", VAL)):
        source = BundledSource(name)
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in (source.labels == label).nonzero()[0][:count]:
                source.load(int(index)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def typed() -> Callable[..., Any]:
    """The checked configuration of a training with these words."""
    from dcls.config import composition  # not above: gpu_check.py runs tests where Hydra is not installed

    return lambda *words: composition.typed(*composition.compose("train", words))


@pytest.fixture(scope="session")
def typed_eval() -> Callable[..., Any]:
    """The checked configuration of an evaluation with these words."""
    from dcls.config import composition

    return lambda *words: composition.typed_eval(*composition.compose("eval", words))


@pytest.fixture(scope="session")
def refusal(typed) -> Callable[..., str]:
    """What is said about a training with these words, which cannot be."""
    from dcls.config import composition

    def line(*words: str) -> str:
        with pytest.raises(ConfigError) as caught:
            typed(*words)
        return composition.explain(caught.value)

    return line
