"""The pods of a job, whatever kind of job makes them."""
