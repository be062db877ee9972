"""What must be right before the configuration is read: the command line and the files it names."""

import shlex

from snakemake.exceptions import WorkflowError

from ditquant.errors import UserError
from ditquant.planning.command_line import check_options
from ditquant.planning.config_files import check_file

CONFIGURATION = Path(workflow.basedir) / "config" / "config.yaml"

if set(str(workflow.basedir)) & set("{}[]"):
    raise WorkflowError(
        f"Snakemake cannot run a workflow from {workflow.basedir}: braces and brackets mean something "
        "to it. Move this folder to a path without them and run `make setup` there."
    )
try:
    if workflow.is_main_process:
        check_options(sys.argv)
    for path in (CONFIGURATION, *workflow.overwrite_configfiles):
        check_file(path)
except UserError as error:
    raise WorkflowError(str(error)) from None

# `script:` hands the interpreter's path to a shell as it is, which cuts it at the first space. A path
# that does not exist is quoted already, by a workflow that this process ran before.
if Path(sys.executable).exists():
    sys.executable = shlex.quote(sys.executable)
