"""AMP4EC beside what somebody would take instead, on the same cores in the same run.

`experiment` is what is measured, `systems` the list of them; `driver` is this end of the pipe to the program
that runs one, and `drivers` are those programs.
"""
