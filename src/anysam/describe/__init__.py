"""Words: names and captions for masks, and the masks that a text means."""
