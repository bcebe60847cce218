"""The CompressionRun resource: its models are the one source of the CRD."""
