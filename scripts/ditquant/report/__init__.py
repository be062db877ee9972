"""The page that a person opens.

page                        lays it out, with `templates/`
report_data, block_report   what it shows, read from a run's folder
headlines                   what it says first
"""
