"""One file per data set, found by its name: ``X.py`` holds ``X(data_dir) -> Dataset``."""
