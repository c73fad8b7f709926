"""Beside `make_dataset.py`, so that pytest puts this folder on the path: `from make_dataset import make_dataset`."""
