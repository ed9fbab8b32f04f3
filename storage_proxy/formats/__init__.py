"""Archive formats without I/O: never imports asyncio or a client."""
