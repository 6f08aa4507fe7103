"""``convexlift completion``: what lets a shell complete commands, options and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import typer

from convexlift.cli.options import one_argument_of
from convexlift.names import check_name

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_CONVEXLIFT_COMPLETE"  # in which a shell asks


@final
@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print the script by which a shell completes this command.

    ``convexlift --install-completion`` writes it where the shell that runs it looks.

    \b
    Examples, for the file that the shell reads when it starts:
      eval "$(convexlift completion bash)"
      eval "$(convexlift completion zsh)"
      convexlift completion fish | source
    """

    shell: Annotated[str, one_argument_of(SHELLS, f"One of: {', '.join(SHELLS)}.")]

    def __call__(self) -> None:
        check_name("shell", self.shell, SHELLS)
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        typer.echo(get_completion_script(prog_name="convexlift", complete_var=VARIABLE, shell=self.shell))
