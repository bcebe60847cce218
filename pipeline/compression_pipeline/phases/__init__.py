"""The phases, one verb per file: each has `run(job, context) -> Result` and imports only what it needs."""
