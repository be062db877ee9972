"""The transformer as everything else sees it.

blocks          names of blocks and linears, taps on them, modulation
sampling        sigma schedule, classifier-free guidance, the Euler loop
calibration     conditioning and trajectories, as files hold them
"""
