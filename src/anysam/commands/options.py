"""Options that several commands have."""

import argparse


def add_allow(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare --allow, for `anysam.licences.allowed_licences`."""
    parser.add_argument(
        "--allow",
        metavar="LICENCES",
        help="refuse weights under other licences, for example apache-2.0,mit (default: ANYSAM_ALLOW, or all)",
    )
