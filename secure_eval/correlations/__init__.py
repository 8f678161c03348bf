"""Correlated randomness: how it is dealt, expanded and used once (`correlation.py`), and its kinds (`kinds.py`)."""
