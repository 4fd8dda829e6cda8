"""Click masks in a browser: opens a page on this machine, which works without a network.

What is annotated is kept in projects, in a file of yours, as it is made. The options are those of `anysam serve`.

examples:
  anysam app
  anysam app --model mobile_sam
  anysam app --db holiday.sqlite --no-browser
"""

import argparse
import sys
import webbrowser
from functools import partial

from anysam.commands.serving import Serving, add_serving_options, chosen_token, run_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `anysam app`."""
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    add_serving_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve and open the page; 0 after Ctrl-C."""
    return run_server(arguments, Serving(projects=True, free_port=True, ready=partial(_open, arguments)))


def _open(arguments: argparse.Namespace, address: str) -> None:
    print(f"anysam is open at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if not arguments.no_browser:
        # The fragment stays in the browser: servers and logs never see it.
        token = chosen_token(arguments)
        webbrowser.open(address if token is None else f"{address}#token={token}")
