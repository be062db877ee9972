"""Everything that Snakemake needs to plan: what a configuration means. It imports nothing heavy.

config_files       mistakes that YAML accepts silently
command_line       text after --config, as it was typed
configuration      defaults, types of numbers, and counts that follow from others
validation         the schema, in messages that name the key
prompt_files       prompts from CSV
recipes            what a recipe is, one dataclass for each rounding
recipe_options     the options that each recipe reads; an error for the others
settings           prompts and their ids, counts, what excludes what
variants           a variant's name, in parts
variant_names      activation configurations, and the variants that can be drawn
baselines          what each evaluated variant is compared with
fitting            whether recipes fit the linears of the model
copies             results that came from elsewhere
snakemake_records  what Snakemake itself knows of results
digest             which code a job's result depends on
"""
