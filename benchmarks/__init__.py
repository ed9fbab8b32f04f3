"""Comparisons of the storage proxy with its peers on a real S3 server, by one command: ``make bench``."""
