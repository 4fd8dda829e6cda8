"""Training: recipes, losses, prompt sampling. Nothing outside this folder imports it but the command line."""
