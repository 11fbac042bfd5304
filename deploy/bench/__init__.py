"""`amp4ec bench`: what a cluster of small nodes gives, beside one process with the same CPU.

cells      what is measured: a model, a runtime with a level, a number of nodes, a way of planning
subjects   the models, their inputs, and how each is prepared
whole      the process that it is compared with
cell       one cell, measured
delivery   what nodes fetched for a plan, and what a job puts on the wire
run        all cells, one after the other, kept as they come
raw        the file that they are kept in
tables, drawings, page
           what is made of it
"""
