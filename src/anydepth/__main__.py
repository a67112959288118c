"""`python -m anydepth` is the command line."""

from anydepth.cli import main

if __name__ == "__main__":
    main()
