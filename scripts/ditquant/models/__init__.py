"""Models as files.

spec            what a model is
plan            what a configuration asks of it, checked before anything is planned
shapes          its sizes, and what follows from them before a weight is read
identity        what tells one checkpoint from another
load            how its parts are loaded
files           whether the files are whole
weights         how their tensors are read
hub             what went wrong on the way from the Hugging Face hub
text            how it reads prompts
t5              T5's configuration and tokenizer
layout          how the original SD3 file names its tensors
"""
