"""The event bus: durable topics whose messages arrive in the order of their partition, at least once.

`port` says what every backend promises; `embedded` and `kafka` keep it.
"""
