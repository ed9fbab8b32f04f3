"""The BlobStore port (``port``) and its backends: ``local`` and ``s3``."""
