"""A cluster at half load for a while, nodes coming and going: `python -m tests.cluster.soak`.

Nothing breaks here; what is asked is whether anything grows. `trend` is the test, `run` takes the samples.
"""
