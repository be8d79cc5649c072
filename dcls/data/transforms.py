"""From a PIL image to a normalised tensor: timm's transforms, with three steps of ours around them.

C channels (1 grey, 3 RGB), S image size in pixels. timm draws from `random`, numpy and torch; loaders seed all three
per sample.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as timm_augment
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torchvision import transforms as tv

from dcls.errors import ConfigError, DataError

Transform = Callable[[Image.Image], torch.Tensor]

MODES = {1: "L", 3: "RGB"}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
ERASING_MODES = ("const", "rand", "pixel")

# From here on ConvNeXt's evaluation warps the whole image to the size instead of cropping its centre.
WARP_FROM = 384

# The policy strings that timm reads. It ignores a section without a number and asserts on an unknown one.
POLICY = re.compile(
    r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc\d|t(weights|3aw?)))*"
    r"|augmix(-(m\d+|w\d+|d\d+|a[\d.]+|b\d|mstd[\d.]+))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd[\d.]+)?"
)


def train_transform(
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
    scale: Sequence[float] | None = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
    hflip: float = 0.5,
    auto_augment: str = "",
    color_jitter: float = 0.0,
    erasing: float = 0.0,
    erasing_mode: str = "pixel",
) -> Transform:
    """PIL image of any mode and size -> float32 [C, S, S], augmented as in timm's and ConvNeXt's ImageNet training.

    `scale` and `ratio` are the ranges of area and aspect of the random crop; `scale=None` resizes the shorter side to
    S and crops the centre instead. `interpolation` is one of INTERPOLATIONS, or "random" (bilinear or bicubic) with a
    random crop. `color_jitter` has no effect beside `auto_augment` (timm's rule). Erasing follows normalisation, one
    box per image, with probability `erasing`. Raises ConfigError with the option's name.
    """
    _check_colours(channels, mean, std)
    _check_choice("recipe.train_interpolation", interpolation, INTERPOLATIONS + (("random",) if scale else ()))
    _check_choice("recipe.erasing_mode", erasing_mode, ERASING_MODES)
    if auto_augment and not POLICY.fullmatch(auto_augment):
        raise ConfigError(f"recipe.auto_augment={auto_augment}: not a policy of timm; for example rand-m9-mstd0.5-inc1")
    settings: dict[str, Any] = {
        "scale": tuple(scale) if scale else None,
        "ratio": tuple(ratio),
        "hflip": hflip,
        "color_jitter": color_jitter or None,
        "auto_augment": auto_augment or None,
        "interpolation": interpolation,
        "mean": tuple(mean),
        "std": tuple(std),
        "re_prob": erasing,
        "re_mode": erasing_mode,
    }
    stages = transforms_imagenet_train(image_size, separate=True, **settings)
    (crop, *geometry), colours, (_to_tensor, _normalise, *erase) = (stage.transforms for stage in stages)
    first = [crop] if scale else _resize(image_size, interpolation)
    for step in colours:
        _guard_posterize(step)
    return tv.Compose([Convert(channels), *first, *geometry, *colours, Normalise(mean, std), *erase])


def eval_transform(
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
    crop_mode: str = "auto",
) -> Transform:
    """PIL image of any mode and size -> float32 [C, S, S]: shorter side to floor(S / crop_pct), then the centre S x S.

    `crop_mode` is timm's "center", "squash" or "border"; "auto" is "center" below 384 pixels, and from there on the
    whole image warped to S x S, whatever `crop_pct`, as ConvNeXt evaluates. Raises ConfigError with the option's name.
    """
    _check_colours(channels, mean, std)
    _check_choice("data.interpolation", interpolation, INTERPOLATIONS)
    _check_choice("data.crop_mode", crop_mode, ("auto", "center", "squash", "border"))
    if not 0 < crop_pct <= 1:
        raise ConfigError(f"data.crop_pct={crop_pct}: must lie in (0, 1]")
    crop_mode, crop_pct = settled_crop(image_size, crop_mode, crop_pct)
    timms = transforms_imagenet_eval(
        image_size,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    *resize, _to_tensor, _normalise = timms.transforms
    return tv.Compose([Convert(channels), *resize, Normalise(mean, std)])


def settled_crop(image_size: int, crop_mode: str, crop_pct: float) -> tuple[str, float]:
    """The crop mode in timm's terms, and the share that is cropped: what "auto" stands for at this size."""
    if crop_mode != "auto":
        return crop_mode, crop_pct
    return ("squash", 1.0) if image_size >= WARP_FROM else ("center", crop_pct)


class Convert:
    """A PIL image of any mode -> "L" (1 channel) or "RGB" (3). Transparency is dropped, as everywhere in the field.

    Of 16 bits the upper 8 are kept: Pillow would clip at 255. Raises DataError for floats and integers of 32 bits,
    whose range no file tells.
    """

    def __init__(self, channels: int) -> None:
        self.mode = MODES[channels]

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode == self.mode:
            return image
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # PNGs have 16 bits at most
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise DataError(f"its pixels have 32 bits (mode {image.mode}) and no known range: convert it to 8")
        if isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # Pillow warns where a palette with an alpha per colour is converted at once
        return image.convert(self.mode)


class Normalise:
    """A PIL image -> float32 [C, H, W], (pixel / 255 - mean) / std.

    The bits of torchvision's ToTensor and Normalize at less than half their cost, which on small images is most of a
    sample's.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels[None]
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.div_(255).sub_(self.mean).div_(self.std)


def posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """timm's op, which also keeps 0 bits: a black image.

    PosterizeIncreasing asks for 0 bits at magnitude 10: about once in 700 images of rand-m9-mstd0.5-inc1. Pillow
    12 and before blackened the image, Pillow 13 raises ValueError.
    """
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return timm_augment.posterize(image, bits_to_keep, **options)


def _guard_posterize(step: Any) -> None:
    for op in _augment_ops(step):
        if op.aug_fn is timm_augment.posterize:
            op.aug_fn = posterize


def _augment_ops(step: Any) -> Iterator[Any]:
    """The ops of timm's RandAugment, AugMix (a list) and AutoAugment (a list of lists); none for other steps."""
    yield from getattr(step, "ops", ())
    for sub_policy in getattr(step, "policy", ()):
        yield from sub_policy


def _resize(image_size: int, interpolation: str) -> list[Any]:
    return [tv.Resize(image_size, interpolation=str_to_interp_mode(interpolation)), tv.CenterCrop(image_size)]


def _check_colours(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if channels not in MODES:
        raise ConfigError(f"data.channels={channels}: must be 1 (grey) or 3 (RGB)")
    for option, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != channels:
            raise ConfigError(f"{option}={list(values)}: needs one value per channel, data.channels={channels}")
    if min(std) <= 0:
        raise ConfigError(f"data.std={list(std)}: must be positive")


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option}={value}: unknown; use one of {', '.join(choices)}")
