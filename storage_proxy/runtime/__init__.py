"""The composition root: settings in, wired objects out, closed in reverse order by one stack."""
