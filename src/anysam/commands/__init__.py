"""The subcommands of `anysam`, one module each: `add_arguments(parser)` and `run(arguments) -> exit status`.

Their modules import only light things at the top: `anysam segment --help` must not wait for numpy or torch.
"""
