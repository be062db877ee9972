"""What a configuration means: everything that the workflow asks while it plans, and nothing heavy.

validation      what the schema says, in messages that name the key
settings        prompts and their ids, recipes, counts, what excludes what
variant_names   activation configurations, and the variants that can be drawn
baselines       what each evaluated variant is compared with
fitting         whether recipes fit the linears of the model
layer_bits      what a recipe asks of one linear
digest          which code a job's result depends on
"""
