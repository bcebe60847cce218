"""What the phases do. `<phase>.py` has `run(job, context) -> Result`, and imports only what it needs. The other files
are parts that phases share, or that one of them has grown out of.
"""
