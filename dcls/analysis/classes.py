"""Classes on which two networks differ: accuracy of each, and whether the change is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassChange:
    """One class of `images` images. `gained` are right now and were wrong, `lost` were right; accuracies in percent."""

    name: str
    images: int
    before: float
    after: float
    gained: int
    lost: int

    @property
    def change(self) -> float:
        """In percentage points."""
        return self.after - self.before

    @property
    def error(self) -> float:
        """Standard error of the change in points: the images are the same, so only those that flipped count."""
        flipped, net = self.gained + self.lost, self.gained - self.lost
        return 100 * max(flipped - net**2 / self.images, 0.0) ** 0.5 / self.images


def changes(before: Tensor, after: Tensor, labels: Tensor, names: Sequence[str]) -> list[ClassChange]:
    """The classes that have images, the largest change of accuracy first.

    before, after: bool [N], which images each network has right. labels: int64 [N], positions in `names`.
    """
    found = []
    for label, name in enumerate(names):
        old, new = before[labels == label], after[labels == label]
        if count := len(old):
            right_before, right_after = (100 * int(right.sum()) / count for right in (old, new))
            flips = int((new & ~old).sum()), int((old & ~new).sum())
            found.append(ClassChange(name, count, right_before, right_after, *flips))
    return sorted(found, key=lambda each: -abs(each.change))
