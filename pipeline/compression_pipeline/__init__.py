"""The data plane: what runs inside one job of a CompressionRun."""
