"""The KeyValueStore port and its engines: ordered keys, serialisable transactions, FoundationDB's semantics.

The law: what works on one engine works on the other, down to the limits and the conflicts.
"""
