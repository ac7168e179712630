"""`python -m dashboards`: write the dashboards, or with `--check` say whether the files are what would be written."""

import argparse
import sys
from pathlib import Path

from controlplane.contract.yamlfile import FileError
from dashboards.build import FOLDER, SHIPPED, differences, write


def main() -> int:
    """Exit code 0 done or equal, 1 different, 2 the policy cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument(
        "--policy",
        default=SHIPPED,
        help="policy whose limits are drawn (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the files (default: the shipped ones)")
    given = parser.parse_args()
    try:
        if not given.check:
            for path in write(given.out, given.policy):
                print(path)
            return 0
        found = differences(given.out, given.policy)
    except FileError as error:
        print(error, file=sys.stderr)
        return 2
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("run `python -m dashboards` and look at the difference", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
