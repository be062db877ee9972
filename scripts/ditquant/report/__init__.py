"""The page that a person opens.

page                        what it says first, and all of it laid out with `templates/`
what_was_run                that its files belong together, and by which options they were made
report_data, block_report   what it shows, read from a run's folder
"""
