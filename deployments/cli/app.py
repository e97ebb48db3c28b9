"""The commands of `sora`, each a thin layer over a module that does the work.

Prefect takes a second to import and reads its settings while it is imported. So the commands import what they need
themselves, after `connect` has said which server to use, and `sora --help` stays quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli import batch, callbacks, collect, generate, ledger, local, setup

app = typer.Typer(
    name="sora",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Generates videos with the APIXO Sora-2 API and archives them in MinIO.

One key is one video: a generation is paid once, whatever crashes, and a paid video is never lost.

**Try it, without an account:** `sora demo`

**First real video:** `sora setup`, then
`sora generate "A red kite over dunes, slow dolly in, golden hour" --key kite-01`

Commands find the Prefect server by `PREFECT_API_URL`, else by the stack that `sora up` runs in this folder, else by
your Prefect profile.
""",
)
app.command("demo")(local.demo)
app.command("up")(local.up)
app.command("sandbox")(local.sandbox)
app.command("setup")(setup.setup)
app.command("deploy")(setup.deploy)
app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("list")(collect.list_)
app.command("collect")(collect.collect)
app.command("callbacks")(callbacks.callbacks)
app.command("show")(ledger.show)
app.command("resolve")(ledger.resolve)


@app.callback()
def _root(
    local_dir: Annotated[
        Path,
        typer.Option("--local-dir", envvar="SORA_LOCAL_DIR", help="Where the local stack keeps its data and logs."),
    ] = Path(".local"),
) -> None:
    local.LOCAL_DIR = local_dir
