"""A copy of every step and evaluation in Weights & Biases or trackio, for people who look at curves there (recipe key `log`).

    step machine --reports--> Logged --put--> LogQueue (bounded) --thread--> Tracker --> wandb | trackio
                                 |
                                 +--> agent: Prometheus, observed document, files. These count; a tracker never does

A tracker may be slow, hang, raise or be gone: nothing of that reaches a step. What does not fit into the queue is dropped
and counted. Only a package that is not installed ends a run, before it starts.
"""
