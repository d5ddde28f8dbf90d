"""python -m evaluation.bench: see command.py."""

from evaluation.bench.command import main

if __name__ == "__main__":
    main()
