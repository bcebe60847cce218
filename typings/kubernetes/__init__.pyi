# The library ships no types; this declares the little of it that kube.py uses.
