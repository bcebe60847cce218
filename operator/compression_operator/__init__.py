"""The control plane: plans a CompressionRun and reconciles it into jobs. Never imports torch."""

__version__ = "0.1.0"
"""Also where no package's metadata is: the images hold the sources alone."""
