"""`amp4ec top`: the cluster as it does now, in a terminal.

`feed` hears the topics that anybody may read, `view` makes rows of what it heard (no terminal, no clock),
`app` shows them and asks the orchestrator for what its keys mean.
"""
