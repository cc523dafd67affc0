"""`python -m toolkit.compare --config NAME --output FOLDER`: does pruning pay? Selectors x fractions x seeds."""

from toolkit.cli_compare import compare

if __name__ == "__main__":
    compare()
