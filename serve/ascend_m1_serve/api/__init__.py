"""The HTTP interfaces. Nothing outside of this folder knows FastAPI."""

from .app import ApiOptions, create_app

__all__ = ["ApiOptions", "create_app"]
