"""Process 1 of a job: torch-free, starts the ranks, keeps the heartbeat, and says in the end how it went."""
