"""Evaluation: scores of promptable models on images with masks. Nothing outside this folder imports it but the command line."""
