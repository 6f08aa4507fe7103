"""Tables that others have published, with the splits of the literature."""
