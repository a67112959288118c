"""What a language model would say at every depth and position of a text: the logit lens, by its own tail."""
