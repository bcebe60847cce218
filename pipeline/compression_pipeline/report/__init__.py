"""The report of a run: one self-contained page for the person who decides whether to ship a student."""
