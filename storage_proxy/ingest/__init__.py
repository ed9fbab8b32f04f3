"""The write path: presign, receive, announce, verify, record."""
