"""`python -m toolkit.fit --config NAME`: choose images, train on them, and say what it was worth."""

from toolkit.cli import fit

if __name__ == "__main__":
    fit()
