"""`python -m anydepth.assets`."""

import sys

from anydepth.assets.registry import main

if __name__ == "__main__":
    sys.exit(main())
