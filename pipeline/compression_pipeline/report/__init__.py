"""The report of a run, or of a student: one self-contained page for the person who decides whether to ship it."""

PAGE = "index.html"
"""The page's file, in the folder of its report."""

IMPORTANCE = "importance.html"
"""The page of what a prune measured and kept, in its artifact."""
