"""`python -m toolkit.select --config NAME --output FOLDER`: choose images and report, train nothing else."""

from toolkit.cli import select

if __name__ == "__main__":
    select()
