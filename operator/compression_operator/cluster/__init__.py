"""The operator as a process of a cluster."""
