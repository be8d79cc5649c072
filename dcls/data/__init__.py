"""What feeds the loop: sources of images, timm's transforms, and loaders in which every draw has an address."""

from dcls.data.clickme import ClickMe
from dcls.data.loaders import EvalLoader, TrainLoader
from dcls.data.order import epoch_order, slot_batches
from dcls.data.sources import BundledSource, FolderSource, Source, class_map, open_eval, open_splits
from dcls.data.transforms import Transform, eval_transform, settled_crop, train_transform

__all__ = [
    "BundledSource",
    "ClickMe",
    "EvalLoader",
    "FolderSource",
    "Source",
    "TrainLoader",
    "Transform",
    "class_map",
    "epoch_order",
    "eval_transform",
    "open_eval",
    "open_splits",
    "settled_crop",
    "slot_batches",
    "train_transform",
]
