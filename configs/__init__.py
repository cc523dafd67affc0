"""Experiments as YAML files, one a file; `python -m toolkit.fit --config NAME` finds them by name."""
