"""The transformer as the tracks see it, whatever its family.

blocks          `Network`, its blocks, streams and linears by name, and taps on them
diffusionkit    the adapter for DiffusionKit's classes
sampling        sigma schedule, classifier-free guidance, the Euler loop
calibration     conditioning and trajectories, as files hold them
"""
