"""Models on disk and in ONNX Runtime: ``repository``, ``session``, ``engine``, ``trial``."""
