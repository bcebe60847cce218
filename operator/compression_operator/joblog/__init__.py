"""What a job's log and termination message say."""
