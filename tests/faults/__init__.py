"""Kills, power cuts and damaged files, made on purpose, and what the workflow makes of them.

    setting      the small run that everything is tried on, with every kind of file in it
    jobs         the workflow's jobs one by one, each its own script in a process of its own
    moments      what is to happen to a job, and when (`hook/sitecustomize.py` does it)
    kills        jobs that are killed and started again
    runs         whole runs, and orphans that outlive them
    reference    the undisturbed run that all is compared with
    power        a run on a file system that loses its power
    corruption   every kind of file damaged in every way, and who notices
    elsewhere    damage to the model's own files and to prompts
    spoiled      the table of bad input
    parts        each of these, gone through and counted
    record       figures, printed and kept

`benchmarks/faults.py` does all of it (`make faults`), `tests/workflow/test_faults.py` a short form.
"""
