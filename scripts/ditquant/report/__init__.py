"""The report of a run: one HTML page.

page                        collects the data, with the numbers at the top, and fills `templates/`
what_was_run                checks that the files belong together, and reads their options
report_data, block_report   the data of the sections, read from a run's folder
"""
