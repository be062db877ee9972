"""Models as files.

spec            what a model is
load            how its parts are loaded
text            how it reads prompts
layout          how the original SD3 file names its tensors
"""
