"""Storage proxy: token-based downloads, streamed straight from object storage."""

__version__ = "0.1.0"
