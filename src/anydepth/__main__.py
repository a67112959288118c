"""`python -m anydepth` is the command line."""

from anydepth.cli.app import main

if __name__ == "__main__":
    main()
