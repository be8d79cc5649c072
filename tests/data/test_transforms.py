import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms as tv

from dcls.data import eval_transform, train_transform
from dcls.data.transforms import Normalise, _augment_ops
from dcls.errors import ConfigError, DataError
from dcls.runtime.randomness import seed_all

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = {"channels": 1, "mean": (0.286,), "std": (0.353,)}
RGB = {"channels": 3, "mean": MEAN, "std": STD}


def seeded(transform, image, seed):
    seed_all(seed)
    return transform(image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_normalise_gives_torchvisions_bits(photo, mode):
    photo = photo.convert(mode)
    mean, std = (MEAN, STD) if mode == "RGB" else ((0.286,), (0.353,))
    theirs = tv.Compose([tv.ToTensor(), tv.Normalize(torch.tensor(mean), torch.tensor(std))])(photo)
    ours = Normalise(mean, std)(photo)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "color_jitter": 0.4},
            {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "color_jitter": 0.4},
        ),
        (
            {"color_jitter": 0.4, "scale": (0.5, 0.9), "ratio": (0.9, 1.1), "interpolation": "random", "hflip": 0.2},
            {"color_jitter": 0.4, "scale": (0.5, 0.9), "ratio": (0.9, 1.1), "interpolation": "random", "hflip": 0.2},
        ),
    ],
)
def test_training_images_are_timms(photo, ours, theirs):
    mine = train_transform(image_size=32, **RGB, **ours)
    timms = create_transform(
        32, is_training=True, use_prefetcher=False, mean=MEAN, std=STD, **{"interpolation": "bicubic", **theirs}
    )
    for seed in range(40):
        assert torch.equal(seeded(mine, photo, seed), seeded(timms, photo, seed))


@pytest.mark.parametrize(("size", "mode"), [(224, None), (384, "squash")])
def test_evaluation_images_are_timms_and_warped_from_384_on(photo, size, mode):
    crop_pct = 1.0 if mode else 0.875
    timms = create_transform(
        size, use_prefetcher=False, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode
    )
    assert torch.equal(eval_transform(image_size=size, **RGB)(photo), timms(photo))


def test_a_crop_mode_can_be_asked_for(photo):
    centre = eval_transform(image_size=384, crop_mode="center", crop_pct=0.95, **RGB)(photo)
    timms = create_transform(384, use_prefetcher=False, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=0.95)
    assert torch.equal(centre, timms(photo))


def test_without_scale_the_image_is_resized_and_flipped_only(photo):
    transform = train_transform(image_size=20, scale=None, interpolation="bilinear", **RGB)
    plain = eval_transform(image_size=20, crop_pct=1.0, interpolation="bilinear", **RGB)(photo)
    seen = [seeded(transform, photo, seed) for seed in range(20)]
    flipped = [torch.equal(image, plain.flip(2)) for image in seen]
    assert all(flip or torch.equal(image, plain) for image, flip in zip(seen, flipped))
    assert 2 < sum(flipped) < 18


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("colours", [GREY, RGB])
def test_every_mode_becomes_the_channels_asked_for(photo, mode, colours):
    image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 200) if mode == "I;16" else photo
    image = image if mode == "I;16" else image.convert(mode)
    full = train_transform(image_size=24, auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, **colours)
    for seed in range(20):
        assert seeded(full, image, seed).shape == (colours["channels"], 24, 24)
    assert eval_transform(image_size=24, **colours)(image).shape == (colours["channels"], 24, 24)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_of_16_bits_the_upper_8_are_kept(photo, order, tmp_path):
    grey = photo.convert("L")
    wide = Image.fromarray((np.asarray(grey).astype(np.uint16) * 257).astype(order))
    wide.save(tmp_path / "wide.tif")
    wide.save(tmp_path / "wide.png")
    seen = eval_transform(image_size=24, **GREY)
    for name in ("wide.tif", "wide.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
        assert torch.equal(seen(image), seen(grey))
    older = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)  # as older releases of Pillow open the file
    older.format = "PNG"
    assert torch.equal(seen(older), seen(grey))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(photo, kind):
    image = Image.fromarray(np.asarray(photo.convert("L")).astype(kind))
    with pytest.raises(DataError, match="no known range"):
        eval_transform(image_size=24, **GREY)(image)


