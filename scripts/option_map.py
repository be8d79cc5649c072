"""Write the option map into README.md, between `<!-- options -->` and `<!-- /options -->`.

python scripts/option_map.py            make it anew
python scripts/option_map.py --check    exit 1 where the README is stale
"""

from checkout import ROOT

import argparse
import sys
from pathlib import Path

from dcls.config import help


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The README's option map, made from dcls/config.py.")
    parser.add_argument("readme", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the README is stale")
    asked = parser.parse_args(arguments)
    old = asked.readme.read_text(encoding="utf-8")
    new = help.renewed(old)
    if asked.check and new != old:
        print(f"{asked.readme}: the option map is stale; run python scripts/option_map.py")
        return 1
    if not asked.check:
        asked.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
