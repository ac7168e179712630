"""Runs code that nobody has read, and checks that nobody wants to wait for. Linux only.

    trainer (pool.py)  --job-->  warden (warden.py)  --fork-->  child (children.py): confinement, then the work
                       <-reply-                      <--pipe--

One warden is one process, kept for many jobs; each job runs in fresh children of it. A child reads its payload itself and
the warden never does: what one child was given cannot be found in the memory of the next. Expected results are never in
the process that runs the unknown code (docs/tasks.md has the threat model).
"""
