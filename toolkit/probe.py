"""`python -m toolkit.probe`: where a trained model changes its mind on straight paths between training images."""

from toolkit.cli import probe

if __name__ == "__main__":
    probe()