def test_a_palette_with_alpha_gives_no_warning(photo, tmp_path):
    photo.convert("P").save(tmp_path / "alpha.png", transparency=bytes([0, 128, 255]))
    with Image.open(tmp_path / "alpha.png") as image:
        assert eval_transform(image_size=24, **RGB)(image).shape == (3, 24, 24)


def test_randaugment_survives_5000_draws_and_changes_nothing_else():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    transform = train_transform(image_size=8, scale=None, hflip=0, auto_augment="rand-m9-mstd0.5-inc1", **RGB)
    (guarded,) = [step for step in transform.transforms if list(_augment_ops(step))]
    fill = tuple(round(255 * value) for value in MEAN)
    unguarded = rand_augment_transform(
        "rand-m9-mstd0.5-inc1", {"translate_const": 3, "img_mean": fill, "interpolation": 3}
    )
    asked_for_no_bits = 0
    for op in unguarded.ops:
        if op.aug_fn is timm_posterize:
            op.aug_fn = lambda image, bits, **_: None if bits < 1 else timm_posterize(image, bits)
    for seed in range(5000):
        ours = seeded(guarded, image, seed)
        try:
            theirs = seeded(unguarded, image, seed)
        except AttributeError:  # the op after the one that had no answer
            theirs = None
        if theirs is None:
            asked_for_no_bits += 1
        else:
            assert ours.tobytes() == theirs.tobytes()
    assert asked_for_no_bits > 0


@pytest.mark.parametrize(
    "policy", ["rand-m10-inc1", "rand-m0", "rand-m10-mmax20-inc1", "augmix-m10", "v0", "v0r", "original-mstd0.5"]
)
def test_no_policy_asks_pillow_for_no_bits(photo, policy):
    transform = train_transform(image_size=8, auto_augment=policy, **RGB)
    for seed in range(150):
        assert seeded(transform, photo, seed).isfinite().all()


def test_no_bits_give_the_black_image_of_earlier_pillow(photo):
    (augment,) = [
        step
        for step in train_transform(image_size=8, auto_augment="rand-m10-inc1", **RGB).transforms
        if hasattr(step, "ops")
    ]
    (op,) = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
    assert op.aug_fn(photo, 0).getextrema() == ((0, 0),) * 3
    assert op.aug_fn(photo, 3).tobytes() == timm_posterize(photo, 3).tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"data\.channels=4"),
        ({"mean": (0.5,)}, r"data\.mean=\[0\.5\]: needs one value per channel, data\.channels=3"),
        ({"std": (0.5, 0.5)}, r"data\.std=\[0\.5, 0\.5\]"),
        ({"std": (0.5, 0.5, 0.0)}, r"data\.std=.*must be positive"),
        ({"interpolation": "cubic"}, r"recipe\.train_interpolation=cubic: unknown; use one of nearest, bilinear"),
        ({"interpolation": "random", "scale": None}, r"recipe\.train_interpolation=random"),
        ({"erasing_mode": "noise"}, r"recipe\.erasing_mode=noise"),
        ({"auto_augment": "rand-m9-inc"}, r"recipe\.auto_augment=rand-m9-inc: not a policy"),
        ({"auto_augment": "trivial"}, r"recipe\.auto_augment=trivial"),
    ],
)
def test_bad_training_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        train_transform(**{"image_size": 24, **RGB, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 1.5}, r"data\.crop_pct=1\.5: must lie in \(0, 1\]"),
        ({"interpolation": "random"}, r"data\.interpolation=random"),
        ({"crop_mode": "middle"}, r"data\.crop_mode=middle"),
        ({"channels": 1}, r"data\.mean="),
    ],
)
def test_bad_evaluation_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        eval_transform(**{"image_size": 24, **RGB, **options})
