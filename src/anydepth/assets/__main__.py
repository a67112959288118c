"""`python -m anydepth.assets`."""

from anydepth.assets.registry import main

raise SystemExit(main())
