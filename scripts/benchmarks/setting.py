"""What was asked for on the command line, as the benchmarks see it."""

from dataclasses import dataclass

from benchmarks.peers import has_reference


@dataclass(frozen=True)
class Setting:
    """device: cpu or cuda. batch: images. only: the cases whose name holds this text. tiny: shapes for tests alone."""

    device: str = "cpu"
    batch: int = 8
    only: str = ""
    tiny: bool = False

    def wants(self, case: str) -> bool:
        return self.only in case

    @property
    def reference(self) -> bool:
        """Is the reference package there to compare with?"""
        return has_reference()
