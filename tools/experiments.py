"""Fill a table of variants: python tools/experiments.py --help"""

from handmim.cli import main

if __name__ == "__main__":
    main("experiments")
