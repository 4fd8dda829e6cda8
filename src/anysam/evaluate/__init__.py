"""Evaluation: scores of promptable models on images with masks. Only the command line imports it."""
