"""diffproof completion: what makes a shell complete commands, flags and names."""

from __future__ import annotations

import click

from diffproof.cli.flags import Names, command
from diffproof.cli.screen import echo


@command()
@click.argument("shell", type=Names(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL (bash, zsh or fish) complete commands, flags and names.

    \b
      eval "$(diffproof completion bash)"          # in ~/.bashrc
      eval "$(diffproof completion zsh)"           # in ~/.zshrc, below compinit
      diffproof completion fish > ~/.config/fish/completions/diffproof.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise AssertionError(f"click knows no {shell}")
    echo(made(ctx.find_root().command, {}, "diffproof", "_DIFFPROOF_COMPLETE").source())
