"""Plots of both tracks. These modules make figures; scripts write them.

charts                      axes, colours and files that all plots share
activation_*                statistics, ranges and tiers; `activation_plots` lists them
history_plots               the learning of blocks and of the tuning
evaluation_*                variants against each other; `evaluation_charts` lists them
"""
