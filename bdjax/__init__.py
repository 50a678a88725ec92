"""Plant backdoors in image classifiers, remove them, and measure both, at accelerator speed."""

__version__ = "0.1.0"
