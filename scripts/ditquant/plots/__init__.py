"""Plots of both tracks. These modules make figures; scripts write them.

charts                      axes, colours and files that all plots share
activation_*, layout        statistics, ranges and tiers; `activation_names` lists them
history_plots               the learning of blocks and of the tuning
evaluation_charts           variants against each other
"""
