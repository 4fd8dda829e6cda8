"""The server: many people's prompts answered by one model; `engine` has no HTTP in it."""
