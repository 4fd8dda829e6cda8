"""Training: recipes, losses, prompt sampling. Only the command line imports it."""
