"""The interfaces of published packages on top of this one, so that a program switches by changing an import."""
