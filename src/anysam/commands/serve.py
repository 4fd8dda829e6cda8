"""Answer prompts over HTTP: upload an image, click it, get masks; described by /openapi.json.

Listens to this machine only. For others: --host with a --token, behind something that speaks TLS. The log has no user
data. docs/serve.md has a `curl` line for everything.

examples:
  anysam serve
  anysam serve --model mobile_sam --port 9000 --cache embeddings/
  anysam serve --host 0.0.0.0 --token "$(openssl rand -hex 16)" --db projects.sqlite
  curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/images?wait=30
"""

import argparse
import sys

from anysam.commands.serving import Serving, add_serving_options, run_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `anysam serve`."""
    add_serving_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve; 0 after Ctrl-C."""
    return run_server(arguments, Serving(projects=False, free_port=False, ready=_tell))


def _tell(address: str) -> None:
    print(f"anysam serves at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
