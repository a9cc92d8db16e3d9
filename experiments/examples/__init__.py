"""Scripts to copy: `python -m experiments.examples.ioi`."""
