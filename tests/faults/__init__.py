"""Kills, power cuts and damaged files, made on purpose, and what the workflow makes of them.

    setting      the small run that everything is tried on, with every kind of file in it
    jobs         the workflow's jobs one by one, each its own script in a process of its own
    faults       what is to happen to a process, and where (`hook/sitecustomize.py` does it)
    kills        jobs and whole runs that are killed and started again
    power        a run on a file system that loses its power
    corruption   every kind of file damaged in every way, and who notices
    input        the table of bad input
    record       figures, printed and kept

`benchmarks/faults.py` does all of it (`make faults`), `tests/workflow/test_faults.py` a short form.
"""
