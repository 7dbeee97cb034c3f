"""The command ``dilated-seg completion``."""

import shlex
from importlib import import_module

from dilated_seg.commands import COMMANDS, LIGHTNING
from dilated_seg.commands.parser import CommandParser

# zsh runs bash's completion functions after the first line.
ZSH = "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"
SCRIPT = """\
_dilated_seg() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    elif [ "${{word#-}}" != "$word" ]; then
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    else
        case "$before" in
{classes}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dilated_seg dilated-seg
"""


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("completion", "bash > ~/.local/share/bash-completion/completions/dilated-seg")
    parser.add_argument("shell", choices=("bash", "zsh"))
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg completion``."""
    shell = build_parser().parse_args(args).shell
    from dilated_seg.cli.settings import CHOICES

    options = format_cases({command: list_options(command) for command in COMMANDS})
    classes = format_cases({f"--{option}": names for option, names in CHOICES.items()})
    script = SCRIPT.format(commands=shlex.quote(" ".join(COMMANDS)), options=options, classes=classes)
    print((ZSH if shell == "zsh" else "") + script, end="")
    return 0


def list_options(command: str) -> list[str]:
    """Return the options of a command; of Lightning's four, those that do not depend on the chosen classes."""
    if command not in LIGHTNING:
        parser: CommandParser = import_module(f"dilated_seg.commands.{command}").build_parser()
        return ["--help", *parser.list_options()]
    from dilated_seg.cli.parser import build_parser

    return ["--help", "--config", *(f"--{name}" for name in map(str, build_parser(command).get_defaults().keys()))]


def format_cases(words: dict[str, list[str]]) -> str:
    """Return branches of a shell's ``case`` that set the words to complete."""
    return "\n".join(f"            {key}) words={shlex.quote(' '.join(values))} ;;" for key, values in words.items())
