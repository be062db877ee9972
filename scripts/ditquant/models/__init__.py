"""Models as files.

spec            descriptions of models
plan            checks that a configuration fits a model, before anything runs
shapes          sizes of a model, known before a weight is read
identity        identifies a checkpoint by its content
load            loads the parts of a model
files           checks that files are whole
weights         reads tensors
hub             errors of the Hugging Face hub
text            text encoders: from prompts to conditioning
t5              T5's configuration and tokenizer
layout          how the original SD3 file names its tensors
"""
