"""Fixtures of the host NPU's suite; the stand-ins are loaded by tests/conftest.py."""
