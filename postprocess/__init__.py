"""Outputs to result documents. The face is ``postprocess.kinds``."""
