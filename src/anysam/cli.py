"""The `anysam` command: a table of subcommands, each imported on use. Errors become one line and an exit status.

0 done; 1 some of several images failed; 2 bad input; 70 a fault of this program; 130 interrupted by Ctrl-C.

argparse and not typer: on two 2 GHz cores an empty typer 0.29 program with a few options takes 0.31 s to do nothing, as
much as a start may take in all; `anysam models` takes 0.18 s of CPU time with argparse (benchmarks/startup.py). rich is
imported only where progress is shown.
"""

import argparse
import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from anysam import __version__
from anysam.commands.options import printable
from anysam.errors import AnySamError, OptionError


@dataclass(frozen=True)
class Command:
    """A subcommand: `module` holds add_arguments and run; its docstring is the text of `anysam NAME --help`.

    nested: it has subcommands of its own: the module's names() are theirs, of one word or two, and its add_arguments
    takes one of them as a second argument.
    """

    name: str
    module: str
    summary: str
    nested: bool = False


COMMANDS = (
    Command("segment", "anysam.commands.segment", "cut out of photographs what points, boxes or outlines show"),
    Command("everything", "anysam.commands.everything", "find all masks of photographs, without pointing at anything"),
    Command(
        "describe", "anysam.commands.describe", "name and caption masks: those of a file, or of what is pointed at"
    ),
    Command("app", "anysam.commands.app", "click masks in a browser, on this machine"),
    Command("serve", "anysam.commands.serve", "answer prompts over HTTP"),
    Command("train", "anysam.commands.train", "make a smaller, better or own model", nested=True),
    Command("embed", "anysam.commands.embed", "keep the embeddings of many images, to distil from"),
    Command("eval", "anysam.commands.eval", "measure models the way the papers do", nested=True),
    Command("compare", "anysam.commands.compare", "which model suits your own photographs: quality, time, licence"),
    Command("export", "anysam.commands.export", "write a model's decoder for browsers and other runtimes", nested=True),
    Command("convert-masks", "anysam.commands.convert_masks", "masks from one file format into another"),
    Command("models", "anysam.commands.models", "list the models: size, prompts, licence, and which are here"),
    Command("fetch", "anysam.commands.fetch", "download a model's weights now, instead of on first use"),
    Command("convert", "anysam.commands.convert", "rewrite published weights as .safetensors, without running them"),
)

_EXAMPLES = """\
examples:
  anysam segment photo.jpg --point 320,240       what is at x 320, y 240?
  anysam segment photo.jpg --box 40,60,300,420   the object in this box
  anysam segment photo.jpg --text "the red car"  what do these words mean?
  anysam describe photo.jpg --point 320,240      what is it called?
  anysam models                                  which models are there?

`anysam COMMAND --help` explains a command. Without --model, the small model inside the package is used: it works
offline.
"""

# Options whose value may begin with a minus, which argparse would take for the next option.
_SIGNED = ("--point", "--box", "--polygon", "--scribble")

_STATUS_BAD_INPUT, _STATUS_FAULT, _STATUS_INTERRUPTED = 2, 70, 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises OptionError instead of printing its usage over several lines."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit status.

    `--help` and `--version` print and raise SystemExit(0), as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        status = _dispatch(arguments)
        if sys.stdout is not None:  # None: the caller closed it
            sys.stdout.flush()  # a reader that has gone or a full disk shows here, not at exit
        return status
    except KeyboardInterrupt:
        return _fail("interrupted.", _STATUS_INTERRUPTED, debug)
    except BrokenPipeError:  # `anysam models | head`: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AnySamError as error:
        return _fail(f"error: {error}", _STATUS_BAD_INPUT, debug)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _fault(error, debug)
        # Files are written by `outputs`, which reports its own; what is left in the buffer cannot be saved.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail("error: stdout cannot be written: the disk is full.", _STATUS_BAD_INPUT, debug)
    except Exception as error:  # the outermost place: nothing goes on after it
        return _fault(error, debug)


def build_parser(command: Command | None = None, nested: str | None = None) -> Parser:
    """The parser of one command (of one of its own subcommands, `nested`), or the one that lists the commands."""
    if command is None:
        parser = _new_parser("anysam", "Point at something in a photograph, get its mask.", _EXAMPLES)
        parser.add_argument("--version", action="version", version=f"anysam {__version__}")
        choices = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", prog="anysam")
        for each in COMMANDS:
            choices.add_parser(each.name, help=each.summary)
        return parser
    module = import_module(command.module)
    description, _, examples = (module.__doc__ or "").partition("\nexamples:\n")
    if nested is None:
        parser = _new_parser(f"anysam {command.name}", description.strip(), f"examples:\n{examples.rstrip()}\n")
        module.add_arguments(parser)
    else:
        parser = _new_parser(f"anysam {command.name} {nested}", module.describe(nested), "")
        module.add_arguments(parser, nested)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _new_parser(prog: str, description: str, epilog: str) -> Parser:
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=_Formatter,
        allow_abbrev=False,  # a shortened option would break on the day a longer one is added
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of one width everywhere, so that the generated documents do not depend on a terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def _dispatch(arguments: list[str]) -> int:
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    command = next((each for each in COMMANDS if each.name == named), None)
    if command is None:
        parser = build_parser()
        if named is not None or arguments:
            parser.parse_args([argument for argument in arguments if argument != "--debug"])
        parser.print_help()
        return 0
    rest = list(arguments)
    rest.remove(command.name)
    nested = _take_nested(command, rest)
    # Intermixed: `anysam segment a.jpg --point 3,4 b.jpg` has two images.
    parsed = build_parser(command, nested).parse_intermixed_args(_join_signed_values(rest))
    status: int = import_module(command.module).run(parsed)
    return status


def _take_nested(command: Command, rest: list[str]) -> str | None:
    """Remove the name of a subcommand's own subcommand from `rest`, where it is the first thing said, and return it."""
    if not command.nested:
        return None
    start = next((place for place, each in enumerate(rest) if not each.startswith("-")), 0)  # behind --debug
    for words in (2, 1):
        name = " ".join(rest[start : start + words])
        if name in import_module(command.module).names():
            del rest[start : start + words]
            return name
    return None


def _join_signed_values(arguments: list[str]) -> list[str]:
    """`--point -120,80` -> `--point=-120,80`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _SIGNED and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _fault(error: Exception, debug: bool) -> int:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    advice = "" if debug else " Run again with --debug for the traceback."
    return _fail(f"a fault in anysam itself: {reason}.{advice}", _STATUS_FAULT, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"anysam: {printable(message)}", file=sys.stderr)
    return status
