"""`expertweaver push`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertweaver.cli.output import ConsoleProgress, errors_explained, print_json, print_pairs
from expertweaver.distributed import require_one_process


def push_command(
    model: Annotated[str, typer.Argument(help="A folder that `convert` wrote.")],
    repo_id: Annotated[str, typer.Argument(help="Where to send it: owner/name. It is created if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send; without it, only say what would be sent.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Put a converted model and its card on the hub; a dry run unless --yes."""
    with errors_explained(as_json):
        require_one_process("push")
        from expertweaver.publishing import push

        done = push(model, repo_id, private=private, yes=yes)
        for remark in done.remarks:
            ConsoleProgress().note(remark)
        if as_json:
            print_json(done.to_json())
            return
        print_pairs({name: f"{size / 1e6:10.3f} MB" for name, size in done.files.items()})
        if done.left_out:
            typer.echo(f"\nleft out: {', '.join(done.left_out)}")
        visibility = "private" if done.private else "public"
        typer.echo(f"\n{len(done.files)} files, {done.num_bytes / 1e6:.1f} MB, to {done.repo_id} ({visibility})")
        typer.echo(f"sent: {done.url}" if done.url else "nothing was sent; repeat with --yes to send it")
