"""`python -m toolkit.leaks`: which test images have a twin in the training set, and which are unlike all of it."""

from toolkit.cli import leaks

if __name__ == "__main__":
    leaks()
