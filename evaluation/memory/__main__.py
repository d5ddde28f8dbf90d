"""python -m evaluation.memory: see plan.py."""

from evaluation.memory.plan import main

if __name__ == "__main__":
    main()
