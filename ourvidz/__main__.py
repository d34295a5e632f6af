"""`python -m ourvidz`."""

from ourvidz.cli.main import main

if __name__ == "__main__":
    main()
