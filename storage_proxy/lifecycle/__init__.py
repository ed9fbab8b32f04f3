"""The end of blobs: run deletion, tombstones, clean-up jobs."""
