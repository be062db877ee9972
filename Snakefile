"""From a full-precision MM-DiT to a W4A8 model that draws the same pictures."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.append(str(Path(workflow.basedir) / "scripts"))


include: "rules/arguments.smk"


configfile: CONFIGURATION


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/calibrate.smk"
include: "rules/weights.smk"
include: "rules/activations.smk"
include: "rules/inference.smk"
include: "rules/evaluate.smk"
include: "rules/train_demo.smk"


localrules:
    all,
    calibrate,
    weights,
    export,
    activations,
    plots,
    inference,
    compare,
    diff_stats,
    evaluate,
    report,
    quantize,


rule all:
    """Everything, ending with the report."""
    default_target: True
    input:
        rules.render_report.output.page,
