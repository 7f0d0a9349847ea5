"""python -m handmim COMMAND ..."""

from handmim.cli import main

if __name__ == "__main__":
    main()
