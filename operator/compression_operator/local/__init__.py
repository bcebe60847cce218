"""One box: jobs are processes, and everything about a run is files of its work directory."""
