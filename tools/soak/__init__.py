"""`make soak`: the faults and the fuzzing of the tests at full size, and what was seen as a dated document."""
