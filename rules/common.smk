"""Validation, wildcard constraints, paths and code digests that every stage uses."""

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from ditquant import settings
from ditquant.digest import code_digest
from ditquant.errors import UserError
from ditquant.models.spec import read_spec

ROOT = Path(workflow.basedir)

validate(config, str(ROOT / "config" / "schema.yaml"))

try:
    settings.check_counts(config)
    settings.check_recipes(config)
    SPEC = read_spec(config["model"]["name"], config["model"]["checkpoint"], ROOT)
    PROMPTS = settings.prompt_sets(config, ROOT)
    INFERENCE_PROMPTS = settings.inference_prompts(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{config['run']}"
IMAGES = [f"{index:04d}" for index in range(config["num_images"])]
BLOCKS = SPEC.block_names
RECIPES = list(config["recipes"])
VARIANTS = ["full", *(f"{r}-{k}" for r in RECIPES for k in settings.VARIANT_KINDS)]


wildcard_constraints:
    image=r"\d{4}",
    shard=r"[a-z]+-\d{3}",
    block="|".join(BLOCKS),
    recipe="|".join(RECIPES),
    variant="|".join(VARIANTS),
    prompt="|".join(INFERENCE_PROMPTS),


def code(script):
    """Digest of a script and of the library modules that it imports."""
    return code_digest(ROOT / "scripts" / script)


def model_params():
    """What tells one model from another; part of every job's parameters that loads it."""
    from ditquant.models.spec import checkpoint_identity

    return {**config["model"], "identity": checkpoint_identity(SPEC)}


def image_size():
    """Height and width in pixels."""
    return config["calibration"]["image_size"] or list(SPEC.image_size)
