"""The read path: grant -> plan -> byte ranges -> stream."""
