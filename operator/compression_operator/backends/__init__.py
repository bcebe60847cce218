"""What runs jobs: one file per backend, all behind `compression_operator.jobs.Backend`."""
