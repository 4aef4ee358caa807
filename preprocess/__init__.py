"""Payloads to tensors. The face is ``preprocess.kinds``."""
