"""`python -m toolkit.layers`: which layers a config's network has and what each gives, to choose one for features."""

from toolkit.cli import layers

if __name__ == "__main__":
    layers()
