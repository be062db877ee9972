"""Validation, wildcard constraints, paths and code digests that every stage uses."""

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from ditquant.planning import configuration, fitting, settings, variant_names, variants
from ditquant.planning.command_line import take_typed_text
from ditquant.planning.copies import recognise_copies
from ditquant.planning.digest import code_digest
from ditquant.planning.recipes import Recipe
from ditquant.errors import UserError
from ditquant.models.identity import checkpoint_identity, text_identity
from ditquant.models.plan import read_plan

ROOT = Path(workflow.basedir)
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8"))

try:
    is_spawned = not workflow.is_main_process
    take_typed_text(config, workflow.config_settings.config_args, is_spawned)
    PLAN = read_plan(config, SCHEMA, ROOT)
except UserError as error:
    raise WorkflowError(str(error)) from None
if not is_spawned:
    logger.info(configuration.summary(config))

SPEC, IMAGE_SIZE, PROMPTS, INFERENCE_PROMPTS = PLAN
IDENTITY = checkpoint_identity(SPEC)
RESULTS = f"results/{config['run']}"
IMAGES = [f"{index:04d}" for index in range(config["num_images"])]
BLOCKS = SPEC.block_names
LINEARS = SPEC.shape.block_linears()
RECIPES = {
    name: Recipe.from_params(options) for name, options in config["recipes"].items()
}

# Jobs parse this file too, on other machines perhaps; only who plans may judge what is there.
if not is_spawned:
    for warning in recognise_copies(Path(RESULTS)):
        logger.warning(warning)

# Cores a model job: all of them where one runs at a time (the default profile's gpu=1). On a CPU more
# jobs of fewer threads are faster, since only matrix products use several: `--resources gpu=2`.
# The number of threads changes no bit of a result.
MODEL_SLOTS = workflow.global_resources.get("gpu")
MODEL_THREADS = max(
    1, (workflow.cores or 1) // (MODEL_SLOTS.value if MODEL_SLOTS else 1)
)


# Patterns and not the names themselves: `known` then says which names there are.
wildcard_constraints:
    image=r"\d{4}",
    shard=r"[a-z]+-\d{3}",
    block=r"(mm|uni)\d{2}",
    recipe=r"[a-z0-9]+(-[a-z0-9]+)*",
    variant=r"full|[a-z0-9]+(-[a-z0-9]+)*-[a-z0-9]+",
    prompt=r"[a-z0-9]+(-[a-z0-9]+)*",
    export=r"diffusionkit-[a-z0-9]+",
    owner=r"(weights/[a-z0-9]+(-[a-z0-9]+)*/)?",
    scheme=r"[a-z][a-z0-9]*",


def known(kind, name, names):
    """The name, if it is one of `names`; else an error that lists them."""
    if name not in names:
        raise WorkflowError(
            f"Unknown {kind} {name!r}: the configuration has {', '.join(names)}."
        )
    return name


def code(script, without=()):
    """Digest of a script and of the library modules that it imports, but for those left out."""
    return code_digest(ROOT / "scripts" / script, tuple(without))


def model_params(identity=IDENTITY):
    """What tells one model from another; part of every job's parameters that loads it.

    Where its files lie is none of it: a model may be moved. Jobs find that in the configuration.
    """
    chosen = {
        key: value for key, value in config["model"].items() if key != "checkpoint"
    }
    return {**chosen, "identity": identity}


def image_size():
    """Height and width in pixels."""
    return IMAGE_SIZE
