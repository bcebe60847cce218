"""Tasks that models are scored by, with lm-eval: their definitions and questions (`fetching`, by the phase tasks), and
what scores a Hugging Face model by them (`scoring`). Nothing here needs an engine.
"""
