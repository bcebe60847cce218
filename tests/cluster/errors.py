"""The one exception that reaches the person at the keyboard."""


class ClusterError(Exception):
    """Says in one sentence what is wrong and what to do about it."""
