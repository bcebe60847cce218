"""The control plane: plans a CompressionRun and reconciles it into jobs. Never imports torch."""
